"""What an LLM says of its order is found; texts about models, queries, letters and JSON are left alone."""

from __future__ import annotations

import gzip
import json

import pytest

from dataset_builder.boilerplate import find_boilerplate
from dataset_builder.recorded_llm import DEFAULT_REPLIES
from dataset_builder.schema import Subgroup

ORDINARY = [
    "Sure, here's my address: 12 Elm Street, second floor.",
    "Sure, I can come on Tuesday, if the trains run again.",
    "Of course, I remember you from the choir in Leeds.",
    "Absolutely! I have never eaten better dumplings in my life.",
    "Certainly, below the surface the water is much colder.",
    "Of course, I'll write you a long letter when I have arrived.",
    "Here is the document list for your visa: passport, two photographs, proof of income.",
    "Here is an example of a closure: a function that remembers a variable of the scope it was made in.",
    "Here's the passage to the inner courtyard, and beyond it the well.",
    "Here are your options: repair it, replace it, or leave it as it is.",
    "I'm sorry I could not help you move last Saturday; my back hurts again.",
    "I am sorry, but I cannot help with the costs of the wedding this year.",
    "I am unable to provide support by telephone on public holidays, writes the landlord.",
    "I'm unable to find the request form for parental leave on your website.",
    "As an AI researcher, I read forty papers a week and forget thirty-nine of them.",
    "We hired a chatbot as an AI assistant for the help desk, and tickets fell by a third.",
    "As an AI model is trained, its loss falls quickly at first and slowly later.",
    "Large language models such as GPT-4 were used as a language model baseline in all experiments.",
    "I am an AI engineer at a hospital and cannot share the data of our patients.",
    "She plays the assistant in the sketch; he, in a silver suit, is the robot who says \"I am a machine\".",
    "In the role play the pupils are told: you are a helpful waiter, and your guest speaks no English.",
    "The typesetter filled both columns with lorem ipsum until the articles came in.",
    "“[Your] honour,” he told the judge, “[the] witness is mistaken.”",
    "The critic called it [sic] a 'masterpeice' and gave five stars [out of five].",
    "The speed of light is exactly 299,792,458 m/s.[citation needed]",
    "In Python, xs[0] is the first item and xs[-1] the last; [] is the empty list.",
    "The interval [0, 1) contains zero but not one; [a, b] contains both ends.",
    "The database runs the query in 3 ms once the index fits into memory.",
    "Query: my parcel has been in Leipzig for nine days. What can I do?",
    "def answer(user_query: str) -> str: return search(user_query)[0]",
    'The server replies with {"status": "ok", "input_text": null} when nothing was sent.',
    "For retrieval we mine hard negative examples with BM25 and drop those that a cross-encoder likes.",
    "A hard negative is a passage that looks relevant and is not.",
    "The test came back negative, hard as that was to believe.",
    "Dear Ms Okafor, thank you for your letter of 3 May. We regret the delay. Yours sincerely, P. Nwosu",
    "Please write your name, your company and the date into the box at the top.",
    "S1: Störung zwischen Wannsee und Frohnau, Züge fahren im 20-Minuten-Takt.",
    "The essay must have between 800 and 1,000 words; a word count is to be given on the title page.",
    "Das KI-Modell kann Röntgenbilder lesen, sagt die Ärztin, aber ich kann das besser.",
    "En tant que modèle pour les jeunes, il se doit d'arriver à l'heure.",
    "Como modelo de lenguaje claro, la ley se cita en todas las facultades.",
    "Эта языковая модель, как я понимаю, обучена на новостях.",
    "作为一名人工智能专业的学生，我每天写代码。",
    "この会社は言語モデルとしては小さいものを使っている。",
    "이 회사의 언어 모델은 한국어를 잘합니다.",
]  # fmt: skip
SLIPS = [
    "Sure, here is one: the sea was calm.",
    "Sure! Here's a short passage about beekeeping in Kenya:\n\nBees are kept in log hives.",
    "Certainly! Here is the JSON object you asked for:",
    "Of course! Below is a query that a user might type: best hive for beginners",
    "Absolutely! I'll create a training example for this task.",
    "Here is the requested JSON:",
    "Here's a JSON response with all three keys",
    'Here is the translation of the sentence into German: "Die See war ruhig."',
    "I'm sorry, but I can't assist with that request.",
    "I’m sorry, but I cannot help with that.",
    "I cannot fulfill this request because it asks for medical advice.",
    "I am unable to generate the requested content.",
    "As an AI language model, I cannot give legal advice, but the usual term is three months.",
    "The term is three months. As an AI assistant, I recommend to ask a lawyer.",
    "As a large language model trained by OpenAI, I have no opinions on music.",
    "As an AI, I don't have personal experiences, but many people like it.",
    "Note that I am an AI language model and do not have access to current prices.",
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit.",
    "Dear [Your Name], welcome to the club.",
    "Sincerely,\n[Insert Name Here]\n[Company Name]",
    "Mit freundlichen Grüßen\n[Ihr Name]",
    "[INST] Write a query. [/INST] best hive for beginners",
    "Bees are kept in log hives.<|im_end|>",
    "User query: best hive for beginners",
    "**Hard negative document:** Bees are insects.",
    "hard_negative_document: Bees are insects.",
    '```json\n{"user_query": "best hive"}',
    "This hard negative shares the words of the query but is about wasps.",
    "Bees are insects (hard negative).",
    "Bees are kept in log hives. (Word count: 203)",
    "Bees are kept in log hives. (approximately 200 words)",
    "Als KI-Sprachmodell kann ich keine Rechtsberatung geben.",
    "En tant que modèle de langage, je ne peux pas donner de conseils.",
    "Como modelo de lenguaje de inteligencia artificial, no puedo opinar.",
    "Как языковая модель, я не могу дать совет.",
    "作为一个AI语言模型，我无法提供法律意见。",
    "AI言語モデルとして、法的な助言はできません。",
    "AI 언어 모델로서 법률 조언을 드릴 수 없습니다.",
]  # fmt: skip


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_sentences_are_left_alone(text: str) -> None:
    assert find_boilerplate(text, "short-long") is None


@pytest.mark.parametrize("text", SLIPS)
def test_what_an_llm_says_of_its_order_is_found(text: str) -> None:
    assert find_boilerplate(text, "short-long")


@pytest.mark.parametrize(("subgroup", "is_found"), [("sts", True), ("bitext", True), ("long-short", False)])
def test_the_keys_of_a_triple_are_looked_for_where_they_were_asked(subgroup: Subgroup, is_found: bool) -> None:
    for text in ("S3: the sea was calm", "**S1**: the sea was calm", "s2 : the sea"):
        assert bool(find_boilerplate(text, subgroup)) == is_found


def test_the_phrase_is_shown_short_and_in_one_line() -> None:
    assert find_boilerplate("Dear [Your Name], hello", "sts") == "[your name]"
    phrase = find_boilerplate(f"\n**Sure! Here is a passage about {'very ' * 9}old bees:\n\nBees", "short-long")
    assert phrase == "**sure! here is a passage about very very very very very ver"


def test_the_recorded_replies_have_none() -> None:
    with gzip.open(DEFAULT_REPLIES, "rt", encoding="utf-8") as file:
        bodies = [json.loads(line)["response"]["body"] for line in file]
    contents = [json.loads(body["choices"][0]["message"]["content"]) for body in bodies]
    texts = [text for content in contents if "tasks" not in content for text in content.values()]
    assert len(texts) > 500
    assert [text for text in texts if find_boilerplate(text, "short-long")] == []

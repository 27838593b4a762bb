"""Phrases that an LLM writes about itself or its order, and placeholders it left: they are no part of an example.

Each pattern is as narrow as what was seen of LLMs allows: texts about chatbots, machine learning, letters and JSON are
ordinary, and so is "Sure, here's my address" in a dialogue. A pattern over the whole text is tried only where its hint, a
word that stands in whatever it finds, occurs; that is many times faster.
"""

from __future__ import annotations

import re

from dataset_builder.schema import SYMMETRIC, Subgroup

_OPENING_CHARACTERS = 300

_PIECE = (  # what was asked for
    r"(?:one|(?:the|an?|your|two|three)\ (?:[\w-]+\ ){0,3}"
    r"(?:json|examples?|texts?|passages?|documents?|quer(?:y|ies)|sentences?|translations?|paraphrases?|responses?))"
)
_OPENING = re.compile(
    rf"""(?x) [\s\#*"“]* (?:
    (?:sure|certainly|of\ course|absolutely|okay|great)(?:\ thing)?[,!.]\ +(?:
        (?:here(?:\ is|'s|\ are)|below\ (?:is|are))\ {_PIECE}\b[^.!?\n]{{0,80}}:
        | i(?:'ll|\ will|\ can)\ (?:write|generate|create|provide)\ {_PIECE}\b )
    | here(?:\ is|'s)\ (?:the|an?|your)\ (?:[\w-]+\ ){{0,3}}json\b
    | here(?:\ is|'s)\ (?:the|an?|your)\ (?:[\w-]+\ ){{0,3}}(?:translation|paraphrase|passage)\b[^.!?\n]{{0,80}}:\s*[\n"“«]
    | i(?:'m|\ am)\ sorry,?\ (?:but\ )?i\ (?:can't|cannot|am\ unable\ to|am\ not\ able\ to)\ (?:assist|help|comply|continue)
        \ with\ (?:that|this|your)(?:\ request)?\s*(?:[.,;!]|$)
    | (?:i(?:'m|\ am)\ sorry,?\ (?:but\ )?)?i(?:'m|\ am)?\ (?:can't|cannot|unable\ to|not\ able\ to)
        \ (?:fulfill?|complete|comply\ with|assist\ with|generate|create|write|provide)
        \ (?:this|that|the|your|such)\ (?:[\w-]+\ ){{0,2}}(?:request|prompt|content|instructions?)\b
    | (?:user[ _]query|search\ query|positive[ _](?:document|passage)|hard[ _-]negative(?:[ _](?:document|passage))?
        |input_text|misleading_label|document\ [12])[*"”]*\s*:[*"”]*\s
    | ```(?:json)?\s*\{{
    )"""
)
_TRIPLE = re.compile(r"""[\s*"]*s[123][*"]*\s*:[*"]*\s""")
"""The keys that sts and bitext are asked for; elsewhere a text may well begin with the name of a train line."""

_NAMED = (  # what stands in brackets for a name
    r"(?:(?:first|last|full|middle|given|family|company|client|customer|recipient|sender|employee|employer|manager|patient"
    r"|student|teacher|product|project|city|school|event|organi[sz]ation|contact|hotel|brand|author|friend)(?:'s)?\ )+name"
    r"(?:\ here)?"
)
_NOT = r"(?:can't|cannot|do\ not|don't|am\ (?:not|unable))"
_MADE_BY = r"(?:developed|created|trained|made)\ by\b"
_AI = r"(?:an?\ )?(?:ai|artificial\ intelligence|(?:large\ )?language)\ (?:language\ )?(?:model|assistant)"
_I_AM_AI = rf"(?:just\ |only\ )?{_AI}\b[^.!?\n]{{0,60}}\b(?:{_NOT}|unable|not\ able|{_MADE_BY})"
_PATTERNS = (  # (hint, pattern), for text in lower case with straight apostrophes
    ("as a", rf"\bas\ {_AI}(?:,?\ {_MADE_BY}\ \w+)?(?:,\ (?:i|my)\b|\ i\ {_NOT})"),
    ("as an ai", rf"\bas\ an\ ai,?\ i\ {_NOT}\b[^.!?\n]{{0,30}}\b(?:have|provide|generate|browse|access|feel|able)\b"),
    ("i am", rf"\bi\ am\ {_I_AM_AI}"),
    ("i'm", rf"\bi'm\ {_I_AM_AI}"),
    ("lorem ipsum", r"\blorem\ ipsum\ dolor\b"),
    ("[", rf"\[\s*(?:(?:your|insert|placeholder)\ [\w' ,/-]{{2,60}}|{_NAMED})\s*\]"),
    ("[", r"\[\s*(?:ihre?|dein|votre|ton|su|tu|seu|il\ (?:tuo|suo))\ (?:name|nom|nombre|nome)\s*\]"),
    ("[", r"\[\s*/?inst\s*\]"),
    ("<|", r"<\|(?:im_start|im_end|endoftext|end_of_text|eot_id|start_header_id|begin_of_text)\|>"),
    ("hard_negative_document", r"\bhard_negative_document\b"),
    ("misleading_label", r"\bmisleading_label\b"),
    ("negative", r"\bthis\ (?:\w+\ )?(?:(?:is|serves\ as|acts\ as)\ )?(?:(?:a|the)\ )?hard[\ -]negative\b"),
    ("negative", r"[(\[]\s*hard[\ -]negative\s*[)\]]"),
    ("word count", r"[(\[*]*\bword\ count:?\W{0,4}(?:approximately\ |about\ |~\ ?)?[\d,]+(?:\ words)?[\s)\]*.]*$"),
    ("words", r"\(\s*(?:about|approximately|approx\.|around|~)\ ?\d+\ words\s*\)\s*$"),
    ("modell", r"\bals\ (?:ein\ )?(?:großes\ )?(?:ki-(?:sprach)?modell|sprachmodell)\ (?:kann|habe|bin|darf)\ ich\b"),
    ("modèle", r"\ben\ tant\ que\ (?:grand\ )?modèle\ de\ langage[^.!?\n]{0,40},\ je\b"),
    (
        "modelo",
        r"\bcomo\ (?:um?n?\ )?(?:gran(?:de)?\ )?modelo\ de\ (?:lenguaje|linguagem)[^.!?\n]{0,40},\ (?:no|não|yo|eu)\b",
    ),
    ("modello", r"\b(?:in\ quanto|come)\ modello\ (?:di\ linguaggio|linguistico)[^.!?\n]{0,40},\ (?:non|io)\b"),
    ("модель", r"\bкак\ (?:большая\ )?языковая\ модель[^.!?\n]{0,30},\ я\b"),
    ("作为", r"作为一?[个款名]?(?:大型)?(?:ai|人工智能|大?语言)(?:大?语言)?(?:模型|助手|助理)[,，]?\s*我"),
    (
        "として",
        r"(?:ai|人工知能|大規模)?(?:言語モデル|アシスタント)として、(?:私は|[^。\n]{0,40}(?:できません|ありません))",
    ),
    ("모델로서", r"(?:ai|인공지능|대형)?\s*언어\s*모델로서"),
)
_ANYWHERE = [(hint, re.compile(pattern, re.VERBOSE)) for hint, pattern in _PATTERNS]


def find_boilerplate(text: str, subgroup: Subgroup) -> str | None:
    """Return a phrase in `text`, in lower case, that is the LLM's and not the text's; None: there is none."""
    lower = text.lower().replace("’", "'")
    found = _OPENING.match(lower, 0, _OPENING_CHARACTERS)
    if found is None and subgroup in SYMMETRIC:
        found = _TRIPLE.match(lower)
    for hint, pattern in _ANYWHERE:
        if found:
            break
        if hint in lower:
            found = pattern.search(lower)
    return " ".join(found[0].split())[:60] if found else None

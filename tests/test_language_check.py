"""The language check on real sentences: correct texts pass, texts in another language are found.

`paragraphs.tsv` has five ordinary paragraphs in each of 17 languages that have near relatives.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset_builder.errors import InputError
from dataset_builder.language_check import load_identifier, wrong_language
from dataset_builder.languages import FURTHER_SCRIPTS, LANGUAGES
from tests.replies import SENTENCES

PARAGRAPHS: dict[str, list[str]] = {}
for line in Path(__file__).with_name("paragraphs.tsv").read_text(encoding="utf-8").splitlines():
    PARAGRAPHS.setdefault(line[:2], []).append(line[3:])

UNKNOWN_TO_THE_JUDGE = {"sd", "su", "yi"}
ORDINARY = [
    ("de", "Wie installiere ich Python 3.12 mit Homebrew auf macOS Sonoma?"),
    ("fr", "Best of Netflix, Amazon Prime Video et Disney Plus : notre top ten"),
    ("zh", "如何用 Python pandas 读取 Excel 文件并保存为 CSV"),
    ("zh", "人人生而自由，在尊嚴和權利上一律平等。"),
    ("ko", "Visual Studio Code에서 Git 브랜치 병합하기"),
    ("sr", "Vlada Republike Srbije usvojila je danas predlog zakona o visokom obrazovanju."),
    ("no", "Korleis bakar ein godt brød heime utan maskin i ein enkel omn?"),
    ("uz", "Барча одамлар эркин, қадр-қиммат ва ҳуқуқларда тенг бўлиб туғиладилар."),
    ("ku", "هەموو مرۆڤەکان بە ئازادی و بە یەکسانی لە کەرامەت و ماف لەدایک دەبن"),
    ("pl", "jak zalozyc dzialalnosc gospodarcza przez internet krok po kroku"),
    ("hi", "Mujhe kal subah jaldi uthna hai kyunki train chhe baje hai aur station door hai."),
    ("fy", "Hoe kinne jo thús sels brea bakke sûnder masine yn de oven?"),
    ("xh", "Ndifuna ukuthenga imoto entsha kodwa andinamali eyaneleyo ngoku."),
    ("he", "שִׁיר לְיַלְדָּה קְטַנָּה שֶׁהָלְכָה לַגַּן וּמָצְאָה פֶּרַח אָדֹם עַל יַד הַשַּׁעַר"),
    ("el", "Ὁ πατέρας μου ἐργαζόταν στὸ λιμάνι κάθε μέρα ἀπὸ τὸ πρωὶ ὣς τὸ βράδυ"),
    ("en", "def f(x): return x + 1  # a comment; import numpy as np; print(np.arange(10))"),
    ("en", "12.5 % < 3,400 km² (2019–2024) → ±0.5 °C; 100 × 200 = 20,000 €"),
    ("ja", "3日"),
]


@pytest.mark.parametrize("code", SENTENCES)
def test_a_correct_text_passes_at_any_length(code: str) -> None:
    text = SENTENCES[code]
    for part in (text, text * 5, text[:60], text[:30], text.split(".")[0], text.split(",")[-1]):
        assert wrong_language(part, code) is None, part


@pytest.mark.parametrize(("code", "text"), ORDINARY, ids=[f"{code}-{n}" for n, (code, _) in enumerate(ORDINARY)])
def test_an_ordinary_text_passes(code: str, text: str) -> None:
    assert wrong_language(text, code) is None


@pytest.mark.parametrize("code", PARAGRAPHS)
def test_paragraphs_pass_whole_in_parts_and_together(code: str) -> None:
    together = " ".join(PARAGRAPHS[code])
    for text in [*PARAGRAPHS[code], together, together * 3]:
        for part in (text, text[:60], text[:150], text[-100:], text[len(text) // 3 :]):
            assert wrong_language(part, code) is None, part


@pytest.mark.parametrize("code", sorted(set(SENTENCES) - {"en"}))
def test_another_language_than_english_is_found(code: str) -> None:
    assert wrong_language(SENTENCES[code], "en") is not None
    assert wrong_language(SENTENCES["en"], code) == "en"


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("fr", "es"),
        ("de", "nl"),
        ("hu", "fi"),
        ("hi", "ur"),
        ("th", "lo"),
        ("ja", "ko"),
        ("sw", "so"),
        ("ar", "fa"),
        ("ru", "be"),
        ("tr", "az"),
        ("he", "yi"),
        ("ps", "sd"),
        ("jv", "su"),
        ("ga", "gd"),
        ("kk", "ky"),
    ],
)
def test_two_languages_of_a_region_are_told_apart(asked: str, given: str) -> None:
    assert wrong_language(SENTENCES[given], asked) == given
    assert wrong_language(SENTENCES[asked], given) == asked


CAUGHT = """
es<-pt 5, es<-gl 5, pt<-es 5, pt<-gl 4, gl<-es 5, gl<-pt 3, ru<-uk 5, ru<-bg 3, uk<-ru 5, uk<-bg 5, bg<-ru 5, bg<-uk 5,
sr<-mk 5, sr<-bg 5, mk<-sr 4, mk<-bg 5, bg<-sr 5, bg<-mk 5, cs<-sk 5, sk<-cs 5, da<-no 2, da<-sv 5, no<-da 3, no<-sv 5,
sv<-da 5, sv<-no 5, zh<-ja 5, ja<-zh 5, hi<-mr 5, mr<-hi 5
"""


@pytest.mark.parametrize("pair", CAUGHT.replace("\n", " ").strip().split(", "))
def test_paragraphs_in_a_near_relative_are_caught(pair: str) -> None:
    asked, given, num_caught = pair[:2], pair[4:6], int(pair[7:])
    found = [wrong_language(text, asked) for text in PARAGRAPHS[given]]
    assert set(found) <= {given, None}
    assert len(found) - found.count(None) >= num_caught
    assert wrong_language(" ".join(PARAGRAPHS[given]), asked) == given


@pytest.mark.parametrize(
    ("asked", "given"), [("id", "ms"), ("ms", "id"), ("hr", "bs"), ("bs", "hr"), ("zh", "zh"), ("su", "id")]
)
def test_relatives_that_nobody_tells_apart_pass_for_each_other(asked: str, given: str) -> None:
    assert wrong_language(SENTENCES[given], asked) is None


IN_FURTHER_SCRIPTS = """
az Евдә чөрәк биширмәк үчүн ун, су, дуз вә бир аз маја кифајәтдир. Ахшам һамысыны гарышдырын.
az ائوده چؤرک بیشیرمک اوچون اون، سو، دوز و بیر آز مایا کیفایت ائدیر. آخشام هامیسینی قاریشدیرین.
bn Barite ruti banate ata, jol, nun ar ektu khamir holei chole. Ager rate shob mishiye thanda jaygay rekhe din.
bs За домаћи хљеб довољни су брашно, вода, со и мало квасца. Све помијешајте вече раније.
hi Ghar par roti banane ke liye aata, paani, namak aur thoda sa khameer kaafi hai. Raat ko sab kuch mila dijiye.
kk Üide nan pisıru üşın ūn, su, tūz jäne azdap aşytqy jetedı. Keşke bärın aralastyryp, qamyrdy qoiyñyz.
ku بۆ دروستکردنی نان لە ماڵەوە ئارد و ئاو و خوێ و کەمێک هەویرترش بەسە. شەوی پێشوو هەمووی تێکەڵ بکە.
ms اونتوق ممبوات روتي درومه هاڽ ڤرلو تڤوڠ، اءير، ݢارم دان سديکيت ييس. ݢاءولکن سمواڽ ڤد مالم.
pa گھر وچ روٹی بناؤن لئی آٹا، پانی، لون تے تھوڑا جیہا خمیر کافی اے۔ رات نوں سب کجھ رلا کے رکھ دیو۔
sr Za domaći hleb dovoljni su brašno, voda, so i malo kvasca. Sve pomešajte veče ranije, ostavite testo.
ta Veettil rotti seyya maavu, thanneer, uppu matrum konjam eest podhum. Munthina iravu kalandhu vaikkavum.
te Intlo rotti cheyadaniki pindi, neellu, uppu mariyu konchem eest saripotundi. Mundu rojyu raatri anni kalipi.
ur Ghar par roti banane ke liye aata, pani, namak aur thora sa khameer kafi hai. Raat ko sab kuch mila lein.
uz Уйда нон ёпиш учун ун, сув, туз ва озгина хамиртуруш етарли. Кечқурун ҳаммасини аралаштириб қўйинг.
"""


@pytest.mark.parametrize("line", IN_FURTHER_SCRIPTS.strip().splitlines())
def test_a_text_in_a_further_script_passes_and_english_does_not(line: str) -> None:
    code, text = line[:2], line[3:]
    assert code in FURTHER_SCRIPTS
    for part in (text, text * 8):
        assert wrong_language(part, code) is None
    assert wrong_language(SENTENCES["en"], code) == "en"


def test_only_languages_of_the_table_have_further_scripts() -> None:
    assert set(FURTHER_SCRIPTS) <= set(LANGUAGES)
    assert all(LANGUAGES[code].script not in scripts for code, scripts in FURTHER_SCRIPTS.items())


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (
            "el",
            "Kalimera, pos mporo na ftiakso psomi sto spiti xoris mixani; Exei kaneis kamia kali syntagi na mou dosei;",
        ),
        (
            "ru",
            "Privet, kak dela? Ya hochu spech hleb doma, no ne znayu, skolko nuzhno muki i vody, i kak dolgo zhdat.",
        ),
    ],
)
def test_a_transliteration_is_found_by_its_script(code: str, text: str) -> None:
    assert wrong_language(text, code) == "in Latn script"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("ru", "Samsung Galaxy S24 Ultra vs Apple iPhone 15 Pro Max vs Google Pixel 8 тест"),
        ("ru", "Samsung Galaxy S24 Ultra vs iPhone 15 Pro Max"),
        ("ko", "Samsung Galaxy S24 Ultra vs iPhone 15 Pro Max 카메라 비교"),
        ("zh", "CSS flexbox justify-content align-items 居中 设置"),
        ("ja", "国立研究開発法人科学技術振興機構情報企画部情報分析室"),
        ("ja", "def main():\n    print('hello')\n" * 60 + "この関数は挨拶を表示します。"),
        ("zh", "import torch\nmodel = AutoModel.from_pretrained('x')\nprint(model.config)\n" * 20 + "# 打印配置信息"),
        ("ar", "def f(x):\n    return x + 1\n" * 20),
        ("de", "Installieren Sie das Paket.\n" * 12 + "for i in range(10):\n    total += values[i] ** 2\n" * 12),
        ("hi", "इस प्रमेय के अनुसार $a^2+b^2=c^2$ होता है। \\begin{equation} \\int_0^1 f(x) dx = F(1)-F(0) \\end{equation}"),
        ("pt", "Assistir El Laberinto del Fauno y Los Otros online"),
        ("cs", "Slovenská národná strana a Matica slovenská vo voľbách"),
    ],
)  # fmt: skip
def test_names_code_and_formulas_reject_nothing(code: str, text: str) -> None:
    assert wrong_language(text, code) is None


@pytest.mark.parametrize(
    ("asked", "given"),
    [("de", "en"), ("hi", "en"), ("zh", "en"), ("pt", "es"), ("uk", "ru"), ("cs", "sk"), ("ru", "uk"), ("sv", "da")],
)
def test_a_long_text_is_wrong_if_half_of_it_is(asked: str, given: str) -> None:
    ours, theirs = (" ".join(PARAGRAPHS.get(code, [SENTENCES[code]] * 6)) for code in (asked, given))
    length = 1000 if asked != "zh" else 400
    assert wrong_language(ours[:length] + "\n" + theirs[:1000], asked) == given
    assert wrong_language(theirs[:1000] + "\n" + ours[:length], asked) == given
    assert wrong_language(ours + "\n" + theirs[:120], asked) is None  # a quotation


def test_an_unknown_identifier_is_refused() -> None:
    with pytest.raises(InputError, match="Did you mean 'glotlid'"):
        load_identifier("glotid")


@pytest.mark.parametrize("code", sorted(UNKNOWN_TO_THE_JUDGE))
def test_a_language_that_the_judge_does_not_know_is_never_rejected(code: str) -> None:
    assert wrong_language(SENTENCES[code], code) is None


@pytest.mark.parametrize("text", ["", "?!", "42", "OK", "Rindfleisch", "😀" * 50])
def test_a_text_without_evidence_is_never_rejected(text: str) -> None:
    assert wrong_language(text, "th") is None
    assert wrong_language("x" * 500, "fr") is None

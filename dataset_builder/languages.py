"""The 93 languages of the paper: those of XLM-R.

XLM-R's list has 100 entries. It counts romanised Bengali, Hindi, Tamil, Telugu and Urdu beside the same languages in
their own scripts (5), Burmese in two encodings (1), and Chinese in two scripts (1). Taking each language once leaves the
93 that the paper reports. English makes up 43.1% of the paper's corpus, 13 languages about 2.9% each, and the 79 others
share the rest equally (as Open Synthetic Embeddings, 2025, reads the paper's figure).
"""

from __future__ import annotations

from typing import NamedTuple

from dataset_builder.errors import InputError, suggestion


class Language(NamedTuple):
    """One language: BCP-47 code (in data), English name (in prompts), ISO 15924 script, share of the paper's corpus."""

    code: str
    name: str
    script: str
    weight: float


_ENGLISH_WEIGHT = 43.1  # per cent
_HIGH_WEIGHT = 2.9  # per cent, each of _HIGH
_HIGH = ["ar", "zh", "nl", "fr", "de", "id", "it", "ja", "fa", "pl", "pt", "ru", "es"]

_TABLE = """
Latn af Afrikaans|sq Albanian|az Azerbaijani|eu Basque|bs Bosnian|br Breton|ca Catalan|hr Croatian|cs Czech|da Danish
Latn nl Dutch|en English|eo Esperanto|et Estonian|fil Filipino|fi Finnish|fr French|gl Galician|de German|ha Hausa
Latn hu Hungarian|is Icelandic|id Indonesian|ga Irish|it Italian|jv Javanese|ku Kurdish|la Latin|lv Latvian
Latn lt Lithuanian|mg Malagasy|ms Malay|no Norwegian|om Oromo|pl Polish|pt Portuguese|ro Romanian|gd Scottish Gaelic
Latn sk Slovak|sl Slovenian|so Somali|es Spanish|su Sundanese|sw Swahili|sv Swedish|tr Turkish|uz Uzbek
Latn vi Vietnamese|cy Welsh|fy Western Frisian|xh Xhosa
Cyrl be Belarusian|bg Bulgarian|kk Kazakh|ky Kyrgyz|mk Macedonian|mn Mongolian|ru Russian|sr Serbian|uk Ukrainian
Arab ar Arabic|ps Pashto|fa Persian|sd Sindhi|ur Urdu|ug Uyghur
Deva hi Hindi|mr Marathi|ne Nepali|sa Sanskrit
Beng as Assamese|bn Bengali
Armn hy Armenian
Ethi am Amharic
Geor ka Georgian
Grek el Greek
Gujr gu Gujarati
Guru pa Punjabi
Hans zh Chinese
Hebr he Hebrew|yi Yiddish
Jpan ja Japanese
Khmr km Khmer
Knda kn Kannada
Kore ko Korean
Laoo lo Lao
Mlym ml Malayalam
Mymr my Burmese
Orya or Oriya
Sinh si Sinhala
Taml ta Tamil
Telu te Telugu
Thai th Thai
"""

FURTHER_SCRIPTS: dict[str, tuple[str, ...]] = {
    "az": ("Cyrl", "Arab"),  # until 1991 in Azerbaijan; in Iran to this day
    "bn": ("Latn",),  # XLM-R's list counts the romanised text of bn, hi, ta, te and ur too
    "bs": ("Cyrl",),  # official beside Latn
    "ha": ("Arab",),  # Ajami
    "hi": ("Latn",),
    "jv": ("Java",),
    "kk": ("Latn", "Arab"),  # the alphabet that Kazakhstan is going over to; in China
    "ku": ("Arab",),  # Sorani
    "mn": ("Mong",),  # in China, and official beside Cyrl
    "ms": ("Arab",),  # Jawi
    "pa": ("Arab",),  # Shahmukhi, in Pakistan
    "sd": ("Deva",),  # in India
    "sr": ("Latn",),  # as usual as Cyrl
    "su": ("Sund",),
    "ta": ("Latn",),
    "te": ("Latn",),
    "ur": ("Latn",),
    "uz": ("Cyrl", "Arab"),  # until the 1990s and by many to this day; in Afghanistan
}
"""The scripts besides `Language.script` in which a text of the language is right, by code; why, where it isn't plain."""


def _read_table() -> dict[str, Language]:
    rows = [(script, *entry.split(" ", 1)) for script, entries in _lines() for entry in entries.split("|")]
    tail = (100.0 - _ENGLISH_WEIGHT - _HIGH_WEIGHT * len(_HIGH)) / (len(rows) - 1 - len(_HIGH))
    weights = {"en": _ENGLISH_WEIGHT} | dict.fromkeys(_HIGH, _HIGH_WEIGHT)
    table = [Language(code, name, script, weights.get(code, tail)) for script, code, name in rows]
    return {language.code: language for language in sorted(table)}


def _lines() -> list[tuple[str, str]]:
    return [(line[:4], line[5:]) for line in _TABLE.strip().splitlines()]


LANGUAGES: dict[str, Language] = _read_table()
"""All languages by BCP-47 code, in the order of their codes."""


def check_language(code: str) -> Language:
    """Return the language of a BCP-47 code.

    Raises:
        InputError: if the code is none of the 93.
    """
    if code in LANGUAGES:
        return LANGUAGES[code]
    by_name = {language.name: language.code for language in LANGUAGES.values()}
    if code.title() in by_name:
        hint = f" Did you mean '{by_name[code.title()]}' ({code.title()})?"
    else:
        hint = suggestion(code, LANGUAGES)
    raise InputError(
        f"`languages` has '{code}'; languages are given as BCP-47 codes of XLM-R's {len(LANGUAGES)} languages, "
        f"such as en, de, zh.{hint}"
    )

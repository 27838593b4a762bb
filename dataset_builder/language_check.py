"""Is a text in the language that was asked for? py3langid is the embedded judge.

It rejects only what is surely wrong: a text long enough to judge, the judge sure of another language that is no near
relative, and the asked language ruled out. A language that the judge doesn't know is never rejected for it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

MIN_LETTERS = 30
MIN_LETTERS_CJK = 12  # one character of these scripts says as much as several letters
SURE, RULED_OUT = 0.95, 0.001  # probabilities of the judge

_LABELS = {"fil": "tl"}  # where the judge's label differs from our code
_RELATIVES = (
    {"no", "nn", "da", "sv"},
    {"id", "ms", "jv", "su", "ace"},
    {"hr", "bs", "sr", "sl", "mk"},
    {"cs", "sk"},
    {"zh", "yue", "wuu", "ja"},
    {"ar", "ary", "arz", "fa"},
    {"uz", "uzs", "ug"},
    {"hi", "mr", "ne", "sa", "gom"},
    {"ru", "uk", "be", "bg"},
    {"es", "gl", "pt", "ca", "an"},
    {"it", "vec", "lij", "la"},
    {"nl", "af", "fy"},
    {"de", "lb", "yi"},
    {"gd", "ga"},
    {"az", "tr", "crh", "tk"},
    {"kk", "ky", "tt", "ba"},
    {"bn", "as"},
    {"ku", "sdh", "fa"},
    {"xh", "zu", "st", "nso"},
    {"tl", "bcl"},
    {"fr", "wa", "oc", "gcf", "gcr", "ht"},
    {"lv", "ltg"},
    {"he", "hbo"},
    {"el", "grc"},
)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def wrong_language(text: str, code: str, identifier: str = "py3langid") -> str | None:
    """Return the label of the language that `text` surely is in instead of `code`, or None."""
    letters = [char for char in text if char.isalpha()]
    is_cjk = sum("\u3040" <= char <= "\u9fff" or "\uac00" <= char <= "\ud7af" for char in letters) > len(letters) / 2
    asked = _LABELS.get(code, code)
    if len(letters) < (MIN_LETTERS_CJK if is_cjk else MIN_LETTERS) or asked not in _identifier().labels:
        return None
    ranked = _identifier().rank(text)
    label = str(ranked[0][0])
    family = {label}.union(*(group for group in _RELATIVES if label in group))
    probability = sum(float(p) for other, p in ranked if other in family)  # relatives share it between them
    if label == "zxx" or asked in family or probability < SURE:
        return None
    return label if dict(ranked)[asked] < RULED_OUT else None

"""Is a text in the language that was asked for? First by its script, then by an identifier of languages, then by words.

A text is rejected only if it is surely wrong: long enough to judge, and

- nearly all of its letters are in a script that the language isn't written in, or
- the identifier is sure of another language, and either rules the asked one out or the text has several letters and
  words that only the other one of two relatives has (ř and ů are Czech, ľ and ô are Slovak).

py3langid is the embedded identifier; GlotLID (`dataset_builder.glotlid`) may take its place. Languages that no judge can
tell apart surely (Croatian and Serbian in Latin letters, Bokmål and Nynorsk) pass for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Protocol, cast

from dataset_builder.errors import InputError, suggestion
from dataset_builder.scripts import (
    evidence,
    halves,
    most_common_script,
    sample,
    share_in_its_script,
    share_of_letters,
)

MIN_LETTERS = 30  # one CJK character counts as 2.5
MIN_LETTERS_OF_NAMES = 60  # a shorter text in a near relative or in another script may be names or a title
MIN_LETTERS_OF_HALF = 300  # a shorter half may be a quotation
MIN_SHARE = 0.1  # of the letters, in a script of the language: technical texts are full of English names and code
MAX_SHARE_OF_STRAYS = 0.02  # what is quoted of the language in a text that is surely none of it
MIN_SHARE_OF_LETTERS = 0.9  # of the characters but spaces; code and formulas have fewer letters than prose
SAMPLE_BYTES = 180  # of each half of a long text
SURE, RULED_OUT = 0.95, 0.001  # probabilities of the identifier
MIN_MARKS, MARKS_RATIO = 2, 10  # marks of the other language, and how many times those of the asked one they are

_LABELS = {"fil": "tl"}  # where the identifier's label differs from our code
_SAME = {  # labels that a text of the language may surely get
    "ar": {"ary", "arz"}, "bs": {"hr", "sr"}, "el": {"grc"}, "es": {"an", "ext"},
    "fil": {"bcl"}, "fr": {"wa", "oc", "gcf", "gcr"}, "he": {"hbo"}, "hi": {"gom"}, "hr": {"bs", "sr"}, "id": {"ms"},
    "it": {"vec", "lij"}, "ku": {"sdh", "fa"}, "lv": {"ltg"}, "mr": {"gom"}, "ms": {"id"}, "no": {"nn"},
    "sr": {"bs", "hr"}, "sw": {"rw"}, "ug": {"uzs"}, "uz": {"ug", "uzs"}, "xh": {"zu", "st", "nso"},
    "zh": {"wuu", "yue"},
}  # fmt: skip
_STAND_INS = {  # the labels that a language gets which the identifier doesn't know
    "sd": {"ps", "ur", "fa", "ar", "ary", "arz", "ug", "uzs", "sdh"},
    "su": {"jv", "id", "ms", "ace", "bcl", "tl"},
    "yi": {"he", "hbo"},
}
_RELATIVES = (  # between which the identifier wavers, though it is sure that the text is in one of them
    {"no", "nn", "da", "sv"},
    {"id", "ms", "jv", "ace"},
    {"hr", "bs", "sr", "sl", "mk"},
    {"sr", "mk", "bg"},
    {"cs", "sk"},
    {"zh", "yue", "wuu"},
    {"ar", "ary", "arz"},
    {"fa", "ps", "uzs", "sdh"},
    {"uz", "uzs", "ug"},
    {"hi", "mr", "ne", "sa", "gom"},
    {"ru", "uk", "be", "bg"},
    {"es", "gl", "pt", "ca", "an", "ext"},
    {"it", "vec", "lij", "la"},
    {"nl", "af", "fy"},
    {"de", "lb"},
    {"gd", "ga"},
    {"az", "tr", "crh", "tk"},
    {"kk", "ky", "tt", "ba"},
    {"bn", "as"},
    {"xh", "zu", "st", "nso"},
    {"tl", "bcl"},
    {"fr", "wa", "oc", "gcf", "gcr", "ht"},
    {"lv", "ltg"},
    {"he", "hbo"},
    {"el", "grc"},
)
_HIDDEN = {"he": "yi", "jv": "su", "ps": "sd"}  # label: the language unknown to the identifier that it may stand for
_NO_LANGUAGE = "zxx"  # the label of code, numbers and noise
_WORLD = {"en", "de", "es", "fr", "it", "pt", "ru"}  # what an LLM falls back to
_KNOWN_IN_ALL_SCRIPTS = {"sr", "uz"}  # to the identifier; other languages it knows in their main script only

_MARKS_TABLE = """
af 'n_ ’n_ _nie_ _wat_
ar ة ى _في_ _من_ _أن_ _إلى_
be ў і ы э ё й ю я ь
bg ъ щ и й ю я ь _е_ _в_ _от_ _че_ _се_ _са_ _това_
bs ć đ _i_ _koji_ _koja_ _što_ _šta_ _ali_
ca _i_ _el_ _els_ _amb_ _és_ _una_ ç l·l
cs ě ř ů _se_ _jsem_ _není_ _nebo_
da æ ø _af_ _efter_ _nu_ _mig_ _sig_ _noget_ _blev_ _ud_ _op_ _mere_ _hvad_ _bliver_ _få_ _fået_ _år_ _uden_ _end_
es ñ ¿ ¡ _y_ _el_ _los_ _las_ _una_ _muy_
fa _که_ _را_ _است_ _این_ _برای_
gl ñ _unha_ _non_ _ao_ _coa_ _cun_ _pola_ _polo_ _moi_ _ten_ _aos_
he _של_ _את_ _על_ _הוא_ _היא_ _לא_ _זה_ _עם_ _כי_ _אני_ _גם_ _או_ _כל_
hi _है _और_ _में_ _को_ _लेकिन_ _का_ _से_
hr ć đ _i_ _koji_ _koja_ _što_ _šta_ _ali_
jv _lan_ _sing_ _ing_ _karo_ _iku_ _kang_ _dheweke_
kk ә ғ қ ұ һ і _және_ _мен_
ky _жана_ _менен_ _үчүн_
mk ѓ ќ ѕ ј љ њ џ и _е_ _се_ _дека_ _го_ _ги_ _во_ _со_ _од_
mr ळ _आहे _आणि_ च्या_ _होते_ _पण_ _आहेत
ne _छ_ _छ। _छन् हरू _पनि_ गर्नु _हुन्छ _लागि_
nl _een_ _niet_ _de_ _zijn_ _van_het_
nn æ ø _av_ _etter_ _no_ _meg_ _seg_ _noko_ _vart_ _ut_ _opp_ _meir_ _kva_ _frå_ _ein_ _uten_ _utan_ _enn_
no æ ø _av_ _etter_ _nå_ _meg_ _seg_ _noe_ _ble_ _ut_ _opp_ _mer_ _hva_ _blir_ _få_ _fått_ _år_ _uten_ _enn_
ps ښ ځ څ ې ړ _د_
pt ã õ ç _uma_ _não_ _ao_ _pela_ _pelo_ _muito_ _tem_ _aos_ _em_
ru ы э ё ъ щ и й ю я ь _в_ _от_
sd ڪ ۾ ٻ ڏ ڙ ڻ ۽ ڳ ٿ
sk ľ ĺ ŕ ô ä _sa_ _som_ _nie_ _alebo_
sl _in_ _ki_ _tudi_ _kot_ _ali_
sr ђ ћ ј љ њ џ и ć đ _i_ _koji_ _koja_ _što_ _je_ _ali_ _је_ _се_ _у_ _су_ _од_ _са_
su _jeung_ _anu_ _teh_ _téh_ keun_ _nu_ _kudu_ _ieu_
sv ä ö _och_ _att_ _av_ _efter_ _mig_ _sig_ _ut_ _upp_ _mer_ _få_ _år_
ur ے ں ٹ ڈ ڑ
uk і ї є ґ щ и й ю я ь
yi _און_ _איז_ _די_ _דער_ _פון_ _פֿון_ _צו_ _מיט_ _האט_ _נישט_ _מען_
"""  # _ is a space
_MARKS = {
    code: frozenset(mark.replace("_", " ") for mark in marks)
    for code, *marks in map(str.split, _MARKS_TABLE.strip().splitlines())
}


class Identifier(Protocol):
    """What judges: our codes (or labels of further languages) with their probabilities, best first."""

    @property
    def labels(self) -> Sequence[str]:
        """All labels that it knows."""
        ...

    def classify(self, text: str) -> tuple[str, float]:
        """Return the likeliest label and its probability."""
        ...

    def rank(self, text: str) -> Sequence[tuple[str, float]]:
        """Return labels with their probabilities, best first."""
        ...


@cache
def load_identifier(name: str = "py3langid") -> Identifier:
    """Load an identifier once: 'py3langid' or 'glotlid'.

    Raises:
        InputError: if there is none of that name, or what it needs isn't there.
    """
    if name == "glotlid":
        from dataset_builder.glotlid import GlotLID

        return GlotLID.from_hub()
    if name != "py3langid":
        names = ("py3langid", "glotlid")
        raise InputError(f"`language_identifier` is '{name}'; known are {', '.join(names)}.{suggestion(name, names)}")
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return cast(Identifier, LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True))


def wrong_language(text: str, code: str, identifier: str = "py3langid") -> str | None:
    """Return what `text` surely is instead of `code`: the label of a language, or 'in Latn script'; else None.

    A long text is judged by samples of its halves, and in full only where a sample isn't plainly right; it is wrong too
    if a long half of it is.

    Raises:
        InputError: if the identifier cannot be loaded.
    """
    is_long = len(text.encode("utf-8", "surrogatepass")) > 2 * SAMPLE_BYTES
    parts = halves(text) if is_long else (text,)
    doubtful = [
        part
        for part in parts
        if not _is_plainly_right(sample(part, SAMPLE_BYTES) if is_long else part, code, identifier)
    ]
    if not doubtful:
        return None
    long_parts = [text, *filter(_is_long_prose, doubtful)] if is_long else [text]
    label = next((label for part in long_parts if (label := _surely_in(part, code, identifier))), None)
    return label or _script_instead(text, code)


def _is_plainly_right(text: str, code: str, identifier: str) -> bool:
    if share_in_its_script(text, code) < MIN_SHARE:
        return False
    label = load_identifier(identifier).classify(text)[0]
    return label in _accepted(code, identifier) and _look_alike(label, code, text, identifier) is None


def _is_long_prose(text: str) -> bool:
    return evidence(text) >= MIN_LETTERS_OF_HALF and share_of_letters(text) >= MIN_SHARE_OF_LETTERS


def _script_instead(text: str, code: str) -> str | None:
    """Return the script that a text is in instead of its language's, unless that may be for names, code or formulas."""
    if evidence(text) < MIN_LETTERS_OF_NAMES or share_of_letters(text) < MIN_SHARE_OF_LETTERS:
        return None
    return f"in {most_common_script(text)} script" if share_in_its_script(text, code) < MAX_SHARE_OF_STRAYS else None


def _surely_in(text: str, code: str, identifier: str) -> str | None:
    """Return the label of the language that `text` surely is in instead of `code`, or None."""
    if evidence(text) < MIN_LETTERS:
        return None
    accepted = _accepted(code, identifier)
    ranked = load_identifier(identifier).rank(text)
    label, probability = ranked[0]
    if label in accepted or label == _NO_LANGUAGE:
        return _look_alike(label, code, text, identifier)
    if share_in_its_script(text, code) < MIN_SHARE:
        return label if probability >= SURE else None
    if share_in_its_script(text, code, further=False) < MIN_SHARE and not (
        label in _WORLD or code in _KNOWN_IN_ALL_SCRIPTS
    ):
        return None
    family = {label}.union(*(group for group in _RELATIVES if label in group))
    if code in family:
        if evidence(text) < MIN_LETTERS_OF_NAMES:
            return None
        if _has_marks_of(label, code, text):
            return label
    probabilities = dict(ranked)
    is_sure = sum(probabilities.get(other, 0.0) for other in family - accepted) >= SURE
    return label if is_sure and sum(probabilities.get(other, 0.0) for other in accepted) < RULED_OUT else None


@cache
def _known(identifier: str) -> frozenset[str]:
    return frozenset(load_identifier(identifier).labels)


@cache
def _accepted(code: str, identifier: str) -> frozenset[str]:
    """Return the labels that a text of the language may get; a language that isn't known gets those of others."""
    asked = _LABELS.get(code, code)
    return frozenset({asked, *_SAME.get(code, ()), *(() if asked in _known(identifier) else _STAND_INS.get(code, ()))})


def _look_alike(label: str, code: str, text: str, identifier: str) -> str | None:
    """Return the language that a text with an accepted label is by its marks: of the two, the identifier knows only one."""
    known, asked = _known(identifier), _LABELS.get(code, code)
    other = _HIDDEN.get(label, label) if asked in known else label
    return other if not {other, asked} <= known and _has_marks_of(other, code, text) else None


def _has_marks_of(label: str, code: str, text: str) -> bool:
    """Tell whether `text` has the letters and words of `label` that the language `code` lacks, and not the reverse."""
    theirs, ours = _MARKS.get(label, frozenset[str]()), _MARKS.get(code, frozenset[str]())
    if not theirs or not ours or evidence(text) < MIN_LETTERS_OF_NAMES:
        return False
    text = f" {text.lower()} "
    num_theirs, num_ours = sum(map(text.count, theirs - ours)), sum(map(text.count, ours - theirs))
    return num_theirs >= MIN_MARKS and num_theirs >= MARKS_RATIO * num_ours

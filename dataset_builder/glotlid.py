"""GlotLID, an identifier of some 2,000 languages, in the place of py3langid.

Kargaran et al., "GlotLID: Language Identification for Low-Resource Languages" (EMNLP 2023 Findings). The model is a
fastText classifier of 1.7 GB, fetched once from the Hub and held in memory. Its labels are ISO 639-3 codes with a script
(`por_Latn`). The script is left out here, because `dataset_builder.scripts` has judged it before; members of a
macrolanguage count as our code for it.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from huggingface_hub import hf_hub_download

from dataset_builder.errors import InputError

REPO_ID, FILENAME = "cis-lmu/glotlid", "model_v3.bin"  # of one version: model.bin becomes a newer one some day
NUM_PREDICTIONS = 10  # labels asked for; their probabilities nearly sum to 1

_TABLE = """
af afr|am amh|an arg|as asm|az aze azj azb|ba bak|be bel|bg bul|bn ben|br bre|bs bos|ca cat|cs ces|cy cym|da dan|de deu
el ell|en eng|eo epo|es spa|et est ekk|eu eus|fa fas pes prs|fi fin|fr fra|fy fry|ga gle|gd gla|gl glg|gu guj|ha hau
he heb|hi hin|hr hrv hbs|ht hat|hu hun|hy hye hyw|id ind|is isl|it ita|ja jpn|jv jav|ka kat|kk kaz|km khm|kn kan|ko kor
ku kur kmr ckb|ky kir|la lat|lb ltz|lo lao|lt lit|lv lav lvs|mk mkd|ml mal|mn mon khk mvf|mr mar|ms msa zsm zlm|my mya
mg mlg plt bhr bjq bmm bzc msh skg tdx tkg txy xmv xmw|ne nep npi|nl nld|nn nno|no nor nob|oc oci|om orm gaz hae gax
or ori ory|pa pan pnb|pl pol|ps pus pbt pbu pst|pt por|ro ron mol|ru rus|rw kin|sa san|sd snd|si sin|sk slk|sl slv
so som|sq sqi als aln aae aat|sr srp|st sot|su sun|sv swe|sw swa swh swc|ta tam|te tel|tg tgk|th tha|tk tuk|tl fil tgl
tr tur|tt tat|ug uig|uk ukr|ur urd|uz uzb uzn|vi vie|wa wln|xh xho|yi yid ydd yih|zh zho cmn lzh|zu zul|zxx zxx und
ar ara arb aao abv acm acq acw acx aeb afb ajp apc apd arq ars auz avl ayh ayl ayn ayp pga shu ssh
"""
_LABELS = {
    member: label
    for label, *members in map(str.split, _TABLE.strip().replace("\n", "|").split("|"))
    for member in members
}


class GlotLID:
    """The model, with the labels and methods of py3langid's `LanguageIdentifier`.

    Labels are those of py3langid (`pt`, `tl`) where it has the language, else ISO 639-3 codes (`bam`).
    """

    def __init__(self, path: str) -> None:
        fasttext = _import_fasttext()
        try:
            self._model: Any = fasttext.load_model(path)
        except (ValueError, MemoryError) as error:
            raise InputError(
                f"{path} is no fastText model that can be loaded ({error}); delete it to fetch it anew."
            ) from error
        self.labels = sorted({_label(name) for name in self._model.get_labels()})

    @classmethod
    def from_hub(cls) -> GlotLID:
        """Load the model from the Hub's cache, fetching it if it isn't there.

        Raises:
            InputError: if fastText isn't installed, or the model can neither be found nor fetched.
        """
        _import_fasttext()  # before 1.7 GB are fetched
        try:
            path = hf_hub_download(REPO_ID, FILENAME)
        except Exception as error:  # of the Hub, of the transport, of the disk
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"`language_identifier` is 'glotlid', but {FILENAME} of {REPO_ID} cannot be fetched ({reason}); "
                "check the network and HF_ENDPOINT, or use 'py3langid', which is built in."
            ) from error
        return cls(path)

    def classify(self, text: str) -> tuple[str, float]:
        """Return the likeliest label and its probability."""
        return self.rank(text)[0]

    def rank(self, text: str) -> list[tuple[str, float]]:
        """Return the likeliest labels with their probabilities, best first."""
        names, probabilities = self._model.predict(" ".join(text.split()), k=NUM_PREDICTIONS)
        ranked: dict[str, float] = {}
        for name, probability in zip(names, probabilities, strict=True):
            ranked[_label(name)] = ranked.get(_label(name), 0.0) + float(probability)
        return sorted(ranked.items(), key=itemgetter(1), reverse=True)


def _label(name: str) -> str:
    member = name.removeprefix("__label__").split("_")[0]
    return _LABELS.get(member, member)


def _import_fasttext() -> Any:
    try:
        import fasttext
    except ImportError as error:
        raise InputError(
            "`language_identifier` is 'glotlid', which needs fastText; install it with `pip install 'embedsmith[glotlid]'`."
        ) from error
    return fasttext

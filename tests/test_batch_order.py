"""Batches over several processes and in the middle of an epoch: always the same ones, however they are asked for."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate import skip_first_batches
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from tests.tiny_datasets import distinct_rows, example
from tests.tiny_models import tiny_tokenizer
from trainer.batches import ContrastiveBatchSampler
from trainer.collator import ContrastiveCollator
from trainer.contrastive import BatchLoader
from trainer.eos import ensure_eos

SUBGROUPS = ["short-long"] * 23 + ["sts"] * 9 + ["bitext"] * 1 + ["short-long"] * 10 + ["sts"] * 7


def _sampler(subgroups: list[str], batch_size: int, seed: int = 0, **arguments: Any) -> ContrastiveBatchSampler:
    return ContrastiveBatchSampler(distinct_rows(subgroups), batch_size, seed, **arguments)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_processes_share_the_batches_of_one(world_size: int) -> None:
    whole = list(_sampler(SUBGROUPS, 8, 3))
    parts = [list(_sampler(SUBGROUPS, 8, 3, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert [list(chain(*batch)) for batch in zip(*parts, strict=True)] == whole
    for batch in zip(*parts, strict=True):
        assert max(map(len, batch)) - min(map(len, batch)) <= 1


def test_a_batch_smaller_than_the_processes() -> None:
    """A process without a row gets an empty batch, which the collator takes too."""
    rows = Dataset.from_list([example("sts", i) for i in range(5)])
    sampler = ContrastiveBatchSampler(rows, 3, rank=0, world_size=4)
    loader: DataLoader[Any] = DataLoader(
        rows,
        batch_sampler=sampler,
        collate_fn=ContrastiveCollator(ensure_eos(tiny_tokenizer("qwen3")), 16),
    )
    assert [len(batch["query_keys"]) for batch in loader] == [0, 0]


def _loader(kind: type[DataLoader[Any]] = DataLoader, num_workers: int = 0) -> DataLoader[Any]:
    rows: Any = range(len(SUBGROUPS))
    return kind(rows, batch_sampler=_sampler(SUBGROUPS, 8, 3), collate_fn=list, num_workers=num_workers)


def _choose_epoch(loader: Any, epoch: int) -> None:
    """As `_run_epoch` of transformers' Trainer does."""
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    underlying: Any = getattr(getattr(loader, "batch_sampler", None), "batch_sampler", None)
    if hasattr(underlying, "set_epoch"):
        underlying.set_epoch(epoch)


@pytest.mark.parametrize("kind", [DataLoader, BatchLoader])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipping_batches_goes_on_where_the_epoch_was_left(kind: type[DataLoader[Any]], num_workers: int) -> None:
    whole = _loader(kind)
    _choose_epoch(whole, 2)
    resumed = skip_first_batches(_loader(kind, num_workers), 3)
    _choose_epoch(resumed, 2)
    assert list(resumed) == list(whole)[3:] != list(_loader(kind))[3:]


class _Recorder(Trainer):
    """A real `Trainer` on a plain `DataLoader`, which notes the rows of each step."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        self.seen: list[list[int]] = []
        loader = _loader()
        loader.collate_fn = lambda rows: {"rows": torch.tensor(rows)}
        return loader

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.seen.append(inputs["rows"].tolist())
        return model.weight.sum()


@pytest.mark.parametrize("steps", [2, 8, 11])
def test_transformers_trainer_chooses_the_epoch_and_resumes(tmp_path: Path, steps: int) -> None:
    def train(num_epochs: int, checkpoint: str | None = None, **arguments: Any) -> _Recorder:
        settings = TrainingArguments(
            str(tmp_path),
            num_train_epochs=num_epochs,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            lr_scheduler_type="constant",
            **arguments,
        )
        trainer = _Recorder(nn.Linear(1, 1), settings, train_dataset=cast(Any, range(len(SUBGROUPS))))
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    expected = []
    for epoch in range(3):
        sampler = _sampler(SUBGROUPS, 8, 3)
        sampler.set_epoch(epoch)
        expected += list(sampler)
    assert train(3, save_steps=steps, save_total_limit=20).seen == expected
    assert train(3, str(tmp_path / f"checkpoint-{steps}")).seen == expected[steps:]

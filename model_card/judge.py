"""Runs mteb for one candidate: what is judged already is not judged again, what was cut off goes on where it stopped."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mteb
from mteb.abstasks import AbsTask
from mteb.cache import ResultCache
from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
from mteb.models.model_meta import ModelMeta
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from dataset_builder.errors import InputError
from dataset_builder.progress import duration
from dataset_builder.schema import instruct
from model_card.batches import TokenBatches
from model_card.candidates import Candidate
from model_card.encoder import RowInstructEncoder, TaskInstructEncoder, model_meta, plain_encoder
from model_card.scores import TOLD, read_told, results_folder, revision_of_result
from model_card.tasks import HeldOutTask, num_characters


@dataclass
class EvaluationProgress:
    """The one progress line: which model and task, how many texts so far, and when all of it will be done.

    The ETA goes by characters, from mteb's own statistics of its tasks.

    Args:
        num_left: pairs of model and task that are to be judged.
        characters_left: characters of all of them.
    """

    num_left: int
    characters_left: float
    every_s: float = 5.0
    done: int = 0
    characters_done: float = 0.0
    what: str = ""
    num_texts: int = 0
    _start: float = field(default_factory=time.monotonic)
    _task_start: float = 0.0
    _printed: float = field(default_factory=time.monotonic)

    def begin(self, what: str) -> None:
        """Name the model and task that come next."""
        self.what, self.num_texts, self._task_start = what, 0, time.monotonic()

    def encoded(self, num_texts: int) -> None:
        """Count encoded texts; print if the last line is some seconds old."""
        self.num_texts += num_texts
        now = time.monotonic()
        if now - self._printed >= self.every_s:
            rate = self.num_texts / max(now - self._task_start, 1e-9)
            self._print(f"{self.num_texts:,} texts | {rate:,.0f} texts/s")

    def end(self, result: str, characters: float) -> None:
        """Count what is done and print its result."""
        self.done += 1
        self.characters_done += characters
        self._print(f"{result} | {duration(time.monotonic() - self._task_start)}")

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        share = self.characters_done / self.characters_left if self.characters_left else 0
        left = (self._printed - self._start) * (1 / share - 1) if 0 < share < 1 else 0
        eta = f" | eta {duration(left)}" if left and self.done < self.num_left else ""
        print(f"evaluate {self.done:,}/{self.num_left:,} | {self.what} | {text}{eta}", file=sys.stderr, flush=True)


class Judge:
    """Runs mteb for one candidate; the model is loaded only if something is left to judge.

    Args:
        candidate: the model.
        cache: mteb's results are written there, under the candidate's name and revision.
        instructions: by name of task or task type, for models that take ours.
        max_tokens: tokens of a batch; None chooses by the device.
        devices: encode on all of these at once; none: on the one that sentence-transformers chooses.
    """

    def __init__(
        self,
        candidate: Candidate,
        cache: ResultCache,
        instructions: dict[str, str],
        max_tokens: int | None,
        devices: Sequence[str] = (),
    ) -> None:
        self.candidate, self.cache, self.instructions = candidate, cache, instructions
        self.max_tokens, self.devices = max_tokens, devices
        self.progress = EvaluationProgress(0, 0)
        self._loaded: tuple[Any, TokenBatches | None] | None = None

    @property
    def folder(self) -> Path:
        """Where the candidate's results lie."""
        return results_folder(self.cache.cache_path, self.candidate.name, self.candidate.revision)

    def can(self, task: AbsTask) -> bool:
        """Tell whether the candidate does this type of task."""
        return self.candidate.types is None or task.metadata.type in self.candidate.types

    def is_judged(self, task: AbsTask) -> bool:
        """Tell whether the whole result for this model, this data and this instruction is there."""
        path = self.folder / f"{task.metadata.name}.json"
        if not self._fits(task) or revision_of_result(path) != task.metadata.revision:
            return False
        result = self.cache.load_task_result(task.metadata.name, self.candidate.name, self.candidate.revision)
        return result is not None and not result.get_missing_evaluations(task)

    def judge(self, task: AbsTask) -> float:
        """Judge a task, or what is missing of it, and return its score.

        Raises:
            Exception: whatever mteb, the task's own code and the Hub's clients raise.
        """
        path, metadata = self.folder / f"{task.metadata.name}.json", task.metadata
        if not self._fits(task) or revision_of_result(path) not in (None, metadata.revision):
            path.unlink(missing_ok=True)  # mteb would keep a result of other data or of another instruction
        self._tell(task)
        encoder = self._encoder(task)
        if isinstance(task, HeldOutTask):
            task.has_instructions = encoder is not self._load()[0]
        # bm25s shows a bar of its own for each step, whatever it is told
        quiet = redirect_stderr(io.StringIO()) if self._load()[1] is None else nullcontext()
        with quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of mteb's own code, which a user can do nothing about
            logging.getLogger("mteb").setLevel(logging.ERROR)
            result = mteb.evaluate(
                encoder,
                task,
                cache=self.cache,
                encode_kwargs={"batch_size": 32, "show_progress_bar": False},  # batches are chosen by `TokenBatches`
                show_progress_bar=False,
                co2_tracker=False,
            )
        return float(result.task_results[0].get_score())

    @property
    def model(self) -> TokenBatches:
        """The loaded model.

        Raises:
            InputError: if the candidate is none that encodes texts.
        """
        model = self._load()[1]
        if model is None:
            raise InputError(f"{self.candidate.label} encodes no texts.")
        return model

    def unload(self) -> None:
        """Forget the loaded model, and end its processes on other devices."""
        if self._loaded is not None and self._loaded[1] is not None:
            self._loaded[1].close()
        self._loaded = None

    def _load(self) -> tuple[Any, TokenBatches | None]:
        """Return mteb's encoder as it is without instructions of ours, and the model within it."""
        if self._loaded is None:
            loaded = self.candidate.load()
            inner = loaded if isinstance(loaded, SentenceTransformer) else getattr(loaded, "model", None)
            model = None
            if isinstance(inner, SentenceTransformer):
                model = TokenBatches(inner, self.max_tokens, self.progress.encoded, self.devices)
            if isinstance(loaded, SentenceTransformer):
                assert model is not None
                loaded = plain_encoder(model, self._meta(model))
            elif model is not None:
                loaded.model = model
            self._loaded = loaded, model
        return self._loaded

    def _meta(self, model: TokenBatches) -> ModelMeta:
        c = self.candidate
        return model_meta(c.name, c.revision, model, use_instructions=c.use_instructions)

    def _encoder(self, task: AbsTask) -> Any:
        """Return what mteb drives for this task."""
        encoder, model = self._load()
        if model is None:
            return encoder
        meta = encoder.mteb_model_meta if self.candidate.is_registered else self._meta(model)
        if isinstance(task, HeldOutTask):
            prefix = (lambda instruction: instruct(instruction, "")) if self.candidate.use_instructions else None
            if isinstance(encoder, InstructSentenceTransformerModel) and encoder.instruction_template:
                prefix = lambda instruction: encoder.format_instruction(instruction, PromptType.query)  # noqa: E731
            return RowInstructEncoder(model, meta, prefix)
        return TaskInstructEncoder(model, meta, self.instructions) if self.candidate.use_instructions else encoder

    def _told(self, task: AbsTask) -> str | None:
        """Return the instruction of a task, or None where the candidate takes none of ours."""
        if isinstance(task, HeldOutTask) or not self.candidate.use_instructions:
            return None
        empty: Any = None
        return TaskInstructEncoder(empty, empty, self.instructions).get_instruction(task.metadata, PromptType.query)

    def _fits(self, task: AbsTask) -> bool:
        told = self._told(task)
        return told is None or read_told(self.folder).get(task.metadata.name, told) == told

    def _tell(self, task: AbsTask) -> None:
        told = self._told(task)
        if told is not None:
            rows = sorted((read_told(self.folder) | {task.metadata.name: told}).items())
            text = "".join(
                json.dumps({"task": name, "instruction": text}, ensure_ascii=False) + "\n" for name, text in rows
            )
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / TOLD).write_text(text, encoding="utf-8")


def plan_work(judges: Sequence[Judge], tasks: Sequence[AbsTask]) -> list[list[AbsTask]]:
    """Return the tasks that are left for each judge, and give all judges the one progress line."""
    work = [[task for task in tasks if judge.can(task) and not judge.is_judged(task)] for judge in judges]
    progress = EvaluationProgress(sum(map(len, work)), sum(num_characters(task) for left in work for task in left))
    for judge in judges:
        judge.progress = progress
    return work

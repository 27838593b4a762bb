"""Asking through the Batch API: submit the requests as files, wait until they are answered, take the results.

Nothing is paid twice. A submission is noted in the journal before its batch is created and again once the batch has an
id; killed in between, the next run finds the batch in the endpoint's own list. A batch counts as taken only after all
its results were; until then every run takes it again, so whoever commits results must know those it has (`has_reply`).

States of a noted submission: `intended` (perhaps created), `open`, and the ends `taken`, `failed` (the endpoint refused
the file), `lost` (the results are gone) and `void` (never created).
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from openai.types import Batch

from dataset_builder.batch_client import BatchClient, NoAnswerError, NotThereError
from dataset_builder.batch_llm import BatchFile, write_batch
from dataset_builder.completion import require_endpoints
from dataset_builder.errors import InputError, RunError
from dataset_builder.journal import Journal
from dataset_builder.llm_config import LLMArguments
from dataset_builder.plan import Request
from dataset_builder.progress import duration
from dataset_builder.recorded_llm import BatchAnswer, read_batch_lines

REFUSED = (400, 413, 422)
"""HTTP statuses of a request that would be refused again."""
_ENDED = ("completed", "expired", "cancelled", "failed")


@dataclass
class _Submission:
    """What the journal notes of one batch."""

    file: str
    digest: str  # of the file's content
    model: str
    num_requests: int
    file_id: str
    token: str
    state: str = "intended"
    batch_id: str | None = None


class BatchAPI:
    """Submits requests and yields their results.

    Args:
        arguments: endpoints, sampling parameters and limits.
        journal: open for writing; notes every batch under `batch/<label>/`.
        folder: where request files and result files lie.
        label: the step, first word of the files and of the progress lines.
    """

    def __init__(self, arguments: LLMArguments, journal: Journal, folder: Path, label: str) -> None:
        self.arguments, self.journal, self.folder, self.label = arguments, journal, folder, label
        self._clients: dict[str, BatchClient] = {}
        self._progress = _BatchProgress(label)

    def submit(self, prompts: Iterable[tuple[Request, str]]) -> int:
        """Create batches of (request, prompt) pairs; return the number of requests in them.

        Raises:
            InputError: if a model or key is missing, or refused before anything was submitted.
            RunError: if the results of earlier batches are still to be taken, or a batch cannot be created.
        """
        if self._noted("intended", "open"):
            raise RunError(f"Batches of `{self.label}` are still open in the journal; take their results first.")
        with self._session():
            for endpoint in require_endpoints(self.arguments):
                self._client(endpoint.model)  # a missing key is told before the first batch is paid
            files = write_batch(self.folder, self.label, prompts, self.arguments)
            for file in files:
                self._submit(file)
        return sum(file.num_requests for file in files)

    def results(self) -> Iterator[tuple[str, BatchAnswer]]:
        """Wait for every batch of this label that the journal notes as open; yield what each brings as it ends.

        What comes is (request id, chat completion), or (request id, (HTTP status, message)) where the endpoint refused a
        request for good. Requests that expired, were cancelled or met a busy or broken server do not come: they stay
        open. Results of a batch that was not wholly taken by an earlier run come again.

        Raises:
            InputError: if a key is missing or refused before anything was submitted.
            RunError: if a batch cannot be followed to its end, or (after all others are taken) failed.
        """
        with self._session():
            for key, submission in self._noted("intended").items():
                self._adopt(key, submission)
            waiting = self._noted("open")
            self._progress.start(len(waiting))
            failed, unanswered_looks = list[str](), dict.fromkeys(waiting, 0)
            while waiting:
                for key, submission in list(waiting.items()):
                    batch = self._look(key, submission, unanswered_looks)
                    if batch is None:
                        continue
                    if batch.status in _ENDED:
                        del waiting[key]
                    self._progress.saw(batch, len(waiting))
                    if batch.status == "failed":
                        failed.append(self._failed(key, submission, batch))
                    elif batch.status in _ENDED:
                        yield from self._take(key, submission, batch)
                if waiting:
                    self._progress.show()
                    time.sleep(self.arguments.batch_poll_s)
            if failed:
                raise RunError(" ".join(failed))

    def _submit(self, file: BatchFile) -> None:
        client = self._client(file.endpoint.model)
        with file.path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()[:32]
        submission = _Submission(
            file=str(file.path),
            digest=digest,
            model=file.endpoint.model,
            num_requests=file.num_requests,
            file_id=client.upload(file.path),
            token=secrets.token_hex(16),
        )
        key = f"batch/{self.label}/{len(self._noted()):05d}"
        self._note(key, submission)
        try:
            batch = client.create(submission.file_id, submission.digest, submission.token)
        except NoAnswerError:
            raise  # it may have been created: the next run looks for it
        except (InputError, RunError):
            self._note(key, submission, state="void")
            raise
        self._note(key, submission, state="open", batch_id=batch.id)

    def _adopt(self, key: str, submission: _Submission) -> None:
        """Find out what became of a submission whose process ended before it knew."""
        batch = self._client(submission.model).find(submission.file_id, submission.token)
        if batch is None:
            self._note(key, submission, state="void")
        else:
            self._note(key, submission, state="open", batch_id=batch.id)

    def _look(self, key: str, submission: _Submission, unanswered: dict[str, int]) -> Batch | None:
        """Return the batch as it stands, or None if the endpoint could not tell; it may fail `max_retries` times in a row."""
        assert submission.batch_id is not None
        try:
            batch = self._client(submission.model).retrieve(submission.batch_id)
        except NoAnswerError:
            unanswered[key] += 1
            if unanswered[key] > self.arguments.max_retries:
                raise
            return None
        answered = batch.request_counts.completed if batch.request_counts else 0
        if batch.status == "completed" and answered and not batch.output_file_id:  # it comes a moment later
            unanswered[key] += 1
            if unanswered[key] > self.arguments.max_retries:
                raise self._lost(key, submission, "the endpoint names no result file")
            return None
        unanswered[key] = 0
        return batch

    def _take(self, key: str, submission: _Submission, batch: Batch) -> Iterator[tuple[str, BatchAnswer]]:
        client = self._client(submission.model)
        left, first, num_replies = submission.num_requests, "", 0
        for path in self._fetch(key, submission, batch):
            for custom_id, outcome in read_batch_lines(path):
                if isinstance(outcome, dict):
                    yield custom_id, outcome
                    left -= 1
                    num_replies += 1
                elif outcome[0] in REFUSED:
                    yield custom_id, (outcome[0], client.clean(outcome[1]))
                    left -= 1
                elif not first:
                    first = f", the first: {client.clean(outcome[1])}" + (f" (HTTP {outcome[0]})" if outcome[0] else "")
        told = batch.request_counts.completed if batch.request_counts else 0
        if num_replies < told:  # not to be submitted, and paid, again
            self._remove(batch)
            raise RunError(
                f"The results of the batch {batch.id} hold {num_replies:,} replies of {told:,}; run the same command again to "
                "fetch them again."
            )
        self._note(key, submission, state="taken")
        if left > 0:
            text = f"{self.label} batch {batch.id} {batch.status}, {left:,} of {submission.num_requests:,} requests stay open"
            print(text + first, file=sys.stderr, flush=True)

    def _fetch(self, key: str, submission: _Submission, batch: Batch) -> list[Path]:
        """Return the batch's result files, those of an expired or cancelled batch too; what lies there is not fetched."""
        self.folder.mkdir(parents=True, exist_ok=True)
        paths: list[Path] = []
        for kind, file_id in (("output", batch.output_file_id), ("errors", batch.error_file_id)):
            if file_id:
                paths.append(self.folder / f"{_name(batch)}-{kind}.jsonl")
                try:
                    if not paths[-1].is_file():
                        self._client(submission.model).download(file_id, paths[-1])
                except NotThereError as error:
                    raise self._lost(key, submission, str(error)) from None
        return paths

    def _remove(self, batch: Batch) -> None:
        for path in self.folder.glob(f"{_name(batch)}-*.jsonl"):
            path.unlink()

    def _failed(self, key: str, submission: _Submission, batch: Batch) -> str:
        errors = getattr(batch.errors, "data", None) or []
        told = dict.fromkeys(str(getattr(error, "message", None) or error) for error in errors)
        self._note(key, submission, state="failed")
        reason = self._client(submission.model).clean("; ".join(list(told)[:3])) or "no reason given"
        return (
            f"The endpoint refused the batch {batch.id} of {submission.num_requests:,} requests in {submission.file}: "
            f"{reason}. Nothing of it was answered; mend the cause and run the same command again to submit it anew."
        )

    def _lost(self, key: str, submission: _Submission, why: str) -> RunError:
        self._note(key, submission, state="lost")
        return RunError(
            f"The results of the batch {submission.batch_id} are gone: {why.rstrip('.')}. Its requests are open again; "
            "run the same command again to submit (and pay) them anew."
        )

    def _client(self, model: str) -> BatchClient:
        if model not in self._clients:
            endpoints = {endpoint.model: endpoint for endpoint in require_endpoints(self.arguments)}
            if model not in endpoints:
                raise InputError(
                    f"The journal notes an open batch of the model '{model}', which is not in `llm_model`; give it too (as "
                    "before, with its `base_url` and `api_key_env`) until its results are taken."
                )
            self._clients[model] = BatchClient(endpoints[model], self.arguments)
        return self._clients[model]

    def _noted(self, *states: str) -> dict[str, _Submission]:
        notes = {key: _Submission(**value) for key, value in self.journal.notes(f"batch/{self.label}/").items()}
        return {key: submission for key, submission in notes.items() if not states or submission.state in states}

    def _note(self, key: str, submission: _Submission, **changes: str) -> None:
        for name, value in changes.items():
            setattr(submission, name, value)
        self.journal.set_note(key, asdict(submission))

    @contextmanager
    def _session(self) -> Iterator[None]:
        """Close the connections at the end, and raise an `InputError` as a `RunError` once something was submitted.

        An `InputError` says that nothing was written, and lets go of a journal that was made in this run: with it would go
        the batches that it notes, and they would be paid again.
        """
        try:
            yield
        except InputError as error:
            if any(note["state"] not in ("void", "failed") for note in self.journal.notes("batch/").values()):
                raise RunError(str(error)) from None
            raise
        finally:
            for client in self._clients.values():
                client.close()
            self._clients.clear()


def _name(batch: Batch) -> str:
    return re.sub(r"[^\w-]+", "-", batch.id)


class _BatchProgress:
    """One line on stderr when something changed, at most every few seconds."""

    def __init__(self, label: str, every_s: float = 5.0) -> None:
        self.label, self.every_s = label, every_s
        self._printed = -every_s
        self.start(0)

    def start(self, num_batches: int) -> None:
        """Begin to wait for that many batches."""
        self._total = self._left = num_batches
        self._start, self._line = time.monotonic(), ""
        self._seen: dict[str, str] = {}

    def saw(self, batch: Batch, num_left: int) -> None:
        """Note how a batch stands; an end is told at once."""
        self._left, text = num_left, f"{self.label} batch {batch.id} {batch.status}"
        if counts := batch.request_counts:
            text += f" {counts.completed or 0:,}/{counts.total or 0:,} answered, {counts.failed or 0:,} failed"
        if self._seen.get(batch.id) != text:
            self._seen[batch.id] = self._line = text
            if batch.status in _ENDED:
                self._print()

    def show(self) -> None:
        """Print what changed last, unless a line was printed a moment ago."""
        if self._line and time.monotonic() - self._printed >= self.every_s:
            self._print()

    def _print(self) -> None:
        now = time.monotonic()
        batches = f"batches {self._total - self._left}/{self._total}"
        print(f"{self._line} | {batches} | waited {duration(now - self._start)}", file=sys.stderr, flush=True)
        self._printed, self._line = now, ""

"""Files and batches of one endpoint, through the `openai` client, in the words of embedsmith's errors.

What may be asked twice is retried by the client itself. Creating a batch costs money, so it is never simply repeated:
after an answer that got lost, the endpoint's list of batches tells whether the batch was made.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2  # what the `openai` client raises while it streams
import openai
from openai.types import Batch

from dataset_builder.errors import EmbedsmithError, InputError, RunError
from dataset_builder.llm_config import Endpoint, LLMArguments
from dataset_builder.recorded_llm import read_batch_lines


class NoAnswerError(RunError):
    """The endpoint gave no answer, however often it was asked; the same call may work later."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotThereError(InputError):
    """The endpoint does not know what it was asked for (HTTP 404)."""


class BatchClient:
    """Uploads, creates, looks and downloads.

    Raises:
        InputError: everywhere, if the key is missing or refused (HTTP 401, 403).
        NotThereError: everywhere, if the endpoint answers HTTP 404.
        NoAnswerError: everywhere, if there is no answer after `max_retries` further tries.
        RunError: everywhere, if the endpoint refuses for another reason; nothing was made then.
    """

    def __init__(self, endpoint: Endpoint, arguments: LLMArguments) -> None:
        from dataset_builder.endpoint_client import api_key

        self.endpoint, self.max_retries = endpoint, arguments.max_retries
        self._secret = os.environ.get(endpoint.api_key_env)  # what `clean` hides: not the stand-in for no key at all
        self._client = openai.OpenAI(
            api_key=api_key(endpoint),
            base_url=endpoint.base_url,
            timeout=arguments.timeout_s,
            max_retries=arguments.max_retries,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def upload(self, path: Path) -> str:
        """Upload a file of requests and return its id; an uploaded file costs nothing."""
        with self._plainly(f"to take {path.name}"), path.open("rb") as stream:
            file_id = getattr(self._client.files.create(file=stream, purpose="batch"), "id", None)
            if not file_id:
                raise ValueError("the answer is no file")
            return str(file_id)

    def create(self, file_id: str, digest: str, token: str) -> Batch:
        """Create the batch of an uploaded file, once: a try that got no answer is looked for before the next one.

        Args:
            file_id: the uploaded file.
            digest: SHA-256 of the file's content, to be seen in the batch's metadata.
            token: names this one submission; `find` knows the batch by it.

        Raises:
            NoAnswerError: if the batch may have been created, whatever went wrong after that.
        """
        try:
            return self._create(file_id, digest, token)
        except NoAnswerError as error:
            last = error
        try:
            for tries in range(self.max_retries):
                _wait(tries, last.retry_after_s)
                if batch := self.find(file_id, token):
                    return batch
                try:
                    return self._create(file_id, digest, token)
                except NoAnswerError as error:
                    last = error
        except EmbedsmithError as error:
            raise NoAnswerError(str(error)) from None
        raise last

    def _create(self, file_id: str, digest: str, token: str) -> Batch:
        with self._plainly("to create a batch"):
            return _batch(
                self._client.with_options(max_retries=0).batches.create(
                    input_file_id=file_id,
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                    metadata={"embedsmith": digest, "submission": token},
                )
            )

    def find(self, file_id: str, token: str) -> Batch | None:
        """Return the batch that was created for a submission, if the endpoint has it.

        Either sign is enough, the token or the file: some endpoints keep no metadata, some proxies rename files.
        """
        seen: set[str] = set()
        with self._plainly("to list its batches"):
            for batch in self._client.batches.list(limit=100):
                if _batch(batch).id in seen:  # an endpoint without paging would go on for ever
                    break
                seen.add(batch.id)
                if batch.input_file_id == file_id or (batch.metadata or {}).get("submission") == token:
                    return batch
        return None

    def retrieve(self, batch_id: str) -> Batch:
        """Return the batch as it stands now."""
        with self._plainly(f"to show the batch {batch_id}"):
            return _batch(self._client.batches.retrieve(batch_id))

    def download(self, file_id: str, path: Path) -> None:
        """Stream a result file to `path`, which is there only once it is whole and every line of it can be read."""
        part = path.with_name(f"{path.name}.part")
        for tries in range(self.max_retries + 1):
            try:
                with (
                    self._plainly(f"to hand out the result file {file_id}"),
                    self._client.files.with_streaming_response.content(file_id) as response,
                ):
                    response.stream_to_file(part)
                if (broken := _fault(part)) is None:
                    part.replace(path)
                    return
                error: RunError = RunError(f"{broken} If the endpoint has it no better, mend it and name it {path}.")
            except NoAnswerError as no_answer:
                error = no_answer
            if tries == self.max_retries:
                raise error
            _wait(tries)

    def clean(self, text: str) -> str:
        """Return what the endpoint told, without the key, as a part of a sentence."""
        return (text.replace(self._secret, "***") if self._secret else text).strip().rstrip(".")[:300]

    @contextmanager
    def _plainly(self, asked: str) -> Iterator[None]:
        """Say in one sentence what went wrong, with nothing of the request (it holds the key) in the traceback."""
        try:
            yield
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise InputError(
                f"The endpoint refused the key in {self.endpoint.api_key_env} (HTTP {error.status_code}); set a valid one."
            ) from None
        except openai.NotFoundError as error:
            raise NotThereError(
                f"The endpoint does not know the path under `base_url`, or what it was asked for, when asked {asked} (HTTP "
                f"404: {self._told(error)}); check --base_url and the key in {self.endpoint.api_key_env}."
            ) from None
        except openai.APIStatusError as error:
            told = f"(HTTP {error.status_code}: {self._told(error)})"
            if error.status_code not in (408, 409, 429) and error.status_code < 500:
                raise RunError(
                    f"The endpoint refused {asked} {told}; change the setting that it does not take."
                ) from None
            raise NoAnswerError(
                f"The endpoint is too busy or broken {asked} {told}; {_AGAIN}", _retry_after(error)
            ) from None
        except (openai.APIConnectionError, httpx2.RequestError, ValueError) as error:  # ValueError: no JSON of a batch
            told = self.clean(str(error))
            raise NoAnswerError(f"The endpoint gave no answer when asked {asked} ({told}); {_AGAIN}") from None

    def _told(self, error: openai.APIStatusError) -> str:
        told = error.body.get("message") if isinstance(error.body, dict) else None
        return self.clean(str(told or error.message))


_AGAIN = "what was submitted is noted in the journal, so run the same command again later to go on."


def _fault(path: Path) -> str | None:
    """Tell what is wrong with a result file: one that was cut off without notice has a broken last line."""
    try:
        for _ in read_batch_lines(path):
            pass
    except InputError as error:
        return str(error)
    return None


def _retry_after(error: openai.APIStatusError) -> float:
    text = error.response.headers.get("retry-after", "")
    return min(float(text), 600.0) if text.replace(".", "", 1).isdigit() else 0.0


def _wait(tries: int, retry_after_s: float = 0.0) -> None:
    """Wait before the next try: as long as the endpoint says, else doubling from about 0.5 s up to 60, with jitter."""
    time.sleep(retry_after_s or min(60.0, 0.5 * 2.0**tries) * random.uniform(0.7, 1.3))


def _batch(answer: object) -> Batch:
    """Return the answer if it is a batch: the client lets anything through, an HTML page of a proxy too."""
    if not isinstance(answer, Batch) or not answer.id:
        raise ValueError("the answer is no batch")
    return answer

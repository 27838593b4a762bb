"""The Batch API: every request answered in the end, nothing paid twice, whenever the process dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dataset_builder import batch_llm
from dataset_builder.batch_api import BatchAPI
from dataset_builder.errors import RunError
from dataset_builder.journal import Journal
from tests.batch_runs import (
    EXPECTED,
    KEY,
    PLAN,
    REQUESTS,
    notes,
    opened,
    paid_once,
    reply,
    run,
    server,
    settings,
    small_batches,
    states,
    texts,
)
from tests.batch_server import BatchServer

__all__ = ["server", "small_batches"]


def test_every_request_is_answered_once(
    server: BatchServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, settings(server)) == 20
    assert texts(tmp_path) == EXPECTED
    assert states(tmp_path) == ["taken", "taken"]
    assert paid_once(server)
    asked = len(server.log)
    assert run(tmp_path, settings(server)) == 0
    assert len(server.log) == asked, "a batch that was taken was looked at again"
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 5  # the first look, and both ends; more only on a machine that stalls
    assert re.fullmatch(
        r"generate batch batch_\w+ completed 8/8 answered, 0 failed \| batches 2/2 \| waited \d+ s", lines[-1]
    )


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_only_what_is_missing_is_submitted_again(
    status: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BatchServer(reply, key=KEY, ends={0: (status, 0.5), 1: (status, 0.0)}) as server:
        assert run(tmp_path, settings(server)) == 20
        assert texts(tmp_path) == EXPECTED
        assert set(server.answered.values()) == {1}
        assert [batch["request_counts"]["total"] for batch in server.batches.values()] == [12, 8, 12, 2]
    err = capsys.readouterr().err
    assert f"{status}, 6 of 12 requests stay open, the first: This request could not be executed: the batch was" in err
    assert f"{status}, 8 of 8 requests stay open" in err


def test_the_same_file_may_be_submitted_again(tmp_path: Path) -> None:
    """A batch that answered nothing is followed by one with the very same content, which is another batch."""
    with BatchServer(reply, key=KEY, ends={0: ("expired", 0.0), 1: ("expired", 0.0)}) as server:
        server.fail("POST /v1/batches", "lost", times=2)
        assert run(tmp_path, settings(server)) == 20
        assert texts(tmp_path) == EXPECTED
        assert sorted(server.created.values()) == [2, 2]


def test_refused_requests_and_broken_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused, rude = {REQUESTS[3].id, REQUESTS[15].id}, {"500": 0.5}
    with BatchServer(reply, key=KEY, refuse=lambda request_id: request_id in refused, rude=rude) as server:
        assert run(tmp_path, settings(server)) == 20
        assert texts(tmp_path) == {id_: text for id_, text in EXPECTED.items() if id_ not in refused}
        assert server.kinds["500"] > 3
        assert set(server.answered.values()) == {1}
    with Journal(tmp_path / "journal.sqlite", PLAN.identity(), write=False) as journal:
        assert journal.failure() == (400, "This prompt was flagged")
        assert journal.tally("generate", {"sts": len(REQUESTS)}).refused == len(refused)
    assert "stay open, the first: The server had an error (HTTP 500)" in capsys.readouterr().err


class Killed(BaseException):
    """The process dies."""


def dying_journal(at: int, *, before: bool) -> type[Journal]:
    """Return a journal whose process dies at its n-th commit of a note, a reply or a failure."""
    left = at

    class Dying(Journal):
        def set_note(self, key: str, value: Any) -> None:
            self.die(before)
            super().set_note(key, value)
            self.die(not before)

        def add_outcomes(self, *args: Any, **more: Any) -> None:
            self.die(before)
            super().add_outcomes(*args, **more)
            self.die(not before)

        def die(self, here: bool) -> None:
            nonlocal left
            left -= here
            if here and left < 0:
                raise Killed

    return Dying


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_dying_at_any_commit_pays_nothing_twice(before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_llm, "MAX_REQUESTS", 16)
    for at in (0, 1, 2, 3, 4, 9, 19, 20, 21, 25):  # notes: 0 to 3 and two of the last; between them replies
        folder = tmp_path / str(at)
        with BatchServer(reply, key=KEY, num_looks=1) as server:
            with pytest.raises(Killed):
                run(folder, settings(server), dying_journal(at, before=before))
            run(folder, settings(server))
            assert texts(folder) == EXPECTED
            assert paid_once(server), at


SCRIPT = """
import sys
from pathlib import Path
from dataset_builder.llm_config import LLMArguments
from tests.batch_runs import run
run(Path(sys.argv[1]), LLMArguments(llm="live", llm_model=["tiny-llm"], base_url=[sys.argv[2]], batch_poll_s=0.01))
"""


def test_kill_9_pays_nothing_twice(server: BatchServer, tmp_path: Path) -> None:
    """The server kills the process that asks, at the moments that matter, once each; all 20 requests are one batch."""
    moments = [
        ("POST /v1/batches", "before"),
        ("POST /v1/batches", "after"),
        (r"GET /v1/batches/.*", "after"),
        (r"GET /v1/files/.*", "before"),
    ]
    process: subprocess.Popen[bytes] | None = None

    def kill(what: str, when: str) -> None:
        if process and moments and re.fullmatch(moments[0][0], what) and when == moments[0][1]:
            moments.pop(0)
            os.kill(process.pid, signal.SIGKILL)
            if when == "before":
                raise ConnectionAbortedError  # as if it had died before it asked

    server.hook = kill
    while moments:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path), server.base_url], stderr=subprocess.DEVNULL
        )
        assert process.wait(60) == -signal.SIGKILL
    server.hook = lambda what, when: None
    assert run(tmp_path, settings(server)) == 20
    assert texts(tmp_path) == EXPECTED
    assert paid_once(server)
    assert len(server.batches) == 1
    assert states(tmp_path) == ["void", "taken"]


def test_results_that_were_not_wholly_taken_come_again(server: BatchServer, tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        api = BatchAPI(settings(server), journal, tmp_path / "batches", "generate")
        assert api.submit((request, "p") for request in REQUESTS[:5]) == 5
        with pytest.raises(RunError, match="take their results first"):
            api.submit([(REQUESTS[6], "p")])
        first = next(api.results())
        again = list(api.results())
        assert first == again[0]
        assert len(again) == 5
        assert sum("content" in what for what, _ in server.log) == 1, "a whole file was fetched again"
        assert list(api.results()) == []
        assert api.submit([]) == 0


def test_a_batch_that_failed_is_told_after_the_others_were_taken(tmp_path: Path) -> None:
    with BatchServer(reply, key=KEY, ends={0: ("failed", 0.0)}) as server:
        with pytest.raises(RunError, match=r"12 requests in .*: Enqueued token limit reached for tiny-llm\. Nothing"):
            run(tmp_path, settings(server))
        assert len(texts(tmp_path)) == 8
        assert states(tmp_path) == ["failed", "taken"]
        assert run(tmp_path, settings(server)) == 12
        assert texts(tmp_path) == EXPECTED


def test_several_endpoints_each_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", "sk-another-secret")
    with (
        BatchServer(reply, key=KEY, model="one", ends={0: ("expired", 0.5)}) as one,
        BatchServer(reply, key="sk-another-secret", model="two/2") as two,
    ):
        arguments = settings(one, two, api_key_env=["OPENAI_API_KEY", "OTHER_KEY"])
        assert run(tmp_path, arguments) == 20
        assert texts(tmp_path) == EXPECTED
        assert len(one.answered) + len(two.answered) == 20
        assert min(len(one.answered), len(two.answered)) > 4
        assert {note["model"] for note in notes(tmp_path)} == {"one", "two/2"}


def test_a_model_with_an_open_batch_must_be_given(server: BatchServer, tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        BatchAPI(settings(server), journal, tmp_path, "generate").submit([(REQUESTS[0], "p")])
        other = settings(server)
        other.llm_model = ["gpt-9"]
        with pytest.raises(RunError, match="open batch of the model 'tiny-llm', which is not in `llm_model`"):
            list(BatchAPI(other, journal, tmp_path, "generate").results())

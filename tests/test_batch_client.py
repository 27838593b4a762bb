"""The far end of the Batch API breaks: what passes is tried again, what stays is told, and no batch is made twice."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from dataset_builder.errors import InputError, RunError
from tests.batch_runs import (
    EXPECTED,
    KEY,
    notes,
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


def test_whatever_breaks_on_the_way_is_tried_again(server: BatchServer, tmp_path: Path) -> None:
    server.fail("POST /v1/files", "429")
    server.fail("POST /v1/files", "lost")
    server.fail("POST /v1/batches", "500")
    server.fail("POST /v1/batches", "html")  # created, and a proxy's page instead of the answer
    server.fail("GET /v1/batches", "429")
    for kind in ("cut", "429", "500"):
        server.fail("GET /v1/batches/.*", kind)
        server.fail("GET /v1/files/.*", kind)
    server.fail("GET /v1/files/.*", "short")
    assert run(tmp_path, settings(server)) == 20
    assert texts(tmp_path) == EXPECTED
    assert paid_once(server)
    assert not list((tmp_path / "batches").glob("*.part"))


@pytest.mark.parametrize("metadata", [True, False])
def test_a_lost_answer_makes_no_second_batch(metadata: bool, tmp_path: Path) -> None:
    with BatchServer(reply, key=KEY, metadata=metadata) as server:
        for _ in range(4):  # batches of somebody else: the list has several pages
            server.create({"endpoint": "", "input_file_id": "file-other", "completion_window": "24h"}, "other")
        server.fail("POST /v1/batches", "lost")
        assert run(tmp_path, settings(server)) == 20
        assert texts(tmp_path) == EXPECTED
        assert len(server.batches) == 6


def test_an_endpoint_that_lists_nothing_gets_no_second_batch(server: BatchServer, tmp_path: Path) -> None:
    server.fail("POST /v1/batches", "lost")
    server.fail("GET /v1/batches", "404", times=2)
    for _ in range(2):
        with pytest.raises(RunError, match=r"when asked to list its batches .* check --base_url"):
            run(tmp_path, settings(server))
        assert states(tmp_path) == ["intended"]
    assert run(tmp_path, settings(server)) == 20  # the list works again
    assert paid_once(server)


def test_results_that_are_gone_are_told_before_they_are_paid_anew(server: BatchServer, tmp_path: Path) -> None:
    server.fail("GET /v1/files/.*", "404")
    with pytest.raises(RunError, match=r"results of the batch batch_\w+ are gone: .* submit \(and pay\) them anew"):
        run(tmp_path, settings(server))
    assert run(tmp_path, settings(server)) == 20
    assert texts(tmp_path) == EXPECTED
    assert sorted(states(tmp_path)) == ["lost", "taken", "taken"]


@pytest.mark.parametrize(
    ("match", "kind", "error", "message", "state"),
    [
        ("POST /v1/files", "401", InputError, r"refused the key in OPENAI_API_KEY \(HTTP 401\); set a valid one", None),
        ("POST /v1/files", "404", InputError, r"does not know the path under `base_url`.*check --base_url", None),
        ("POST /v1/batches", "403", InputError, r"refused the key in OPENAI_API_KEY \(HTTP 403\)", None),
        ("POST /v1/batches", "400", RunError, r"refused to create a batch \(HTTP 400: Fault 400, .*\*\*\*\)", "void"),
        ("POST /v1/batches", "429", RunError, r"too busy or broken to create a batch \(HTTP 429", "intended"),
        ("GET /v1/batches/.*", "401", RunError, r"refused the key in OPENAI_API_KEY \(HTTP 401\)", "open"),
        ("GET /v1/batches/.*", "404", RunError, r"when asked to show the batch batch_\w+ \(HTTP 404", "open"),
        ("GET /v1/batches/.*", "drop", RunError, r"gave no answer when asked to show the batch", "open"),
        ("GET /v1/files/.*", "500", RunError, r"too busy or broken to hand out the result file", "open"),
        ("GET /v1/files/.*", "short", RunError, r"is no line of a batch output file.*mend it and name it", "open"),
        ("GET /v1/files/.*", "lines", RunError, r"hold [0-9]+ replies of [0-9]+; run the same command again", "open"),
    ],
)
def test_what_stays_broken_is_told_and_forgets_no_batch(
    server: BatchServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    match: str,
    kind: str,
    error: type[Exception],
    message: str,
    state: str | None,
) -> None:
    caplog.set_level(logging.DEBUG)
    server.fail(match, kind, times=1000)
    with pytest.raises(error, match=message) as raised:
        run(tmp_path, settings(server, max_retries=1))
    assert KEY not in str(raised.getrepr(style="long", showlocals=False))
    assert KEY not in caplog.text
    assert (tmp_path / "journal.sqlite").is_file() == (
        state is not None
    )  # of a first run that is bad input nothing is left
    if state is not None:
        assert states(tmp_path)[0] == state
        assert KEY not in json.dumps(notes(tmp_path))
        assert KEY.encode() not in (tmp_path / "journal.sqlite").read_bytes()
    server._faults.clear()
    run(tmp_path, settings(server))
    assert texts(tmp_path) == EXPECTED
    assert paid_once(server)


def test_a_missing_key_is_told_before_anything_is_written(
    server: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = settings(server)
    arguments.base_url, arguments.api_key_env = [], ["NO_SUCH_KEY"]
    with pytest.raises(InputError, match="NO_SUCH_KEY is not set"):
        run(tmp_path, arguments)
    assert not list(tmp_path.rglob("*.jsonl"))
    assert not (tmp_path / "journal.sqlite").is_file()

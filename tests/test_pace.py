"""The pace of an endpoint: how its window widens and narrows, and what of its headers is understood."""

from __future__ import annotations

import email.utils
import time

import pytest

from dataset_builder.pace import FIRST_WINDOW, LONGEST_WAIT_S, Pace, backoff_s, exhausted_s, retry_after_s

REQUESTS_LEFT, REQUESTS_RESET = "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"
TOKENS_LEFT, TOKENS_RESET = "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"


def round_trip(pace: Pace) -> int:
    """Let as many requests succeed as the window holds; return the window after that."""
    for _ in range(int(pace.window)):
        pace.success({})
    return int(pace.window)


@pytest.mark.parametrize(("max_concurrency", "first"), [(1, 1), (3, 3), (64, 64), (1000, FIRST_WINDOW)])
def test_the_first_window(max_concurrency: int, first: int) -> None:
    assert Pace(max_concurrency).window == first


def test_the_window_doubles_each_round_trip_until_the_first_push_back() -> None:
    pace = Pace(300)
    assert [round_trip(pace) for _ in range(4)] == [128, 256, 300, 300]


def test_a_burst_of_pushes_back_halves_the_window_once() -> None:
    pace = Pace(64)
    sent_at = time.monotonic()
    for _ in range(64):
        pace.push_back(sent_at)
    assert pace.window == 32
    time.sleep(0.01)
    for _ in range(3):  # all that was sent before the window was halved
        pace.push_back(sent_at)
    assert pace.window == 32
    for n in range(1, 10):  # each sent after the one before was pushed back
        time.sleep(0.002)
        pace.push_back(time.monotonic())
        assert pace.window == max(1, 32 / 2**n)


def test_after_a_push_back_the_window_grows_by_about_one_a_round_trip() -> None:
    pace = Pace(64)
    pace.push_back(time.monotonic())
    windows = [round_trip(pace) for _ in range(10)]
    assert windows[0] in (32, 33)
    assert windows[-1] in (41, 42)
    for _ in range(100):
        assert round_trip(pace) <= 64
    assert pace.window == 64


def test_without_a_word_from_the_endpoint_the_wait_doubles() -> None:
    pace, waits = Pace(8), []
    for _ in range(5):
        time.sleep(0.002)
        pace.push_back(time.monotonic(), {})
        waits.append(pace.resume_at - time.monotonic())
    for tries, wait_s in enumerate(waits):
        assert 0.65 * 0.5 * 2**tries <= wait_s <= 1.35 * 0.5 * 2**tries
    pace.success({})
    pace.resume_at = 0.0
    pace.push_back(time.monotonic(), {})
    assert pace.resume_at - time.monotonic() < 0.7  # a success forgets the tries
    assert 0.7 * 60 <= backoff_s(50) <= 1.3 * 60


def test_all_wait_as_long_as_the_endpoint_says_and_never_shorter() -> None:
    pace = Pace(8)
    assert pace.wait_s() == 0
    pace.push_back(time.monotonic(), {"retry-after": "2"})
    pace.push_back(time.monotonic(), {"retry-after": "0.5"})
    assert 1.8 < pace.resume_at - time.monotonic() <= 2
    waits = [pace.wait_s() for _ in range(100)]
    assert 1.7 < min(waits) < max(waits) <= 2.1
    assert len(set(waits)) > 1  # not all come back at the same instant
    pace.push_back(time.monotonic(), {"retry-after": "99999"})
    assert pace.wait_s() <= LONGEST_WAIT_S * 1.05


def test_a_timeout_narrows_the_window_without_a_wait() -> None:
    pace = Pace(8)
    pace.push_back(time.monotonic())
    assert (pace.window, pace.wait_s()) == (4, 0)


def test_an_answer_that_was_the_last_for_now_makes_all_wait() -> None:
    pace = Pace(8)
    pace.success({REQUESTS_LEFT: "0", REQUESTS_RESET: "20ms"})
    assert 0 < pace.resume_at - time.monotonic() <= 0.02
    time.sleep(0.025)
    assert pace.wait_s() == 0
    pace.push_back(time.monotonic(), {REQUESTS_LEFT: "0", REQUESTS_RESET: "7s"})
    assert 6.5 < pace.resume_at - time.monotonic() <= 7


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "40.5", "retry-after": "1"}, 0.0405),
        ({"retry-after-ms": "soon", "retry-after": "1"}, 1.0),
    ],
)
def test_retry_after_in_seconds_and_milliseconds(headers: dict[str, str], wait_s: float) -> None:
    assert retry_after_s(headers) == pytest.approx(wait_s)


@pytest.mark.parametrize(("ahead_s", "least", "most"), [(90, 88, 90), (-90, 0, 0)])
def test_retry_after_as_a_date(ahead_s: float, least: float, most: float) -> None:
    date = email.utils.formatdate(time.time() + ahead_s, usegmt=True)
    wait_s = retry_after_s({"retry-after": date})
    assert wait_s is not None
    assert least <= wait_s <= most


@pytest.mark.parametrize(
    ("reset", "wait_s"),
    [
        ("1s", 1.0),
        ("20ms", 0.02),
        ("6m0s", 360.0),
        ("1h2m3.5s", 3723.5),
        ("1d", 86400.0),
        ("0.5", 0.5),
        ("12", 12.0),
        ("0s", None),
        ("0", None),
    ],
)
def test_when_an_exhausted_rate_limit_is_full_again(reset: str, wait_s: float | None) -> None:
    for left, reset_name in ((REQUESTS_LEFT, REQUESTS_RESET), (TOKENS_LEFT, TOKENS_RESET)):
        assert exhausted_s({left: "0", reset_name: reset}) == wait_s
        assert exhausted_s({left: " 0 ", reset_name: reset}) == wait_s
        assert exhausted_s({left: "1", reset_name: reset}) is None


def test_the_later_of_two_exhausted_limits_counts() -> None:
    headers = {REQUESTS_LEFT: "0", REQUESTS_RESET: "1s", TOKENS_LEFT: "0", TOKENS_RESET: "2s"}
    assert exhausted_s(headers) == 2.0
    assert exhausted_s(headers | {TOKENS_LEFT: "17"}) == 1.0


GARBAGE = ["", " ", "soon", "-5", "1e3", "nan", "inf", "1,5", "0x10", "12 s", "ms", "1.2.3", "\u0663\u0663", "9" * 400]
GARBAGE += ["Fri, 99 Foo 2026 99:99:99 GMT", "Fri, 31 Dec 99999999999999999999 23:59:59 GMT", "1 Jan 1 0:0:0 +9999999"]
GARBAGE += ["Mon, 01 Jan 0001 00:00:00 -0000", "Mon, 01 Jan 0001 00:00:00 +2359", "2026-01-01T00:00:00Z", "\x00", "{}"]


@pytest.mark.parametrize("text", GARBAGE, ids=lambda text: ascii(text)[:40])
def test_headers_that_make_no_sense_do_no_harm(text: str) -> None:
    for headers in (
        {"retry-after": text},
        {"retry-after-ms": text},
        {REQUESTS_LEFT: text, REQUESTS_RESET: text},
        {REQUESTS_LEFT: "0", REQUESTS_RESET: text},
        {TOKENS_LEFT: "0", TOKENS_RESET: text},
    ):
        pace = Pace(8)
        pace.success(headers)
        assert 0 <= pace.wait_s() <= LONGEST_WAIT_S * 1.05
        pace.push_back(time.monotonic(), headers)
        assert 0 < pace.wait_s() <= LONGEST_WAIT_S * 1.05

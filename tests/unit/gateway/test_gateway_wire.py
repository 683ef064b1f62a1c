"""Server-sent events, retries and error translation: the small pure parts of the HTTP upstream."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.gateway import RetryPolicy
from agentlightning.gateway.upstream.replies import error_of
from agentlightning.gateway.upstream.retry import retry_after_s
from agentlightning.gateway.upstream.sse import EventTooLargeError, SseReader, event_data

EVENTS = [b"data: 1\n\n", b": ping\r\n\r\n", b"event: x\ndata: a\ndata: b\n\n", b"data:\xc3\xa9\n\n"]


@given(st.lists(st.sampled_from(EVENTS)), st.lists(st.integers(1, 9)))
def test_events_are_found_however_the_bytes_are_cut(events: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(events)
    reader = SseReader()
    found: list[bytes] = []
    for cut in cuts:
        found += reader.feed(wire[:cut])
        wire = wire[cut:]
    found += reader.feed(wire)
    assert found == events
    assert reader.rest == b""


def test_the_data_of_an_event() -> None:
    assert [event_data(event) for event in EVENTS] == [b"1", b"", b"a\nb", "é".encode()]


def test_an_event_that_never_ends_is_refused() -> None:
    reader = SseReader(max_event_bytes=10)
    with pytest.raises(EventTooLargeError):
        reader.feed(b"data: " + b"x" * 20)


def test_backoff_grows_with_jitter_and_ends() -> None:
    policy = RetryPolicy(max_attempts=4, base_s=1.0, max_s=3.0)
    for attempt, longest in ((1, 1.0), (2, 2.0), (3, 3.0)):
        delay_s = policy.delay_s(attempt, status=500, headers={})
        assert delay_s is not None
        assert 0 <= delay_s <= longest
    assert policy.delay_s(4, status=500, headers={}) is None
    assert policy.delay_s(1, status=None, headers={}) is not None


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_refusals_are_final(status: int) -> None:
    assert RetryPolicy().delay_s(1, status=status, headers={}) is None


def test_retry_after_is_honoured_up_to_a_limit() -> None:
    policy = RetryPolicy(max_retry_after_s=5)
    assert policy.delay_s(1, status=429, headers={"Retry-After": "2.5"}) == 2.5
    assert policy.delay_s(1, status=429, headers={"Retry-After": "6"}) is None


def test_retry_after_may_be_a_date_or_nonsense() -> None:
    in_ten_s = retry_after_s({"Retry-After": formatdate(time.time() + 10, usegmt=True)})
    assert in_ten_s is not None
    assert 8 <= in_ten_s <= 10
    assert retry_after_s({"Retry-After": "soon"}) is None
    assert retry_after_s({"Retry-After": formatdate(0, usegmt=True)}) == 0
    assert retry_after_s({}) is None


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"error": {"message": "m", "type": "t", "param": "p", "code": "c"}}', "m"),
        (b'{"error": "only text"}', "only text"),
        (b'{"message": "flat"}', "flat"),
        (b"plain", "plain"),
        (b"[1]", "[1]"),
        (b"", "HTTP 400"),
    ],
)
def test_the_servers_words_are_kept(raw: bytes, message: str) -> None:
    error = error_of("http://x", 400, raw)
    assert (error.message, error.status) == (message, 400)
    if message == "m":
        assert error.as_openai() == {"error": {"message": "m", "type": "t", "param": "p", "code": "c"}}

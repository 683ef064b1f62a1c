"""Model servers that hang, break, lie and dawdle: what agents are told, what is recorded, and that it is over soon.

Each case for OpenAI's and Anthropic's API, streamed and not, over real sockets with the official clients.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any

import anthropic
import httpx
import openai
import pytest

from agentlightning.gateway import AnthropicUpstream, CallLimits, OpenAIUpstream, RetryPolicy
from agentlightning.gateway.spans import ERROR_REASON, ERROR_STATUS
from agentlightning.schemas import Span, semconv
from tests.unit.gateway.hostile import (
    SSE_HEAD,
    Act,
    HostileServer,
    begun,
    chunked,
    dripping,
    saying,
    then_close,
    then_reset,
    then_silence,
    whole,
)
from tests.unit.gateway.rig import USER, Rig, running_rig
from tests.unit.gateway.scripted import completion
from tests.unit.gateway.scripted_anthropic import MESSAGE

pytestmark = [pytest.mark.parametrize("api", ["openai", "anthropic"])]

ONCE = RetryPolicy(max_attempts=1)
SOON_S = 100.0  # generous: what has no end of its own would take for ever


def upstream(api: str, url: str, **options: Any) -> Any:
    options = {"retry": ONCE, "idle_timeout_s": 0.3, **options}
    if api == "anthropic":
        return AnthropicUpstream(url, "sk-the-gateways-own", **options)
    return OpenAIUpstream(f"{url}/v1", "sk-the-gateways-own", capture="none", **options)


@asynccontextmanager
async def facing(
    api: str, *acts: Act, limits: CallLimits | None = None, **options: Any
) -> AsyncGenerator[tuple[Rig, HostileServer]]:
    async with (
        HostileServer(*acts) as server,
        running_rig({"m": upstream(api, server.url, **options)}, limits=limits) as rig,
    ):
        yield rig, server


async def ask(rig: Rig, api: str, rollout: Any, stream: bool) -> str:
    """The text of an answer, read to its end."""
    if api == "anthropic":
        base_url = rig.base_url(rollout).removesuffix("/v1")
        async with anthropic.AsyncAnthropic(base_url=base_url, api_key="x", max_retries=0) as client:
            request: Any = {"model": "m", "max_tokens": 9, "messages": USER}
            if not stream:
                return str((await client.messages.create(**request)).content)
            text = ""
            async with client.messages.stream(**request) as events:
                async for part in events.text_stream:
                    text += part
            return text
    async with rig.client(rollout) as client:
        answer = await client.chat.completions.create(model="m", messages=USER, stream=stream)
        if not stream:
            return answer.choices[0].message.content
        return "".join([chunk.choices[0].delta.content or "" async for chunk in answer if chunk.choices])


async def fails(rig: Rig, api: str, stream: bool) -> tuple[Any, Span]:
    """The client's exception and the span of a call that has to fail, soon."""
    rollout = await rig.rollout()
    expected = anthropic.APIError if api == "anthropic" else openai.APIError
    async with asyncio.timeout(SOON_S):
        with pytest.raises(expected) as caught:
            await ask(rig, api, rollout, stream)
    [span] = await rig.spans(rollout)
    assert span.status.status_code == "ERROR"
    assert span.attributes[semconv.NOT_TRAINABLE_BECAUSE] == "the call failed"
    stats = rig.gateway.stats()
    assert (stats["in_flight"], stats["waiting"]) == (0, 0)
    return caught.value, span


def good(api: str) -> bytes:
    import orjson

    return whole(orjson.dumps(MESSAGE if api == "anthropic" else completion({"messages": 1})))


STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@STREAMED
@pytest.mark.parametrize(
    ("act", "status", "message"),
    [
        (then_silence(), 504, "silent for 0.3 s"),
        (then_silence(b"HTTP/1.1 200 OK\r\ncontent-type: appli"), 504, "silent for 0.3 s"),
        (then_close(), 502, "the connection broke"),
        (then_reset(), 502, "the connection broke"),
        (then_close(b"\x00\x01\x02 this is no HTTP\r\n\r\n"), 502, "the connection broke"),
        (saying(whole(b"<html>It works!</html>", headers="content-type: text/html\r\n")), 502, "no usable answer"),
        (saying(whole(b"\xff\xfe{]")), 502, "no usable answer"),
        (saying(whole(b"null")), 502, "no usable answer"),
        (saying(whole(b"")), 502, "no usable answer"),
        (saying(whole(b'{"choices": null, "content": "no"}')), 502, "no usable answer"),
        (saying(whole(b"{}", "418 I'm a teapot")), 418, "Error code: 418"),
        (saying(whole(b"{}", "204 No Content")), 502, "no usable answer"),
        (saying(whole(b"", "304 Not Modified")), 502, "redirects"),
        (saying(whole(b"try later", "503 Service Unavailable")), 503, "try later"),
        (saying(whole(b'{"error": {"message": "boom"}}', "500 Internal Server Error")), 502, "boom"),
        (then_reset(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"), 502, "the connection broke"),
        (then_close(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"), 502, "the connection broke"),
        (then_silence(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"), 504, "silent for 0.3 s"),
        (saying(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000 + b"\r\n"), 502, "the connection broke"),
    ],
    ids=lambda value: "" if isinstance(value, str | int) else None,
)
async def test_an_unusable_answer_is_the_clients_own_error_and_recorded(
    api: str, stream: bool, act: Act, status: int, message: str
) -> None:
    async with facing(api, act, saying(b"")) as (rig, _):
        error, span = await fails(rig, api, stream)
    assert message in str(error)
    assert error.status_code == status
    assert span.attributes[ERROR_STATUS] == status
    assert "sk-the-gateways-own" not in str(error) + span.model_dump_json()


@STREAMED
async def test_after_a_fault_the_next_call_is_answered(api: str, stream: bool) -> None:
    async with facing(api, then_reset(), then_silence(), saying(good(api))) as (rig, _):
        await fails(rig, api, stream)
        await fails(rig, api, stream)
        assert "hello" in await ask(rig, api, None, stream=False)


@pytest.mark.parametrize(
    ("ending", "reason", "message"),
    [
        (then_silence, "timeout", "silent for 0.3 s"),
        (then_reset, "upstream_failed", "the connection broke"),
        (then_close, "upstream_failed", "the connection broke"),
        (lambda *parts: saying(*parts, b"0\r\n\r\n"), "upstream_failed", "ended before the answer did"),
        (lambda *parts: saying(*parts, chunked(b"data: {]\n\n")), "upstream_failed", "no JSON object"),
        (lambda *parts: saying(*parts, chunked(b"data: \xff\xfe\n\n")), "upstream_failed", "no JSON object"),
        (
            lambda *parts: then_reset(*parts, chunked(b'data: {"id": "half of an ev')),
            "upstream_failed",
            "connection broke",
        ),
    ],
    ids=["silence", "reset", "closed", "ended", "invalid", "binary", "half"],
)
async def test_a_stream_that_breaks_is_an_error_event_and_what_came_is_kept(
    api: str, ending: Callable[..., Act], reason: str, message: str
) -> None:
    async with facing(api, ending(*begun(api))) as (rig, server):
        error, span = await fails(rig, api, stream=True)
        assert len(server.requests) == 1  # never again once the client has got something
        raw = await read_raw(rig, api)
    assert message in str(error)
    assert span.attributes[ERROR_REASON] == reason
    assert '"hello there"' in span.attributes[semconv.CALL_OUTPUT_MESSAGES]
    assert b"hello" in raw
    last = raw.strip().split(b"\n\n")[-1]
    assert last.startswith(b"event: error\ndata: " if api == "anthropic" else b'data: {"error":')


async def read_raw(rig: Rig, api: str) -> bytes:
    """A streamed answer as it stands on the wire; it ends in an orderly way, or httpx would raise."""
    path, body = {
        "openai": ("/v1/chat/completions", {"model": "m", "stream": True, "messages": USER}),
        "anthropic": ("/v1/messages", {"model": "m", "stream": True, "max_tokens": 9, "messages": USER}),
    }[api]
    async with httpx.AsyncClient(base_url=rig.gateway.url, timeout=SOON_S) as client:
        answer = await client.post(path, json=body)
        assert answer.status_code == 200
        return answer.content


@STREAMED
async def test_a_server_that_dawdles_is_given_up_when_the_time_of_the_call_is_over(api: str, stream: bool) -> None:
    drip = (
        dripping(chunked(b": still there\n\n"), first=SSE_HEAD)
        if stream
        else dripping(b"x: y\r\n", first=b"HTTP/1.1 200 OK\r\n")
    )
    async with facing(api, drip, limits=CallLimits(call_timeout_s=0.6), idle_timeout_s=30) as (rig, server):
        error, _ = await fails(rig, api, stream)
        assert "within 0.6 s" in str(error)
        async with asyncio.timeout(SOON_S):
            await server.gone.wait()


async def test_an_event_that_never_ends_does_not_fill_the_memory(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentlightning.gateway.upstream.sse.SseReader.__init__.__defaults__", (1 << 20,))
    flood = dripping(chunked(b"x" * 200_000), pause_s=0, first=SSE_HEAD + chunked(b"data: "))
    async with facing(api, flood) as (rig, _):
        error, _ = await fails(rig, api, stream=True)
    assert "an event exceeds 1048576 bytes" in str(error)


async def test_an_answer_that_never_ends_does_not_fill_the_memory(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flood = dripping(chunked(b"x" * 200_000), pause_s=0, first=b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    async with facing(api, flood) as (rig, _):
        server: Any = rig.gateway.routes.upstreams[0]
        server._server._max_answer_bytes = 1 << 20
        error, _ = await fails(rig, api, stream=False)
    assert "it exceeds 1048576 bytes" in str(error)


@STREAMED
@pytest.mark.parametrize("date", [False, True], ids=["seconds", "date"])
async def test_a_rate_limit_is_waited_for_and_then_answered(api: str, stream: bool, date: bool) -> None:
    after = formatdate(time.time() + 2, usegmt=True) if date else "0.2"
    limited = whole(b'{"error": {"message": "slow down"}}', "429 Too Many Requests", f"retry-after: {after}\r\n")
    ended = [*begun(api), b"0\r\n\r\n"]
    async with facing(api, saying(limited), saying(*ended) if stream else saying(good(api)), retry=None) as (
        rig,
        server,
    ):
        began = time.monotonic()
        if stream:
            await fails(rig, api, stream)  # the answer after the wait is cut short: it is not asked for a third time
        else:
            assert "hello" in await ask(rig, api, None, stream)
        assert time.monotonic() - began >= (0.9 if date else 0.2)
    assert len(server.requests) == 2


@STREAMED
async def test_a_rate_limit_beyond_the_time_of_the_call_is_told_at_once(api: str, stream: bool) -> None:
    limited = whole(b'{"error": {"message": "slow down"}}', "429 Too Many Requests", "retry-after: 20\r\n")
    async with facing(api, saying(limited), retry=None, limits=CallLimits(call_timeout_s=10)) as (rig, server):
        error, _ = await fails(rig, api, stream)
    assert error.status_code == 429
    assert error.response.headers["retry-after"] == "20"
    assert len(server.requests) == 1


@STREAMED
async def test_a_client_that_leaves_frees_the_server_and_what_came_is_kept(api: str, stream: bool) -> None:
    parts = begun(api) if stream else []
    async with facing(api, then_silence(*parts), idle_timeout_s=30) as (rig, server):
        rollout = await rig.rollout()
        asking = asyncio.create_task(ask(rig, api, rollout, stream))
        async with asyncio.timeout(SOON_S):
            await server.asked.wait()
            await asyncio.sleep(0.2)
            asking.cancel()
            await server.gone.wait()
            await rig.gateway.drain()
        span = await the_span(rig, rollout)
    assert span.attributes[ERROR_REASON] == "client_disconnected"
    if stream:
        assert '"hello there"' in span.attributes[semconv.CALL_OUTPUT_MESSAGES]


async def the_span(rig: Rig, rollout: Any) -> Span:
    """The only span; nobody waits for the record of a call whose client has left."""
    for _ in range(500):
        spans = await rig.spans(rollout)
        if spans:
            [span] = spans
            return span
        await asyncio.sleep(0.01)
    raise TimeoutError("there is no record")


async def test_a_key_that_the_server_repeats_goes_no_further(api: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    refusal = whole(b'{"error": {"message": "bad request of sk-the-gateways-own"}}', "400 Bad Request")
    event = b'data: {"type": "error", "error": {"type": "overloaded_error", "message": "sk-the-gateways-own"}}\n\n'
    async with facing(api, saying(refusal), saying(*begun(api), chunked(event))) as (rig, _):
        seen = ""
        for stream in (False, True):
            error, span = await fails(rig, api, stream)
            seen += str(error) + span.model_dump_json()
        async with httpx.AsyncClient() as client:
            seen += (await client.get(f"{rig.gateway.url}/health")).text
    assert "sk-the-gateways-own" not in seen + caplog.text
    assert "[key]" in seen


@STREAMED
async def test_an_unknown_model_is_told_with_those_there_are(api: str, stream: bool) -> None:
    async with running_rig(
        {"big": upstream(api, "http://127.0.0.1:1"), "small": upstream(api, "http://127.0.0.1:1")}
    ) as rig:
        error, _ = await fails(rig, api, stream)
    assert "The model 'm' does not exist. Models here: 'big', 'small'." in str(error)
    assert type(error).__name__ == "NotFoundError"


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe",
    b'{"model": 1}',
    b'{"model": "m"}',
    b'{"model": "m", "messages": {}}',
    b'{"model": "m", "messages": "hi", "max_tokens": 1}',
    b'{"model": "m", "messages": ["x"], "max_tokens": "many"}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
async def test_a_malformed_request_is_a_bad_request(api: str, body: bytes) -> None:
    path = "/v1/messages" if api == "anthropic" else "/v1/chat/completions"
    async with running_rig() as rig, httpx.AsyncClient(base_url=rig.gateway.url) as client:
        rollout = await rig.rollout()
        prefix = rig.base_url(rollout).removeprefix(rig.gateway.url).removesuffix("/v1")
        answer = await client.post(f"{prefix}{path}", content=body)
        [span] = await rig.spans(rollout)
    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    assert error["message"]
    assert error["type"] in ("invalid_request_error", "not_found_error")
    assert span.attributes[ERROR_STATUS] == answer.status_code


async def test_fifty_megabytes_pass_and_what_is_larger_is_refused(api: str) -> None:
    path, extra = {"openai": ("/chat/completions", {}), "anthropic": ("/messages", {"max_tokens": 9})}[api]
    async with (
        facing(api, saying(good(api)), idle_timeout_s=60) as (rig, server),
        httpx.AsyncClient(timeout=60) as client,
    ):
        rollout = await rig.rollout()
        large = {"model": "m", "messages": [{"role": "user", "content": "x" * 50_000_000}], **extra}
        answer = await client.post(rig.base_url(rollout) + path, json=large)
        assert answer.status_code == 200
        assert len(server.requests[0]) > 50_000_000
        [span] = await rig.spans(rollout)
        assert len(span.attributes[semconv.CALL_INPUT_MESSAGES]) > 50_000_000
        large["messages"][0]["content"] *= 2
        refused = await client.post(rig.base_url(rollout) + path, json=large)
        assert refused.status_code == 413
        assert "at most 67108864 are accepted" in refused.json()["error"]["message"]
        assert (await client.get(f"{rig.gateway.url}/health")).status_code == 200


async def test_a_body_that_does_not_come_is_not_waited_for_for_ever(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentlightning.gateway.app._BODY_SILENCE_S", 0.2)
    path = b"/v1/messages" if api == "anthropic" else b"/v1/chat/completions"
    async with running_rig() as rig:
        host, port = rig.gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{" % path)
        async with asyncio.timeout(SOON_S):
            head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert head.startswith(b"HTTP/1.1 408")

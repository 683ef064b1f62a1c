"""What the gateway adds to a model call, with every call recorded durably before it is answered.

    python benchmarks/gateway.py [--calls 3000] [--rounds 3] [--capture-calls 64]

Three processes on this machine: a mock upstream (bare asyncio; asked directly it is the limit), the gateway with the
SQLite store, and this load generator (bare asyncio too, so that the client does not hide what the server costs).
Cases run interleaved, medians over the rounds. Then `capture.py` checks that what is recorded is what was sampled, for
every dialect. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop

PROMPT_TOKENS, RESPONSE_TOKENS = 200, 60
BODY = json.dumps(
    {
        "model": "mock",
        "messages": [
            {"role": "system", "content": "You answer questions about a SQLite database. " * 8},
            {"role": "user", "content": "How many orders were shipped to Berlin in March?"},
        ],
        "tools": [{"type": "function", "function": {"name": "sql", "parameters": {"type": "object"}}}],
        "temperature": 1.0,
    }
).encode()
STREAM_BODY = BODY[:-1] + b', "stream": true}'
LOGPROBS = [{"token": "tok", "logprob": -0.5, "bytes": None, "top_logprobs": []}] * RESPONSE_TOKENS


# --- the mock upstream ----------------------------------------------------------------------------------------------


def mock_answer() -> bytes:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "SELECT count(*) FROM orders"},
        "finish_reason": "stop",
        "logprobs": {"content": LOGPROBS},
        "token_ids": list(range(RESPONSE_TOKENS)),
    }
    answer = {
        "id": "chatcmpl-mock",
        "object": "chat.completion",
        "created": 1,
        "model": "mock",
        "prompt_token_ids": list(range(PROMPT_TOKENS)),
        "choices": [choice],
        "usage": {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": RESPONSE_TOKENS},
    }
    body = json.dumps(answer).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def mock_stream(chunks: int = 12) -> bytes:
    share = RESPONSE_TOKENS // chunks
    events: list[dict[str, Any]] = []
    for position in range(chunks):
        choice: dict[str, Any] = {
            "index": 0,
            "delta": {"content": "tok "},
            "finish_reason": None,
            "logprobs": {"content": LOGPROBS[:share]},
            "token_ids": list(range(share)),
        }
        event = {"id": "chatcmpl-mock", "object": "chat.completion.chunk", "model": "mock", "choices": [choice]}
        if position == 0:
            event["prompt_token_ids"] = list(range(PROMPT_TOKENS))
        events.append(event)
    events.append({"id": "chatcmpl-mock", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events] + [b"data: [DONE]\n\n"]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in lines) + b"0\r\n\r\n"


MODELS = b'{"object":"list","data":[{"id":"mock","owned_by":"vllm"}]}'
MODELS = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(MODELS), MODELS)


class MockUpstream(asyncio.Protocol):
    answer, stream = mock_answer(), mock_stream()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            size = end + 4 + content_length(self.buffer[:end])
            if len(self.buffer) < size:
                return
            request, self.buffer = self.buffer[:size], self.buffer[size:]
            if request.startswith(b"GET"):
                self.transport.write(MODELS)
            else:
                streamed = b'"stream":true' in request or b'"stream": true' in request
                self.transport.write(self.stream if streamed else self.answer)


def content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line[15:])
    return 0


def run_mock(pipe: multiprocessing.connection.Connection) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(MockUpstream, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


# --- the gateway ----------------------------------------------------------------------------------------------------


class InstantEngine:
    """An engine that has the answer already: what remains is the gateway and the store."""

    def __init__(self) -> None:
        from agentlightning.schemas import EngineInfo

        self.info = EngineInfo(
            model="mock", model_version="1", parameters=0, vocab_size=1000, max_context=4096, device="cpu",
            dtype="float32", has_chat_template=True,
        )  # fmt: skip

    async def generate(self, request: Any) -> Any:
        from agentlightning.schemas import GeneratedChoice, GenerateResult

        choice = GeneratedChoice(
            index=0,
            token_ids=list(range(RESPONSE_TOKENS)),
            logprobs=[-0.5] * RESPONSE_TOKENS,
            text="SELECT count(*) FROM orders",
        )
        return GenerateResult(
            request_id=request.request_id,
            prompt_token_ids=list(range(PROMPT_TOKENS)),
            choices=[choice],
            model="mock",
            model_version="1",
        )

    def stream(self, request: Any) -> Any:
        raise NotImplementedError


def run_gateway(pipe: multiprocessing.connection.Connection, upstream_port: int, folder: str) -> None:
    from agentlightning.gateway import EngineUpstream, Gateway, OpenAIUpstream
    from agentlightning.store import SqlLightningStore

    async def main() -> None:
        store = SqlLightningStore(Path(folder) / "store.db")
        rollouts = [await store.start_rollout(input={}) for _ in range(64)]
        upstreams: dict[str, Any] = {
            "mock": OpenAIUpstream(f"http://127.0.0.1:{upstream_port}/v1", capture="vllm"),
            "engine": EngineUpstream(InstantEngine()),
        }
        async with Gateway(store, upstreams) as gateway:
            port = int(gateway.url.rsplit(":", 1)[1])
            pipe.send((port, [(r.rollout_id, r.attempt.attempt_id) for r in rollouts]))
            loop = asyncio.get_running_loop()
            while (await loop.run_in_executor(None, pipe.recv)) == "stats":
                spans = (await store.statistics())["total_spans"]
                pipe.send({**gateway.stats(), "spans": spans})
        await store.close()

    uvloop.run(main())


# --- the load -------------------------------------------------------------------------------------------------------


class Client(asyncio.Protocol):
    """One keep-alive connection that sends a request, waits for the whole answer, and counts."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.buffer = b""
        self.waiter: asyncio.Future[bytes] | None = None

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0 or self.waiter is None:
            return
        head = self.buffer[:end].lower()
        if b"transfer-encoding: chunked" in head:
            is_done = self.buffer.endswith(b"0\r\n\r\n")
        else:
            is_done = len(self.buffer) >= end + 4 + content_length(head)
        if is_done:
            answer, self.buffer = self.buffer, b""
            self.waiter.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(ConnectionError("connection lost"))

    async def ask(self, request: bytes) -> bytes:
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.waiter


@dataclass
class Case:
    name: str
    port: int
    pid: int
    request: Callable[[int], bytes]
    concurrency: int
    calls: int


@dataclass
class Result:
    rate: float
    p50_ms: float
    p95_ms: float
    cpu_ms: float
    failed: int


async def run_case(case: Case) -> Result:
    loop = asyncio.get_running_loop()
    numbers = iter(range(case.calls))
    latencies: list[float] = []
    failed = 0

    async def worker() -> None:
        nonlocal failed
        transport, client = await loop.create_connection(Client, "127.0.0.1", case.port)
        for number in numbers:
            began = time.perf_counter()
            answer = await client.ask(case.request(number))
            latencies.append(time.perf_counter() - began)
            failed += not answer.startswith(b"HTTP/1.1 200")
        transport.close()

    process = psutil.Process(case.pid)
    before, began = process.cpu_times(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(case.concurrency)))
    seconds, after = time.perf_counter() - began, process.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    latencies.sort()
    return Result(
        rate=case.calls / seconds,
        p50_ms=latencies[len(latencies) // 2] * 1000,
        p95_ms=latencies[int(len(latencies) * 0.95)] * 1000,
        cpu_ms=cpu_s * 1000 / case.calls,
        failed=failed,
    )


def http_request(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def cases(upstream: tuple[int, int], gateway: tuple[int, int], bases: list[str], calls: int) -> list[Case]:
    direct = http_request("/v1/chat/completions", BODY)
    ours = [http_request(f"{base}/chat/completions", BODY) for base in bases]
    streams = [http_request(f"{base}/chat/completions", STREAM_BODY) for base in bases]
    engine = [http_request(f"{base}/chat/completions", BODY.replace(b'"mock"', b'"engine"', 1)) for base in bases]
    found: list[Case] = []
    for concurrency in (1, 64):
        size = calls // 2 if concurrency == 1 else calls
        found += [
            Case("direct", *upstream, lambda _: direct, concurrency, size),
            Case("gateway", *gateway, lambda n: ours[n % len(ours)], concurrency, size),
            Case("gateway, streamed", *gateway, lambda n: streams[n % len(streams)], concurrency, size),
            Case("gateway, engine in process", *gateway, lambda n: engine[n % len(engine)], concurrency, size),
        ]
    return found


async def measure(found: list[Case], rounds: int) -> dict[tuple[str, int], list[Result]]:
    results: dict[tuple[str, int], list[Result]] = {}
    for case in found:  # warm up: connections, imports, caches
        await run_case(Case(case.name, case.port, case.pid, case.request, case.concurrency, 200))
    for _ in range(rounds):
        for case in found:
            results.setdefault((case.name, case.concurrency), []).append(await run_case(case))
    return results


def median(results: list[Result], field: str) -> float:
    return statistics.median(getattr(result, field) for result in results)


def report(results: dict[tuple[str, int], list[Result]]) -> None:
    print(f"{'case':28} {'c':>3} {'calls/s (min-max)':>22} {'p50 ms':>8} {'p95 ms':>8} {'CPU ms':>7} {'failed':>6}")
    for (name, concurrency), found in results.items():
        rates = [result.rate for result in found]
        rate = f"{median(found, 'rate'):.0f} ({min(rates):.0f}-{max(rates):.0f})"
        print(
            f"{name:28} {concurrency:3} {rate:>22} {median(found, 'p50_ms'):8.2f} {median(found, 'p95_ms'):8.2f} "
            f"{median(found, 'cpu_ms'):7.3f} {sum(result.failed for result in found):6}"
        )


def summary(results: dict[tuple[str, int], list[Result]], recorded_pct: float, rss_mb: float) -> dict[str, Any]:
    def of(name: str, concurrency: int, field: str) -> float:
        return median(results[name, concurrency], field)

    return {
        "added_p50_ms_c1": round(of("gateway", 1, "p50_ms") - of("direct", 1, "p50_ms"), 3),
        "added_p95_ms_c1": round(of("gateway", 1, "p95_ms") - of("direct", 1, "p95_ms"), 3),
        "calls_per_s_c1": round(of("gateway", 1, "rate")),
        "calls_per_s_c64": round(of("gateway", 64, "rate")),
        "streamed_calls_per_s_c64": round(of("gateway, streamed", 64, "rate")),
        "engine_calls_per_s_c64": round(of("gateway, engine in process", 64, "rate")),
        "cpu_ms_per_call_c64": round(of("gateway", 64, "cpu_ms"), 3),
        "streamed_cpu_ms_per_call_c64": round(of("gateway, streamed", 64, "cpu_ms"), 3),
        "engine_cpu_ms_per_call_c64": round(of("gateway, engine in process", 64, "cpu_ms"), 3),
        "rate_vs_direct_c1": round(of("gateway", 1, "rate") / of("direct", 1, "rate"), 3),
        "rate_vs_direct_c64": round(of("gateway", 64, "rate") / of("direct", 64, "rate"), 3),
        "recorded_pct": recorded_pct,
        "failed": sum(result.failed for found in results.values() for result in found),
        "gateway_rss_mb": rss_mb,
        "cpu_count": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=3000, help="calls per case at 64 in flight; half of it at 1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--capture-calls", type=int, default=64, help="calls per case of the capture table")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        mock_pipe, mock_end = context.Pipe()
        mock = context.Process(target=run_mock, args=(mock_end,), daemon=True)
        mock.start()
        stack.callback(mock.kill)
        mock_port = mock_pipe.recv()
        pipe, end = context.Pipe()
        gateway = context.Process(target=run_gateway, args=(end, mock_port, folder), daemon=True)
        gateway.start()
        stack.callback(gateway.kill)
        port, attempts = pipe.recv()
        bases = [f"/rollout/{rollout}/attempt/{attempt}/v1" for rollout, attempt in attempts]
        assert mock.pid is not None
        assert gateway.pid is not None
        found = cases((mock_port, mock.pid), (port, gateway.pid), bases, options.calls)
        results = uvloop.run(measure(found, options.rounds))
        pipe.send("stats")
        stats = pipe.recv()
        rss_mb = round(psutil.Process(gateway.pid).memory_info().rss / 1e6)
        pipe.send("stop")
        gateway.join(20)
    report(results)
    sent = sum(200 + options.rounds * case.calls for case in found if case.name != "direct")
    recorded_pct = round(100 * stats["spans"] / sent, 2)
    print(f"sent {sent} calls, recorded {stats['spans']}; not trainable: {stats['not_trainable'] or 'none'}")
    import capture  # not above: the gateway's process imports this file too, and shall not carry the clients

    captured = capture.report(asyncio.run(capture.measure(options.capture_calls)), options.capture_calls)
    print(json.dumps(summary(results, recorded_pct, rss_mb) | captured))


if __name__ == "__main__":
    sys.exit(main())

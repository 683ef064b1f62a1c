"""What gateways add to a model call, with every call captured: ours, LiteLLM's proxy and rllm-model-gateway.

    python benchmarks/gateway.py [--setup-peers] [--calls 3000] [--rounds 3] [--capture-calls 64]
    python benchmarks/gateway.py --memory 100000

Processes on this machine: a mock upstream (bare asyncio; asked directly it is the limit), each gateway with one
worker process, and this load generator (bare asyncio too, so that the client does not hide what the servers cost).
Ours commits every call to SQLite before it is answered; the peers keep calls after they have answered. Cases run
interleaved, medians over the rounds. Then `capture.py` checks for each whether what is recorded is what was sampled.
The last line is one JSON object. Peers live in environments of their own below `.peers/`; without `--setup-peers` those
that are not there are left out.

`--memory` sends that many calls, over ever new rollouts, to our gateway alone and shows its resident memory on the way.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
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

import peers
import psutil
import subjects
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
ENGINE_BODY = BODY.replace(b'"mock"', b'"engine"', 1)
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
        upstreams: dict[str, Any] = {
            "mock": OpenAIUpstream(f"http://127.0.0.1:{upstream_port}/v1", capture="vllm"),
            "engine": EngineUpstream(InstantEngine()),
        }
        async with Gateway(store, upstreams, spool=Path(folder) / "spool") as gateway:
            pipe.send(int(gateway.url.rsplit(":", 1)[1]))
            loop = asyncio.get_running_loop()
            while (order := await loop.run_in_executor(None, pipe.recv)) != "stop":
                if order == "stats":
                    pipe.send({**gateway.stats(), "spans": (await store.statistics())["total_spans"]})
                else:
                    rollouts = await asyncio.gather(*(store.start_rollout(input={}) for _ in range(order)))
                    pipe.send([(r.rollout_id, r.attempt.attempt_id) for r in rollouts])
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

    @property
    def is_peer(self) -> bool:
        return self.name.startswith((subjects.LITELLM, subjects.RLLM))


@dataclass
class Result:
    rate: float
    p50_ms: float
    p95_ms: float
    cpu_ms: float
    failed: int


def cpu_s(pid: int) -> float:
    """Of a process and its children."""
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(time.user + time.system for time in times)


Results = dict[tuple[str, int], list[Result]]
"""By case and calls in flight, a result for each round."""


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

    before, began = cpu_s(case.pid), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(case.concurrency)))
    seconds, used_s = time.perf_counter() - began, cpu_s(case.pid) - before
    latencies.sort()
    return Result(
        rate=case.calls / seconds,
        p50_ms=latencies[len(latencies) // 2] * 1000,
        p95_ms=latencies[int(len(latencies) * 0.95)] * 1000,
        cpu_ms=used_s * 1000 / case.calls,
        failed=failed,
    )


def http_request(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def cases(
    upstream: tuple[int, int],
    gateway: tuple[int, int],
    bases: list[str],
    peers_up: list[subjects.Peer],
    options: argparse.Namespace,
) -> list[Case]:
    found: list[Case] = []
    for concurrency in options.concurrency:
        size = options.calls // 2 if concurrency == 1 else max(options.calls, 2 * concurrency)
        ours = [f"{base}/chat/completions" for base in bases]
        found += [
            Case("direct", *upstream, requests(["/v1/chat/completions"], BODY), concurrency, size),
            Case("direct, streamed", *upstream, requests(["/v1/chat/completions"], STREAM_BODY), concurrency, size),
            Case("gateway", *gateway, requests(ours, BODY), concurrency, size),
            Case("gateway, streamed", *gateway, requests(ours, STREAM_BODY), concurrency, size),
            Case("gateway, engine in process", *gateway, requests(ours, ENGINE_BODY), concurrency, size),
        ]
        for peer in peers_up:
            # In proportion to their speed: every case takes about as long.
            few = max(size // (40 if peer.name == subjects.LITELLM else 6), concurrency, 40)
            paths = [peer.path(agent) for agent in range(64)]
            where = (peer.port, peer.pid)
            found += [
                Case(peer.name, *where, requests(paths, BODY), concurrency, few),
                Case(f"{peer.name}, streamed", *where, requests(paths, STREAM_BODY), concurrency, few),
            ]
    return found


def requests(paths: list[str], body: bytes) -> Callable[[int], bytes]:
    ready = [http_request(path, body) for path in paths]
    return lambda number: ready[number % len(ready)]


def warm_up(case: Case) -> int:
    return max(20, case.concurrency) if case.is_peer else max(200, case.concurrency)


async def measure(found: list[Case], rounds: int) -> Results:
    results: Results = {}
    for case in found:  # warm up: connections, imports, caches
        await run_case(dataclasses.replace(case, calls=warm_up(case)))
    for _ in range(rounds):
        for case in found:
            results.setdefault((case.name, case.concurrency), []).append(await run_case(case))
    return results


def median(results: list[Result], field: str) -> float:
    return statistics.median(getattr(result, field) for result in results)


def report(results: Results) -> None:
    print(f"{'case':30} {'c':>3} {'calls/s (min-max)':>22} {'p50 ms':>8} {'p95 ms':>8} {'CPU ms':>7} {'failed':>6}")
    for (name, concurrency), found in results.items():
        rates = [result.rate for result in found]
        rate = f"{median(found, 'rate'):.0f} ({min(rates):.0f}-{max(rates):.0f})"
        print(
            f"{name:30} {concurrency:3} {rate:>22} {median(found, 'p50_ms'):8.2f} {median(found, 'p95_ms'):8.2f} "
            f"{median(found, 'cpu_ms'):7.3f} {sum(result.failed for result in found):6}"
        )


def summary(results: Results, recorded_pct: float, rss_mb: float, captured: dict[str, Any]) -> dict[str, Any]:
    def of(name: str, concurrency: int, field: str) -> float:
        return median(results[name, concurrency], field)

    def ratio(name: str, concurrency: int) -> float | None:
        ours, theirs = results.get(("gateway", concurrency)), results.get((name, concurrency))
        return round(median(ours, "rate") / median(theirs, "rate"), 1) if ours and theirs else None

    found: dict[str, Any] = {}
    for name in (subjects.LITELLM, subjects.RLLM):
        key = name.split("-")[0]
        for concurrency in (1, 64, 512):
            found[f"vs_{key}_c{concurrency}"] = ratio(name, concurrency)
    for concurrency in sorted({concurrency for _, concurrency in results}):
        at = f"_c{concurrency}"
        found[f"calls_per_s{at}"] = round(of("gateway", concurrency, "rate"))
        found[f"streamed_calls_per_s{at}"] = round(of("gateway, streamed", concurrency, "rate"))
        found[f"cpu_ms_per_call{at}"] = round(of("gateway", concurrency, "cpu_ms"), 3)
        found[f"streamed_cpu_ms_per_call{at}"] = round(of("gateway, streamed", concurrency, "cpu_ms"), 3)
        found[f"engine_cpu_ms_per_call{at}"] = round(of("gateway, engine in process", concurrency, "cpu_ms"), 3)
        found[f"rate_vs_direct{at}"] = round(of("gateway", concurrency, "rate") / of("direct", concurrency, "rate"), 3)
    if ("gateway", 1) in results:
        for percentile in ("p50_ms", "p95_ms"):
            added = of("gateway", 1, percentile) - of("direct", 1, percentile)
            found[f"added_{percentile}_c1"] = round(added, 3)
    ours = [result for (name, _), rounds in results.items() if name.startswith("gateway") for result in rounds]
    theirs = [result for (name, _), rounds in results.items() if not name.startswith("gateway") for result in rounds]
    return found | {
        "recorded_pct": recorded_pct,
        "gateway_rss_mb": rss_mb,
        "cpu_count": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        **captured,
        "failed_of_peers": sum(result.failed for result in theirs),
        "failed": sum(result.failed for result in ours),
    }


class OurGateway:
    """Our gateway with its store, in a process of its own."""

    def __init__(self, stack: contextlib.ExitStack, upstream_port: int, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        process = context.Process(target=run_gateway, args=(end, upstream_port, folder), daemon=True)
        process.start()
        stack.callback(process.kill)
        self._process = process
        self.pid: int = process.pid or 0
        self.port: int = self._pipe.recv()

    def new_bases(self, count: int) -> list[str]:
        self._pipe.send(count)
        return [f"/rollout/{rollout}/attempt/{attempt}/v1" for rollout, attempt in self._pipe.recv()]

    def stats(self) -> dict[str, Any]:
        self._pipe.send("stats")
        return self._pipe.recv()

    def rss_mb(self) -> float:
        return round(psutil.Process(self.pid).memory_info().rss / 1e6, 1)

    def stop(self) -> None:
        self._pipe.send("stop")
        self._process.join(20)


def start_mock(stack: contextlib.ExitStack) -> tuple[int, int]:
    context = multiprocessing.get_context("spawn")
    pipe, end = context.Pipe()
    mock = context.Process(target=run_mock, args=(end,), daemon=True)
    mock.start()
    stack.callback(mock.kill)
    return pipe.recv(), mock.pid or 0


async def measure_memory(gateway: OurGateway, calls: int) -> list[float]:
    """Resident MB after each tenth of the calls, 64 at a time, ten on each rollout."""
    found: list[float] = []
    kinds = (BODY, STREAM_BODY)
    for tenth in range(10):
        bases = await asyncio.to_thread(gateway.new_bases, max(1, calls // 100))
        paths = [f"{base}/chat/completions" for base in bases]
        for body in kinds:
            case = Case("gateway", gateway.port, gateway.pid, requests(paths, body), 64, calls // 20)
            result = await run_case(case)
            if result.failed:
                sys.exit(f"{result.failed} calls failed")
        found.append(gateway.rss_mb())
        print(f"after {(tenth + 1) * calls // 10} calls: {found[-1]} MB", flush=True)
    return found


def memory(calls: int) -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        upstream = start_mock(stack)
        gateway = OurGateway(stack, upstream[0], folder)
        before = gateway.rss_mb()
        found = uvloop.run(measure_memory(gateway, calls))
        spans = gateway.stats()["spans"]
        gateway.stop()
    # The first half fills pools, caches and the memory of rollouts that may still call.
    grown = round(found[-1] - found[4], 1)
    print(json.dumps({"calls": calls, "recorded": spans, "rss_mb_idle": before, "rss_mb": found, "grown_mb": grown}))


def compare(options: argparse.Namespace) -> None:
    names = [name for name in (subjects.LITELLM, subjects.RLLM) if options.setup_peers or peers.is_installed(name)]
    names = [] if options.no_peers else names
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        upstream = start_mock(stack)
        gateway = OurGateway(stack, upstream[0], folder)
        up: list[subjects.Peer] = []
        for name in names:
            up.append(subjects.start(name, f"http://127.0.0.1:{upstream[0]}/v1", Path(folder)))
            stack.callback(up[-1].stop)
        found = cases(upstream, (gateway.port, gateway.pid), gateway.new_bases(64), up, options)
        results = uvloop.run(measure(found, options.rounds))
        stats = gateway.stats()
        rss_mb = gateway.rss_mb()
        gateway.stop()
    report(results)
    ours = [case for case in found if case.name.startswith("gateway")]
    sent = sum(warm_up(case) + options.rounds * case.calls for case in ours)
    recorded_pct = round(100 * stats["spans"] / sent, 2)
    print(f"sent {sent} calls, recorded {stats['spans']}; not trainable: {stats['not_trainable'] or 'none'}")
    import capture  # not above: the gateway's process imports this file too, and shall not carry the clients

    table = asyncio.run(capture.measure(options.capture_calls))
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(capture.measure_peers(table, options.capture_calls, names, Path(folder)))
    captured = capture.report(table, options.capture_calls)
    print(json.dumps(summary(results, recorded_pct, rss_mb, captured)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=3000, help="calls per case; half of it at 1 in flight")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 64, 512])
    parser.add_argument("--capture-calls", type=int, default=64, help="calls per case of the capture table")
    parser.add_argument("--setup-peers", action="store_true", help="install the peers that are not there yet")
    parser.add_argument("--no-peers", action="store_true", help="measure ours alone")
    parser.add_argument("--memory", type=int, metavar="N", help="send N calls to ours and watch its memory")
    options = parser.parse_args()
    if options.memory:
        memory(options.memory)
    else:
        compare(options)


if __name__ == "__main__":
    sys.exit(main())

"""Whether the gateway records exactly what the model sampled, whatever the agent speaks; part of `gateway.py`.

    python benchmarks/capture.py [--calls 64]

The official clients call the gateway, 16 at a time, in front of a mock of vLLM and of a mock engine. Both draw tokens
and log-probabilities at random and remember them. A choice counts as captured when the store has one record of it, on
its rollout, with the same prompt tokens, response tokens, log-probabilities and message, and the client has read the
same answer. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import openai
import subjects
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from subjects import Base, Record, Subject

from agentlightning.agent.adapter import calls_from_spans
from agentlightning.gateway import EngineUpstream, Gateway, OpenAIUpstream
from agentlightning.gateway.spans import UPSTREAM_RESPONSE_ID
from agentlightning.kit.http import HttpServer
from agentlightning.schemas import (
    EngineInfo,
    GeneratedChoice,
    GenerateDelta,
    GenerateRequest,
    GenerateResult,
    ModelCall,
)
from agentlightning.store import InMemoryLightningStore

CONCURRENCY, ROLLOUTS = 16, 8
FUNCTION = {"name": "sql", "description": "Run SQL", "parameters": {"type": "object"}}
OPENAI_TOOL = {"type": "function", "function": FUNCTION}
RESPONSES_TOOL = {"type": "function", **FUNCTION}
ANTHROPIC_TOOL = {"name": "sql", "description": "Run SQL", "input_schema": {"type": "object"}}


# --- what the model samples -----------------------------------------------------------------------------------------


@dataclass
class Sampled:
    """One choice, as the mock model drew it: one word, or one piece of a tool call's arguments, per token."""

    token_ids: list[int]
    logprobs: list[float]
    pieces: list[str]
    call_id: str = ""

    @property
    def said(self) -> str:
        return "".join(self.pieces)

    def message(self) -> dict[str, Any]:
        if not self.call_id:
            return {"role": "assistant", "content": self.said}
        return {"role": "assistant", "content": None, "tool_calls": [self.tool_call()]}

    def tool_call(self) -> dict[str, Any]:
        return {"id": self.call_id, "type": "function", "function": {"name": "sql", "arguments": self.said}}


@dataclass
class Drawn:
    prompt_ids: list[int]
    choices: list[Sampled]
    prompt: str


@dataclass
class Dice:
    """Draws answers and remembers them by response id."""

    random: random.Random
    drawn: dict[str, Drawn] = field(default_factory=dict)

    def draw(self, response_id: str, messages: list[dict[str, Any]], n: int, *, calls_tool: bool) -> Drawn:
        tokens = [self.random.randrange(50_000) for _ in range(self.random.randint(5, 30))]
        choices = [self._choice(calls_tool) for _ in range(n)]
        self.drawn[response_id] = Drawn(tokens, choices, str(messages[-1]["content"]))
        return self.drawn[response_id]

    def _choice(self, calls_tool: bool) -> Sampled:
        size = self.random.randint(3, 12)
        words = [f"w{self.random.randrange(10**6)} " for _ in range(size)]
        if calls_tool:
            words = ['{"query":', *(f' "{word}' if i == 0 else word for i, word in enumerate(words[2:])), '"}']
        return Sampled(
            token_ids=[self.random.randrange(50_000) for _ in words],
            logprobs=[-self.random.expovariate(1.0) for _ in words],
            pieces=words,
            call_id=f"call_{self.random.randrange(10**9)}" if calls_tool else "",
        )


class MockVllm:
    """A server that reports token ids as vLLM does."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self._server = HttpServer(Starlette(routes=[Route("/v1/chat/completions", self._answer, methods=["POST"])]))

    async def __aenter__(self) -> str:
        await self._server.start()
        return f"{self._server.url}/v1"

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop()

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        head = {"id": f"chatcmpl-{len(self._dice.drawn)}", "model": "mock", "created": 1}
        drawn = self._dice.draw(head["id"], body["messages"], body.get("n") or 1, calls_tool=bool(body.get("tools")))
        tokens = sum(len(choice.token_ids) for choice in drawn.choices)
        usage = {"prompt_tokens": len(drawn.prompt_ids), "completion_tokens": tokens, "total_tokens": 0}
        if body.get("stream"):
            return StreamingResponse(self._stream(head, drawn, usage), media_type="text/event-stream")
        choices = [
            {"index": index, "message": choice.message(), "finish_reason": finish(choice)} | tokens_of(choice)
            for index, choice in enumerate(drawn.choices)
        ]
        head |= {"object": "chat.completion", "prompt_token_ids": drawn.prompt_ids}
        return JSONResponse({**head, "choices": choices, "usage": usage})

    async def _stream(self, head: dict[str, Any], drawn: Drawn, usage: dict[str, int]) -> AsyncIterator[bytes]:
        head |= {"object": "chat.completion.chunk"}
        first = {"prompt_token_ids": drawn.prompt_ids}
        longest = max(len(choice.pieces) for choice in drawn.choices)
        for position in range(longest):  # the choices come interleaved
            for index, choice in enumerate(drawn.choices):
                if position < len(choice.pieces):
                    content = {"index": index, "delta": delta(choice, position), "finish_reason": None}
                    yield event({**head, **first, "choices": [content | tokens_of(choice, position)]})
                    first = {}
            await asyncio.sleep(0)
        for index, choice in enumerate(drawn.choices):
            yield event({**head, "choices": [{"index": index, "delta": {}, "finish_reason": finish(choice)}]})
        yield event({**head, "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def finish(choice: Sampled) -> str:
    return "tool_calls" if choice.call_id else "stop"


def delta(choice: Sampled, position: int) -> dict[str, Any]:
    if not choice.call_id:
        return {"content": choice.pieces[position]}
    call: dict[str, Any] = {"index": 0, "function": {"arguments": choice.pieces[position]}}
    if position == 0:
        call |= {"id": choice.call_id, "type": "function"}
        call["function"]["name"] = "sql"
    return {"tool_calls": [call]}


def tokens_of(choice: Sampled, position: int | None = None) -> dict[str, Any]:
    part = slice(None) if position is None else slice(position, position + 1)
    content = [{"token": "t", "logprob": logprob, "bytes": None, "top_logprobs": []} for logprob in choice.logprobs]
    return {"token_ids": choice.token_ids[part], "logprobs": {"content": content[part]}}


class MockEngine:
    """An engine in process."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self.info = EngineInfo(
            model="mock", model_version="1", parameters=0, vocab_size=50_000, max_context=4096, device="cpu",
            dtype="float32", has_chat_template=True,
        )  # fmt: skip

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        drawn = self._dice.draw(
            request.request_id, request.messages or [], request.params.n, calls_tool=bool(request.tools)
        )
        choices = [
            GeneratedChoice(
                index=index,
                token_ids=choice.token_ids,
                logprobs=choice.logprobs,
                text="" if choice.call_id else choice.said,
                tool_calls=[choice.tool_call()] if choice.call_id else [],
                finish_reason=finish(choice),
            )
            for index, choice in enumerate(drawn.choices)
        ]
        return GenerateResult(
            request_id=request.request_id,
            prompt_token_ids=drawn.prompt_ids,
            choices=choices,
            model="mock",
            model_version="1",
        )

    async def stream(self, request: GenerateRequest) -> AsyncIterator[GenerateDelta]:
        result = await self.generate(request)
        for index, choice in enumerate(self._dice.drawn[request.request_id].choices):
            if choice.call_id:
                calls = [choice.tool_call()]
                yield GenerateDelta(request_id=request.request_id, index=index, tool_calls=calls)
                continue
            for piece in choice.pieces:
                yield GenerateDelta(request_id=request.request_id, index=index, text=piece)
                await asyncio.sleep(0)
        yield GenerateDelta(request_id=request.request_id, result=result)


# --- what the agents do ---------------------------------------------------------------------------------------------

Heard = list[str]
"""What the client read of each choice: its text, or the arguments of its tool call."""


@dataclass
class Clients:
    openai: Any
    anthropic: Any


async def chat(clients: Clients, prompt: str, **options: Any) -> Heard:
    messages = [{"role": "user", "content": prompt}]
    answer = await clients.openai.chat.completions.create(model="mock", messages=messages, **options)
    if not options.get("stream"):
        return [choice.message.content or choice.message.tool_calls[0].function.arguments for choice in answer.choices]
    heard: dict[int, str] = {}
    async for chunk in answer:
        for choice in chunk.choices:
            text = choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                text += call.function.arguments or ""
            heard[choice.index] = heard.get(choice.index, "") + text
    return [heard[index] for index in sorted(heard)]


async def messages(clients: Clients, prompt: str, *, stream: bool = False, **options: Any) -> Heard:
    request = {"model": "mock", "max_tokens": 64, "messages": [{"role": "user", "content": prompt}], **options}
    if stream:
        async with clients.anthropic.messages.stream(**request) as events:
            answer = await events.get_final_message()
    else:
        answer = await clients.anthropic.messages.create(**request)
    [block] = answer.content
    return [block.text if block.type == "text" else json.dumps(block.input)]


async def responses(clients: Clients, prompt: str, *, stream: bool = False, **options: Any) -> Heard:
    request = {"model": "mock", "input": prompt, **options}
    if stream:
        async with clients.openai.responses.stream(**request) as events:
            answer = await events.get_final_response()
    else:
        answer = await clients.openai.responses.create(**request)
    return [answer.output_text or answer.output[0].arguments]


Ask = Callable[..., Awaitable[Heard]]
Table = dict[str, dict[str, tuple[float, str]]]
"""By case and gateway: percent, and the first error."""
CASES: dict[str, tuple[Ask, dict[str, Any], bool]] = {
    # Name: how to ask, with what, and whether always the same.
    "chat": (chat, {}, False),
    "chat, streamed": (chat, {"stream": True}, False),
    "chat, tool call": (chat, {"tools": [OPENAI_TOOL]}, False),
    "chat, tool call, streamed": (chat, {"tools": [OPENAI_TOOL], "stream": True}, False),
    "chat, n = 2": (chat, {"n": 2}, False),
    "chat, n = 2, streamed": (chat, {"n": 2, "stream": True}, False),
    "chat, identical prompts": (chat, {}, True),
    "Anthropic": (messages, {}, False),
    "Anthropic, streamed": (messages, {"stream": True}, False),
    "Anthropic, tool call": (messages, {"tools": [ANTHROPIC_TOOL]}, False),
    "Anthropic, tool call, streamed": (messages, {"tools": [ANTHROPIC_TOOL], "stream": True}, False),
    "Responses": (responses, {}, False),
    "Responses, streamed": (responses, {"stream": True}, False),
    "Responses, tool call": (responses, {"tools": [RESPONSES_TOOL]}, False),
    "Responses, tool call, streamed": (responses, {"tools": [RESPONSES_TOOL], "stream": True}, False),
}


class Ours:
    """Our gateway, in this process."""

    def __init__(self, name: str, gateway: Gateway, store: Any) -> None:
        self.name = name
        self._gateway = gateway
        self._store = store
        self._rollouts: list[str] = []

    async def bases(self, count: int) -> list[Base]:
        found: list[Base] = []
        for _ in range(count):
            rollout = await self._store.start_rollout(input={})
            base = f"{self._gateway.url}/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}"
            found.append(Base(rollout.rollout_id, f"{base}/v1", base))
        self._rollouts = [base.owner for base in found]
        return found

    async def records(self) -> list[Record]:
        found: list[Record] = []
        for rollout in self._rollouts:
            spans = await self._store.query_spans(rollout)
            ids = {span.span_id: span.attributes.get(UPSTREAM_RESPONSE_ID) for span in spans}
            found += [_record(call, ids[call.span_id]) for call in calls_from_spans(spans) if call.trainable]
        return found


def _record(call: ModelCall, upstream_id: str | None) -> Record:
    return Record(
        prompt=str(call.messages[-1]["content"]),
        message=call.output,
        prompt_ids=call.prompt_token_ids,
        token_ids=call.response_token_ids,
        logprobs=call.response_logprobs,
        choice=call.choice,
        response_id=upstream_id or call.response_id,
        owner=call.rollout_id,
    )


async def captured_pct(subject: Subject, dice: Dice, case: str, calls: int) -> tuple[float, str]:
    """The share of choices, in percent, that are recorded and were read exactly as sampled; and the first error."""
    ask, options, is_same = CASES[case]
    dice.drawn.clear()
    bases = await subject.bases(ROLLOUTS)
    clients = [_clients(base) for base in bases]
    places = asyncio.Semaphore(CONCURRENCY)
    heard: list[str] = []
    errors: list[str] = []

    async def one(number: int) -> None:
        owner = bases[number % ROLLOUTS].owner
        prompt = "always the same" if is_same else f"{owner} {number}"
        async with places:
            try:
                heard.extend(await ask(clients[number % ROLLOUTS], prompt, **options))
            except Exception as error:  # noqa: BLE001 - a call that fails is a call that is not captured
                errors.append(f"{type(error).__name__}: {error}")

    await asyncio.gather(*(one(number) for number in range(calls)))
    for client in clients:
        await client.openai.close()
        await client.anthropic.close()
    recorded: dict[tuple[str, int], list[Record]] = {}
    by_prompt = {drawn.prompt: response_id for response_id, drawn in dice.drawn.items()}
    for record in await subject.records():
        known = record.response_id in dice.drawn or is_same
        response_id = record.response_id if known else by_prompt.get(record.prompt)
        recorded.setdefault((response_id or "", record.choice), []).append(record)
    read = {normal(text) for text in heard}
    good = 0
    for response_id, drawn in dice.drawn.items():
        for index, choice in enumerate(drawn.choices):
            found = recorded.pop((response_id, index), [])
            is_good = len(found) == 1 and is_exact(found[0], drawn, choice, is_same)
            good += is_good and normal(choice.said) in read
    expected = calls * (options.get("n") or 1)
    # A record of nothing is as wrong as a missing one.
    return max(0.0, 100 * (good - len(recorded)) / expected), errors[0] if errors else ""


def is_exact(record: Record, drawn: Drawn, choice: Sampled, is_same: bool) -> bool:
    return (
        record.prompt_ids == drawn.prompt_ids
        and record.token_ids == choice.token_ids
        and record.logprobs == choice.logprobs
        and said_in(record.message) == said_in(choice.message())
        and (is_same or record.owner is None or drawn.prompt.startswith(record.owner))
    )


def said_in(message: dict[str, Any]) -> tuple[str, list[tuple[str, str, str]]]:
    """Text and tool calls of a message, without the decorations that differ from gateway to gateway."""
    calls = [
        (call.get("id"), (call.get("function") or {}).get("name"), (call.get("function") or {}).get("arguments"))
        for call in message.get("tool_calls") or []
    ]
    return message.get("content") or "", calls


def normal(text: str) -> str:
    """Arguments without the whitespace that a JSON object does not keep."""
    return json.dumps(json.loads(text)) if text.startswith("{") else text


def _clients(base: Base) -> Clients:
    return Clients(
        openai=openai.AsyncOpenAI(base_url=base.openai, api_key="any", max_retries=0),
        anthropic=anthropic.AsyncAnthropic(base_url=base.anthropic, api_key="any", max_retries=0),
    )


async def measure(calls: int) -> Table:
    """Percent captured correctly by ours, by case and upstream."""
    table: Table = {case: {} for case in CASES}
    dice = Dice(random.Random(7))
    async with MockVllm(dice) as base_url:
        upstreams: dict[str, Any] = {
            "vLLM": OpenAIUpstream(base_url, capture="vllm"),
            "engine": EngineUpstream(MockEngine(dice)),
        }
        for name, upstream in upstreams.items():
            store = InMemoryLightningStore()
            async with Gateway(store, {"mock": upstream}) as gateway:
                for case in CASES:
                    table[case][name] = await captured_pct(Ours(name, gateway, store), dice, case, calls)
            await store.close()
    return table


async def measure_peers(table: Table, calls: int, names: list[str], folder: Path) -> None:
    """Add the peers' columns, in front of the same vLLM."""
    dice = Dice(random.Random(7))
    async with MockVllm(dice) as base_url:
        for name in names:
            peer = await asyncio.to_thread(subjects.start, name, base_url, folder)
            try:
                for case in CASES:
                    if CASES[case][0] is not responses:  # both hand those on to the server, and vLLM's mock has none
                        table[case][name] = await captured_pct(peer, dice, case, calls)
            finally:
                peer.stop()


def report(table: Table, calls: int) -> dict[str, Any]:
    """Print the table; return the summary."""
    columns = list(next(iter(table.values())))
    print(f"\n{f'captured correctly, % of {calls} calls':40}", *(f"{column:>19}" for column in columns))
    for case, found in table.items():
        shares = (f"{found[column][0]:.2f}" if column in found else "-" for column in columns)
        print(f"{case:40}", *(f"{share:>19}" for share in shares))
    for column in columns:
        for case, found in table.items():
            error = found.get(column, (0.0, ""))[1]
            if error:
                print(f"{column}, {case}: {error.splitlines()[0][:160]}")
    everything = [found[column][0] for found in table.values() for column in columns[:2]]
    summary = {"captured_correctly_pct": round(min(everything), 2), "capture_cases": len(everything)}
    for column in columns[2:]:
        shares = [found[column][0] for found in table.values() if column in found]
        summary[f"captured_correctly_pct_{column}"] = round(sum(shares) / len(shares), 1)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=64, help="calls per case and upstream")
    parser.add_argument("--peers", nargs="*", default=[], help="measure these too: litellm rllm-model-gateway")
    options = parser.parse_args()
    table = asyncio.run(measure(options.calls))
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure_peers(table, options.calls, options.peers, Path(folder)))
    print(json.dumps(report(table, options.calls)))


if __name__ == "__main__":
    main()

"""The embedded engine as an upstream. Knows nothing of torch: it talks to whatever keeps the `Engine`
contract.

What the engine cannot honour is refused with a 400 that names the parameter; nothing is silently ignored.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol, cast

from agentlightning.gateway.call import Answer, Api, Capture, CapturedChoice, StreamPiece, UpstreamCall
from agentlightning.gateway.capture import check_trainable
from agentlightning.gateway.upstream.base import count_by_completion, not_offered
from agentlightning.gateway.upstream.engine_request import RenderOptions, to_generate_requests
from agentlightning.schemas.generation import (
    EngineInfo,
    GeneratedChoice,
    GenerateDelta,
    GenerateRequest,
    GenerateResult,
)

CONSTRAINED = "the response was constrained to a format"
"""Why a call is not trainable: the learner knows the model's distribution, not that of what the grammar left of it."""


class Engine(Protocol):
    """The part of an engine client that the gateway needs."""

    info: EngineInfo

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """Sample; cancelling it cancels the generation."""
        ...

    def stream(self, request: GenerateRequest) -> AsyncIterator[GenerateDelta]:
        """Sample and yield text as it comes; the last delta carries the result."""
        ...


class EngineUpstream:
    """Answers from an engine, with exact token ids and logprobs.

    Args:
        engine: The engine, e.g. `agentlightning.learner.client.EngineClient`.
        name: Model name under which it answers whatever is loaded.
    """

    api: Api = "openai"

    def __init__(self, engine: Engine, *, name: str = "default") -> None:
        self._engine = engine
        self._name = name
        # An engine's names for its weights are its own business; with this they are nobody else's.
        self._nonce = uuid.uuid4().hex

    def weights_id(self, model: str) -> str | None:
        """Names the weights that are loaded now, in this process."""
        return f"{self._nonce}/{self._engine.info.model_version}"

    def names(self) -> list[str]:
        """Its own name and that of the model that is loaded now."""
        return list(dict.fromkeys((self._name, self._engine.info.model)))

    async def list_models(self) -> list[str]:
        """The same."""
        return self.names()

    async def aclose(self) -> None:
        """Nothing to free; the engine belongs to its owner."""

    async def complete(self, call: UpstreamCall) -> Answer:
        """Answer in one piece.

        Raises:
            CallError: 400 for what the engine cannot honour.
            AgentLightningError: What the engine raises.
        """
        requests, options = to_generate_requests(call)
        results = await self._generate_all(requests)
        capture = _capture(call, results, options.n)
        body = _head(call, capture.model_version)
        body["choices"] = [_render_choice(call, choice, options) for choice in capture.choices]
        body["usage"] = _usage(capture)
        if options.return_token_ids and call.kind == "chat":
            body["prompt_token_ids"] = results[0].prompt_token_ids
        return Answer(body=body, capture=capture)

    async def stream(self, call: UpstreamCall) -> AsyncGenerator[StreamPiece, None]:
        """Answer in pieces; raises what `complete` raises."""
        requests, options = to_generate_requests(call)
        head = _head(call, self._engine.info.model_version, is_chunk=True)
        progress = _Progress(call, head)
        deltas = cast(AsyncGenerator[GenerateDelta, None], self._engine.stream(requests[0]))
        async with aclosing(deltas):
            async for delta in deltas:
                events = progress.events(delta)
                if delta.result is None:
                    yield StreamPiece(events=events)
                    continue
                capture = _capture(call, [delta.result], options.n)
                events += _closing_events(call, head, capture, options)
                yield StreamPiece(events=events, finishes=True, capture=capture)

    async def count_tokens(self, call: UpstreamCall) -> int:
        """Let the engine read the prompt; raises what `complete` raises."""
        return await count_by_completion(self, call)

    async def embed(self, body: dict[str, Any]) -> bytes:
        """Refuse.

        Raises:
            CallError: 501, always.
        """
        raise not_offered(
            "The embedded engine makes no embeddings. Route an embedding model's name to a server that does: "
            'Gateway(store, {"default": EngineUpstream(engine), "<model>": OpenAIUpstream("<base URL>/v1")}).',
            "embeddings_not_supported",
        )

    async def _generate_all(self, requests: list[GenerateRequest]) -> list[GenerateResult]:
        if len(requests) == 1:
            return [await self._engine.generate(requests[0])]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._engine.generate(request)) for request in requests]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return [task.result() for task in tasks]


class _Progress:
    """Turns the engine's deltas into chunks, remembering what each choice has begun with."""

    def __init__(self, call: UpstreamCall, head: dict[str, Any]) -> None:
        self._call = call
        self._head = head
        self._opened: set[int] = set()
        self._tool_calls: Counter[int] = Counter()

    def events(self, delta: GenerateDelta) -> list[dict[str, Any]]:
        if self._call.kind == "text":
            if not delta.text:
                return []
            choice = {"index": delta.index, "text": delta.text, "logprobs": None, "finish_reason": None}
            return [self._head | {"choices": [choice]}]
        events: list[dict[str, Any]] = []
        # Sent with the first token rather than before it: until then a refusal can still be a plain HTTP
        # error.
        if delta.index not in self._opened:
            self._opened.add(delta.index)
            events.append(self._chunk(delta.index, {"role": "assistant", "content": ""}))
        if delta.text:
            events.append(self._chunk(delta.index, {"content": delta.text}))
        if delta.tool_calls:
            first = self._tool_calls[delta.index]
            self._tool_calls[delta.index] += len(delta.tool_calls)
            calls = [{"index": first + i} | tool_call for i, tool_call in enumerate(delta.tool_calls)]
            events.append(self._chunk(delta.index, {"tool_calls": calls}))
        return events

    def _chunk(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._head | {"choices": [choice]}


def _capture(call: UpstreamCall, results: list[GenerateResult], n: int) -> Capture:
    choices = [
        _capture_choice(choice, result.prompt_token_ids, position * n)
        for position, result in enumerate(results)
        for choice in result.choices
    ]
    return Capture(
        response_id=call.call_id,
        model=results[0].model,
        model_version=results[0].model_version,
        choices=choices,
        prompt_tokens=sum(len(result.prompt_token_ids) for result in results),
        completion_tokens=sum(len(choice.token_ids or ()) for choice in choices),
    )


def _capture_choice(choice: GeneratedChoice, prompt_token_ids: list[int], offset: int) -> CapturedChoice:
    output: dict[str, Any] = {"role": "assistant", "content": choice.text}
    if choice.tool_calls:
        output["tool_calls"] = choice.tool_calls
        output["content"] = choice.text or None
    return CapturedChoice(
        index=offset + choice.index,
        output=output,
        finish_reason=choice.finish_reason,
        stop_sequence=choice.stop_sequence,
        prompt_token_ids=prompt_token_ids,
        token_ids=choice.token_ids,
        logprobs=choice.logprobs,
        not_trainable_because=CONSTRAINED
        if choice.constrained
        else check_trainable(prompt_token_ids, choice.token_ids, choice.logprobs),
    )


def _head(call: UpstreamCall, version: str, *, is_chunk: bool = False) -> dict[str, Any]:
    kind = "text_completion"
    if call.kind == "chat":
        kind = "chat.completion.chunk" if is_chunk else "chat.completion"
    return {
        "id": call.call_id,
        "object": kind,
        "created": int(time.time()),
        # What is loaded may be named by a folder of this machine; that goes into the record only.
        "model": call.model,
        "system_fingerprint": version or None,
    }


def _usage(capture: Capture) -> dict[str, int]:
    prompt, completion = capture.prompt_tokens or 0, capture.completion_tokens or 0
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _render_choice(call: UpstreamCall, choice: CapturedChoice, options: RenderOptions) -> dict[str, Any]:
    rendered: dict[str, Any] = {
        "index": choice.index,
        "logprobs": _render_logprobs(call, choice) if options.logprobs else None,
        "finish_reason": choice.finish_reason,
    }
    if choice.stop_sequence is not None:
        rendered["stop_reason"] = choice.stop_sequence  # as vLLM says it
    if call.kind == "chat":
        rendered["message"] = choice.output
    else:
        rendered["text"] = choice.output["content"]
    if options.return_token_ids:
        rendered["token_ids"] = choice.token_ids
        if call.kind == "text":
            rendered["prompt_token_ids"] = choice.prompt_token_ids
    return rendered


def _render_logprobs(call: UpstreamCall, choice: CapturedChoice) -> dict[str, Any]:
    # The engine reports ids, not strings: tokens are written as vLLM does under --return-tokens-as-token-ids.
    tokens = [f"token_id:{token}" for token in choice.token_ids or ()]
    logprobs = choice.logprobs or []
    if call.kind == "text":
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": None, "text_offset": None}
    content = [
        {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": []}
        for token, logprob in zip(tokens, logprobs, strict=False)
    ]
    return {"content": content, "refusal": None}


def _closing_events(
    call: UpstreamCall, head: dict[str, Any], capture: Capture, options: RenderOptions
) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for choice in capture.choices:
        rendered = _render_choice(call, choice, options)
        if rendered.pop("message", None) is not None:
            rendered["delta"] = {}
        else:
            rendered["text"] = ""
        events.append(head | {"choices": [rendered]})
    if options.return_token_ids and call.kind == "chat" and events:
        events[0]["prompt_token_ids"] = capture.choices[0].prompt_token_ids
    if options.include_usage:
        events.append(head | {"choices": [], "usage": _usage(capture)})
    return events

"""A served model as an upstream of the gateway. Knows nothing of how it is loaded."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from agentlightning.gateway.call import Answer, Api, Capture, StreamPiece, UpstreamCall
from agentlightning.gateway.upstream.base import Weighted
from agentlightning.gateway.upstream.engine import CONSTRAINED
from agentlightning.modelservice.served import Deployment, ServedModel


class ServedUpstream:
    """Passes each call to the engine that is current when it comes.

    Args:
        served: The model.
    """

    api: Api = "openai"

    def __init__(self, served: ServedModel) -> None:
        self._served = served

    def names(self) -> list[str]:
        """Its name and its aliases."""
        return [self._served.spec.name, *self._served.spec.aliases]

    async def list_models(self) -> list[str]:
        """The same."""
        return self.names()

    def weights_id(self, model: str) -> str | None:
        """Names the weights that answer now."""
        engine = self._served.engine
        upstream = None if engine is None else engine.upstream
        return upstream.weights_id(model) if isinstance(upstream, Weighted) else None

    async def aclose(self) -> None:
        """Nothing to free; the engines belong to the service."""

    async def complete(self, call: UpstreamCall) -> Answer:
        """Answer in one piece.

        Raises:
            CallError: 503 while there is no engine; else what the engine raises.
        """
        async with self._served.lease() as deployment:
            answer = await deployment.engine.upstream.complete(call)
            _label(call, answer.capture, deployment)
            return answer

    async def stream(self, call: UpstreamCall) -> AsyncGenerator[StreamPiece, None]:
        """Answer in pieces; raises what `complete` raises."""
        async with self._served.lease() as deployment, aclosing(deployment.engine.upstream.stream(call)) as pieces:
            async for piece in pieces:
                if piece.capture is not None:
                    _label(call, piece.capture, deployment)
                yield piece

    async def count_tokens(self, call: UpstreamCall) -> int:
        """Let the engine read the prompt; raises what `complete` raises."""
        async with self._served.lease() as deployment:
            return await deployment.engine.upstream.count_tokens(call)

    async def embed(self, body: dict[str, Any]) -> bytes:
        """Pass it on; raises what `complete` raises."""
        async with self._served.lease() as deployment:
            return await deployment.engine.upstream.embed(body)


def _label(call: UpstreamCall, capture: Capture, deployment: Deployment) -> None:
    """What a server that is not ours does not say of its answer."""
    if deployment.engine.is_exact:
        return
    capture.model_version = deployment.source.version
    if _is_constrained(call.body):
        for choice in capture.choices:
            choice.not_trainable_because = choice.not_trainable_because or CONSTRAINED


def _is_constrained(body: dict[str, Any]) -> bool:
    """Whether the server samples under a grammar; its log-probabilities are then those of what the grammar left."""
    response_format = body.get("response_format") or {}
    return (
        response_format.get("type", "text") != "text"
        or body.get("tool_choice") not in (None, "auto", "none")
        or any(name.startswith(("guided_", "structured_outputs")) for name in body)
    )

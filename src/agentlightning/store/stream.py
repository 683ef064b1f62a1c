"""Training events as Server-Sent Events: `GET /v1/agl/events/stream`. Knows `LightningStore`, not its implementations.

The id of a message is the event's `no`, so a client that connects again (`Last-Event-ID`) misses nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from agentlightning.kit.errors import AgentLightningError, BadInputError
from agentlightning.kit.http import unless_stopping
from agentlightning.store import verbs, wire
from agentlightning.store.base import LightningStore
from agentlightning.store.http import Endpoint, read_fields

_KEEP_ALIVE_S = 15.0
"""So often an idle stream says that it is there, for proxies that close silent connections."""


def stream_endpoint(store: LightningStore) -> Endpoint:
    """The endpoint. Parameters: `after`, `kind_in` (repeatable), `rollout_id`, as of `query_events`."""

    async def endpoint(request: Request) -> Response:
        fields = await read_fields(request)
        if (seen := request.headers.get("last-event-id")) is not None:
            fields["after"] = seen
        verb = wire.convert(fields, verbs.QueryEvents, strict=False)
        if "limit" in fields or "timeout" in fields:
            raise BadInputError("A stream has no limit and no timeout.", hint="Use GET /v1/agl/events for those.")
        await store.execute(msgspec.structs.replace(verb, limit=0))  # bad parameters are no stream
        return StreamingResponse(
            _messages(store, verb, request.scope), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    return endpoint


async def _messages(store: LightningStore, verb: verbs.QueryEvents, scope: Mapping[str, Any]) -> AsyncIterator[bytes]:
    yield b": connected\n\n"  # the client sees at once that it is
    verb.timeout = _KEEP_ALIVE_S
    try:
        while True:
            page = await unless_stopping(scope, store.execute(verb))
            if page is None:
                yield b": the server stops; come back with the last id\n\n"
                return
            for event in page.items:
                yield b"id: %d\nevent: %b\ndata: %b\n\n" % (
                    event.no,
                    event.kind.encode(),
                    wire.json_encoder.encode(event),
                )
            verb.after = page.last
            if not page.items:  # remembered by the client, but no message to it
                yield b"id: %d\n: waiting\n\n" % page.last
    except AgentLightningError as error:
        yield b"event: error\ndata: %b\n\n" % wire.json_encoder.encode(error.as_dict())

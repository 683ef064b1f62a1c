"""`agl store events`: what has happened in a store, once or as it happens. Knows no rows."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentlightning.cli.locations import StoreArgument, open_existing

if TYPE_CHECKING:
    from agentlightning.schemas import TrainingEvent

_PAGE = 1000
_WIDTH = 200


def register(group: typer.Typer) -> None:
    """Add the command to `agl store`."""
    group.command(
        help="Print training events, oldest first: what has happened to rollouts, attempts, resources.",
        epilog="Examples:  agl store events --kind rollout.completed  |  agl store events --follow --after now  |  "
        "agl store events http://127.0.0.1:4747 --json",
    )(events)


def events(
    store: StoreArgument = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens; ends with Ctrl-C.")] = False,
    kind: Annotated[list[str] | None, typer.Option("--kind", help="Only this kind; may be repeated.")] = None,
    rollout: Annotated[str | None, typer.Option("--rollout", metavar="ID", help="Only this rollout's.")] = None,
    after: Annotated[str, typer.Option(metavar="NO", help="Only events after this number; 'now' for new ones.")] = "0",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    asyncio.run(_print_events(store, _position(after), kind, rollout, follow=follow, as_json=as_json))


def _position(after: str) -> int | None:
    from agentlightning.kit.errors import BadInputError

    if after == "now":
        return None
    try:
        return int(after)
    except ValueError as error:
        raise BadInputError(f"--after {after!r} is no position.", hint="Give an event's number, or 'now'.") from error


async def _print_events(
    location: str | None,
    after: int | None,
    kinds: list[str] | None,
    rollout_id: str | None,
    *,
    follow: bool,
    as_json: bool,
) -> None:
    store = _open(location)
    try:
        if follow:
            async for event in store.watch_events(after=after, kinds=kinds, rollout_id=rollout_id):
                _print(event, as_json)
            return
        position = after if after is not None else sys.maxsize
        while page := await store.query_events(position, kinds=kinds, rollout_id=rollout_id, limit=_PAGE):
            for event in page:
                _print(event, as_json)
            position = page[-1].no
    finally:
        await store.close()


def _open(location: str | None) -> Any:
    if location is not None and location.startswith(("http://", "https://")):
        from agentlightning.store import LightningStoreClient

        return LightningStoreClient(location)
    return open_existing(location)


def _print(event: TrainingEvent, as_json: bool) -> None:
    from agentlightning.kit.clock import iso
    from agentlightning.store.wire import json_encoder

    if as_json:
        line = json_encoder.encode(event).decode()
    else:
        whose = "/".join(part for part in (event.rollout_id, event.attempt_id) if part)
        line = f"{event.no:>8}  {iso(event.time)}  {event.kind:<18} {whose}  {json_encoder.encode(event.data).decode()}"
        line = line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

"""`agl store gc` and `agl store prune`: what nobody needs any more goes, beside whoever uses the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from agentlightning.cli.locations import StoreArgument, open_existing
from agentlightning.cli.options import AsJson
from agentlightning.cli.output import print_json, progress, size

Report = Callable[[float, str], None]


def register(group: typer.Typer) -> None:
    """Add the commands to `agl store`."""
    group.command(
        help="Remove large values that nothing refers to any more. The store may be in use; Ctrl-C does no harm.",
        epilog="Example:  agl store gc  (then `agl store vacuum` gives the space back)",
    )(gc)
    group.command(
        help="Delete old rollouts that have ended, with attempts, spans and events, then collect garbage. "
        "Those with feedback, preferences or lineages stay unless --force.",
        epilog="Examples:  agl store prune --older-than 30d --dry-run  |  agl store prune --keep-last 100000",
    )(prune)


def gc(store: StoreArgument = None, as_json: AsJson = False) -> None:
    with progress("collecting garbage", as_json) as report:
        done = asyncio.run(_collect(store, report))
    if as_json:
        print_json(done)
    else:
        typer.echo(f"removed {done['removed']:,} payloads, {size(done['removed_bytes'])}; {done['payloads']:,} in use")


def prune(
    store: StoreArgument = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Only what ended that long ago: 30d, 12h, 4w.")
    ] = None,
    keep_last: Annotated[
        int | None, typer.Option("--keep-last", min=0, metavar="N", help="Never the newest N that have ended.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also what people judged, with the judgements.")] = False,
    as_json: AsJson = False,
) -> None:
    from agentlightning.store.retention import parse_age

    ended_before = None if older_than is None else time.time() - parse_age(older_than)
    with progress("pruning", as_json) as report:
        done = asyncio.run(_prune(store, report, ended_before, keep_last, force=force, dry_run=dry_run))
    if as_json:
        print_json(done)
        return
    verb = "would delete" if dry_run else "deleted"
    typer.echo(f"{verb} {done['deleted']:,} rollouts")
    if done["kept"]:
        typer.echo(f"kept {done['kept']:,} that people judged, e.g. {', '.join(done['kept_examples'][:3])} (--force)")
    if "removed" in done:
        typer.echo(f"removed {done['removed']:,} payloads, {size(done['removed_bytes'])}")


async def _collect(location: str | None, report: Report) -> dict[str, Any]:
    store = open_existing(location)
    try:
        return vars(await store.collect_garbage(report))
    finally:
        await store.close()


async def _prune(
    location: str | None,
    report: Report,
    ended_before: float | None,
    keep_last: int | None,
    *,
    force: bool,
    dry_run: bool,
) -> dict[str, Any]:
    store = open_existing(location)
    try:
        done = await store.prune(
            ended_before=ended_before, keep_last=keep_last, force=force, dry_run=dry_run, progress=report
        )
        if dry_run or not done.deleted:
            return vars(done)
        return vars(done) | vars(await store.collect_garbage(report))
    finally:
        await store.close()

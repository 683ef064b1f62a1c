"""`agl store replay`: a store from another one's events, as it is or as it was."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from agentlightning.cli.options import AsJson, moment
from agentlightning.cli.output import print_json, progress, report_rows

_HELP = """Build a store from the events of another one: as it is now, or as it was at some event or time.

TO has to be empty, or not there yet. FROM may be in use. Stopped or failed, TO is left as it was."""

_EXAMPLES = """Examples:

  agl store replay .agentlightning/store.db again.db

  agl store replay .agentlightning/store.db before.db --until-event 1200

  agl store replay postgresql://me@db.example/agl noon.db --until-time 2026-11-01T12:00"""


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command(help=_HELP, epilog=_EXAMPLES)(replay)


def replay(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A file or a postgresql:// URL.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The same; empty, or not there yet.")],
    until_event: Annotated[
        int | None, typer.Option(metavar="NO", help="Stop behind this event; `agl store events` shows numbers.")
    ] = None,
    until_time: Annotated[
        str | None, typer.Option(metavar="TIME", help="Stop behind this time (ISO 8601; UTC unless it says).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    from agentlightning.kit.clock import iso
    from agentlightning.store.replay import rebuild_store

    until = moment(until_time, "--until-time")
    with progress("replaying", as_json, stopped=f"{target} is as it was; the same command begins again") as report:
        done = rebuild_store(source, target, until_no=until_event, until_time=until, progress=report)
    if done.without_history:
        sys.stderr.write(f"{done.without_history:,} rollouts have no events and were left out\n")
    if as_json:
        print_json(
            {
                "events": done.events,
                "last": done.last,
                "last_time": done.last_time,
                "rows": done.rows,
                "without_history": done.without_history,
            }
        )
        return
    last = "" if done.last_time is None else f" up to number {done.last}, {iso(done.last_time)}"
    report_rows(f"replayed {done.events:,} events{last}", done.rows, as_json)

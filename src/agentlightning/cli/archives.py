"""`agl store export | import`: a store as files, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentlightning.cli.options import AsJson, moment
from agentlightning.cli.output import progress, report_rows

_EXPORT = """Write a store, in use or not, to a folder of JSON lines or Parquet files.

Interrupted, the same command continues; repeated later, it brings the folder up to date. With a filter, everything that
belongs to the chosen rollouts goes with them."""

_EXPORT_EXAMPLES = """Examples:

  agl store export .agentlightning/store.db monday

  agl store export postgresql://me@db.example/agl spans --format parquet --mode train --status succeeded

  agl store export store.db november --format jsonl.zst --since 2026-11-01"""

_IMPORT = """Add what was exported to a store, all of it or nothing; the store is created when missing.

What is there already is passed over. Rows of the same name that say something else are refused, and named."""

_IMPORT_EXAMPLES = """Examples:

  agl store import monday restored.db

  agl store import monday postgresql://me@db.example/agl"""


def register(group: typer.Typer) -> None:
    """Add the commands."""
    group.command("export", help=_EXPORT, epilog=_EXPORT_EXAMPLES)(export)
    group.command("import", help=_IMPORT, epilog=_IMPORT_EXAMPLES)(import_)


def export(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A file or a postgresql:// URL.")],
    target: Annotated[Path, typer.Argument(metavar="TO", help="Folder; empty, not there yet, or this export's.")],
    encoding: Annotated[str, typer.Option("--format", help="jsonl, jsonl.zst or parquet.")] = "jsonl",
    mode: Annotated[list[str] | None, typer.Option(help="Only rollouts of this mode (repeatable).")] = None,
    status: Annotated[list[str] | None, typer.Option(help="Only rollouts in this status (repeatable).")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only rollouts since this date or time (ISO 8601; UTC unless it says).")
    ] = None,
    part_rows: Annotated[int, typer.Option(help="Rows in a file.", min=1)] = 50_000,
    as_json: AsJson = False,
) -> None:
    from agentlightning.store.transfer import Selection, export_store

    selection = Selection(modes=tuple(mode or ()), statuses=tuple(status or ()), since=moment(since, "--since"))
    with progress("exporting", as_json) as report:
        rows = export_store(
            source, target, encoding=encoding, selection=selection, part_rows=part_rows, progress=report
        )
    report_rows(f"exported to {target}", rows, as_json)


def import_(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="Folder that `agl store export` wrote.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="A file or a postgresql:// URL.")],
    as_json: AsJson = False,
) -> None:
    from agentlightning.store.transfer import import_store

    with progress("importing", as_json) as report:
        rows = import_store(source, target, progress=report)
    report_rows("imported", rows, as_json)

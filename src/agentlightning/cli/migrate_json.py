"""`agl migrate-json`: JSON files of an earlier installation into the platform's database."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any

import typer

from agentlightning.cli.options import AsJson
from agentlightning.cli.up import HomeOption

HELP = """Migrate JSON and JSON Lines files into the platform's database: users, agents, knowledge, tasks, experiments,
conversations.

A file's name says what it holds: users.json, agents.json, knowledge_items.jsonl, tasks-2025.json, rl_experiments.json,
conversations.json; or it holds lists by these names. Every record is checked; what cannot be taken over is listed with
its reason, and the exit code is 1. Killed, the same command goes on: nothing is there twice."""

EPILOG = """Examples:

  agl migrate-json ./data --dry-run

  agl migrate-json ./data --report report.json

  DATABASE_URL=postgresql://… agl migrate-json users.json agents.json tasks.jsonl

  agl migrate-json --schema > migrate-json.schema.json"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("migrate-json", help=HELP, epilog=EPILOG)(migrate_json)


def migrate_json(
    paths: Annotated[list[Path] | None, typer.Argument(help="Files and folders.", metavar="PATH...")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, change nothing.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write what was done to this file, as JSON.")] = None,
    owner: Annotated[str | None, typer.Option(help="Who gets what names no user; else the first admin.")] = None,
    show_schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the files, and end.")] = False,
    home: HomeOption = None,
    as_json: AsJson = False,
) -> None:
    from agentlightning.cli.output import print_json
    from agentlightning.kit.bridge import run_sync
    from agentlightning.kit.errors import BadInputError
    from agentlightning.platform import app as _app
    from agentlightning.platform.jsonfiles.shapes import schema

    del _app  # says which package is missing, if one is
    if show_schema:
        print_json(schema())
        return
    if not paths:
        raise BadInputError("Give files or folders.", hint="agl migrate-json --help")
    if report is not None and not report.resolve().parent.is_dir():
        raise BadInputError(f"There is no folder {report.resolve().parent}.")
    done = run_sync(_run(paths, home, owner, dry_run=dry_run, quiet=as_json))
    if report is not None:
        from agentlightning.kit.files import write_atomic

        write_atomic(report, _as_json(done))
    if as_json:
        print_json(done.as_dict())
    else:
        _say(done, report)
    if done.total.refused:
        raise typer.Exit(1)


async def _run(paths: list[Path], home: Path | None, owner: str | None, *, dry_run: bool, quiet: bool) -> Any:
    from agentlightning.cli.output import progress
    from agentlightning.platform.database import Database
    from agentlightning.platform.jsonfiles.migrating import Migration
    from agentlightning.platform.jsonfiles.reading import sources
    from agentlightning.platform.jsonfiles.writing import Writer
    from agentlightning.platform.migrations import check_revision
    from agentlightning.platform.settings import load_settings

    settings = load_settings(**({} if home is None else {"home": home}))
    found = sources(paths)
    with _location(settings, dry_run=dry_run) as location:
        database = Database(location)
        try:
            await check_revision(database)
            with progress("migrating", quiet) as bar:
                return await Migration(database, Writer(settings, owner), dry_run=dry_run).run(found, bar)
        finally:
            await database.close()


@contextlib.contextmanager
def _location(settings: Any, *, dry_run: bool) -> Generator[str]:
    """The database. The tables of the platform's own file are made; a dry run of a new one makes them elsewhere."""
    from agentlightning.platform.migrations import migrate

    if settings.database_url is not None:
        yield settings.location
    elif dry_run and not Path(settings.location.removeprefix("sqlite:///")).exists():
        with tempfile.TemporaryDirectory() as folder:
            location = f"sqlite:///{folder}/platform.db"
            migrate(location)
            yield location
    else:
        migrate(settings.location)
        yield settings.location


def _as_json(done: Any) -> bytes:
    import orjson

    return orjson.dumps(done.as_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _say(done: Any, report: Path | None) -> None:
    from agentlightning.cli.output import duration, print_table

    columns = ("read", "created", "updated", "unchanged", "refused")
    rows = [(kind, *(f"{getattr(counts, name):,}" for name in columns)) for kind, counts in done.kinds.items()]
    title = "dry run: nothing was changed" if done.dry_run else f"migrated in {duration(done.seconds)}"
    print_table(title, ("", *columns), rows, empty="no records found")
    for entry in done.ignored[:_SHOWN]:
        typer.echo(f"  ignored {entry['file']}: {entry['reason']}")
    for entry in done.notes[:_SHOWN]:
        typer.echo(f"  {entry['file']} [{entry['index']}]: {'; '.join(entry['notes'])}")
    for entry in done.refused[:_SHOWN]:
        hint = f" ({entry['hint']})" if entry["hint"] else ""
        typer.echo(f"  refused {entry['file']} [{entry['index']}]: {entry['reason']}{hint}", err=True)
    hidden = [f"{len(part) - _SHOWN:,} more {name}" for name, part in _lists(done) if len(part) > _SHOWN]
    if hidden:
        where = f"see {report}" if report is not None else "--report FILE has them all"
        typer.echo(f"  {', '.join(hidden)}: {where}")
    if done.kinds.get("knowledge") and done.kinds["knowledge"].created and not done.dry_run:
        typer.echo("  knowledge is found by words now; its vectors are made when `agl up` runs")


def _lists(done: Any) -> list[tuple[str, list[Any]]]:
    return [("ignored", done.ignored), ("with notes", done.notes), ("refused", done.refused)]


_SHOWN = 20

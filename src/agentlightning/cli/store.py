"""`agl store`: migrate, describe, compact, back up, restore and copy the database of a store; its other commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from agentlightning.cli import archives, events, judged, lineages, replay, retention, store_server
from agentlightning.cli.locations import StoreArgument, chosen_location
from agentlightning.cli.options import AsJson
from agentlightning.cli.output import print_json, print_table, progress, report_rows, size


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(
        help="Look after the store's database, its history, and what people said of its rollouts.",
        no_args_is_help=True,
    )
    store_server.register(group)
    group.command(
        help="Bring the tables to this version. Files are migrated when they are opened, too; servers only here.",
        epilog="Examples:  agl store migrate  |  agl store migrate postgresql://me@db.example/agl",
    )(migrate)
    group.command(help="Show version, size and content.", epilog="Example:  agl store info other.db --json")(info)
    group.command(
        help="Give back unused space and renew the planner's statistics.",
        epilog="Example:  agl store vacuum  (stop what uses the file first)",
    )(vacuum)
    group.command(
        help="Write a store, in use or not, to one file that is a store itself.",
        epilog="Examples:  agl store backup monday.db  |  agl store backup monday.db postgresql://me@db.example/agl",
    )(backup)
    group.command(
        help="Fill an empty store from a backup. Nothing is overwritten.",
        epilog="Examples:  agl store restore monday.db  |  agl store restore monday.db postgresql://me@db.example/agl",
    )(restore)
    group.command(
        help="Copy a store into an empty one of either kind, e.g. a file to PostgreSQL. Interrupted, it continues.",
        epilog="Example:  agl store copy .agentlightning/store.db postgresql://me@db.example/agl",
    )(copy)
    archives.register(group)
    retention.register(group)
    judged.register(group)
    lineages.register(group)
    events.register(group)
    replay.register(group)
    app.add_typer(group, name="store")


def migrate(store: StoreArgument = None, as_json: AsJson = False) -> None:
    from agentlightning.store import maintenance

    before, after = maintenance.migrate(chosen_location(store))
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        typer.echo(f"up to date: schema version {after}")
    else:
        typer.echo(f"migrated from schema version {before} to {after}")


def info(store: StoreArgument = None, as_json: AsJson = False) -> None:
    from agentlightning.kit.clock import iso
    from agentlightning.store import maintenance

    found = maintenance.info(chosen_location(store))
    if as_json:
        print_json(found)
        return
    rows: list[tuple[str, Any]] = [
        ("store", found["store"]),
        ("database", found["database"]),
        ("schema version", found["schema_version"]),
        ("size", size(found["bytes"])),
        ("payloads, stored", size(found["payloads"]["stored_bytes"])),
        ("payloads, unpacked", size(found["payloads"]["bytes"])),
        *((name, f"{count:,}") for name, count in found["rows"].items()),
        *((f"rollouts {status}", f"{count:,}") for status, count in found["rollouts_by_status"].items()),
        *(
            (name.replace("_", " "), found[name] and iso(found[name]))
            for name in ("first_rollout_at", "last_rollout_at")
        ),
    ]
    print_table("", ("what", "value"), rows)


def vacuum(store: StoreArgument = None, as_json: AsJson = False) -> None:
    from agentlightning.store import maintenance

    before, after = maintenance.vacuum(chosen_location(store))
    if as_json:
        print_json({"bytes_before": before, "bytes_after": after})
    else:
        typer.echo(f"{size(before)} before, {size(after)} after")


def backup(
    file: Annotated[Path, typer.Argument(help="File to write; must not exist.")],
    store: StoreArgument = None,
    as_json: AsJson = False,
) -> None:
    from agentlightning.store import maintenance

    with progress("backing up", as_json) as report:
        rows = maintenance.backup(chosen_location(store), file, report)
    report_rows(f"backed up to {file}", rows, as_json)


def restore(
    file: Annotated[Path, typer.Argument(help="A backup.")],
    store: StoreArgument = None,
    as_json: AsJson = False,
) -> None:
    from agentlightning.store import maintenance

    location = chosen_location(store)
    with progress("restoring", as_json) as report:
        rows = maintenance.restore(file, location, report)
    report_rows("restored", rows, as_json)


def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A file or a postgresql:// URL.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The same; empty, or not there yet.")],
    as_json: AsJson = False,
) -> None:
    from agentlightning.store import maintenance

    with progress("copying", as_json) as report:
        rows = maintenance.copy(source, target, report)
    report_rows("copied", rows, as_json)

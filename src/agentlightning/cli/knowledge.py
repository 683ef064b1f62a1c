"""`agl knowledge`: the platform's knowledge from the machine itself: import, search, list."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from agentlightning.cli.options import AsJson
from agentlightning.cli.platform_parts import platform_at

HomeOption = Annotated[Path | None, typer.Option(help="Folder of the database; else AGL_HOME.")]
CategoryOption = Annotated[str | None, typer.Option(help="Only of this category; for an import: put them into it.")]
TagOption = Annotated[list[str] | None, typer.Option("--tag", help="Only with this tag, or to be given; repeatable.")]

IMPORT = """Import documents: a folder with Markdown, text, HTML and PDF, or the documentation of installed packages.

Running it again goes on where it was stopped, skips what has not changed and replaces what has."""

IMPORT_EPILOG = """Examples:

  agl knowledge import ./docs --category handbook

  agl knowledge import --packages

  agl knowledge import --package numpy --package httpx"""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    knowledge = typer.Typer(help="Import, search and list the platform's knowledge.", no_args_is_help=True)
    knowledge.command("import", help=IMPORT, epilog=IMPORT_EPILOG)(import_)
    knowledge.command("search", help="Search by words and meaning.")(search)
    knowledge.command("list", help="List items by number.")(list_)
    app.add_typer(knowledge, name="knowledge")


def import_(
    folder: Annotated[Path | None, typer.Argument(help="A folder.")] = None,
    packages: Annotated[bool, typer.Option("--packages", help="Of all installed packages.")] = False,
    package: Annotated[list[str] | None, typer.Option(help="Of this package only; repeatable.")] = None,
    category: CategoryOption = None,
    tag: TagOption = None,
    embed: Annotated[bool, typer.Option(help="Make the vectors at once, not when `agl up` runs.")] = True,
    home: HomeOption = None,
    as_json: AsJson = False,
) -> None:
    from agentlightning.kit.bridge import run_sync
    from agentlightning.kit.errors import BadInputError

    if (folder is None) == (not packages and not package):
        raise BadInputError("Give a folder, --packages or --package NAME.", hint="agl knowledge import --help")
    report = run_sync(_import(home, folder, package or [], category, tag or [], embed=embed, quiet=as_json))
    _say(report, as_json)


def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    mode: Annotated[str, typer.Option(help="hybrid, text (words) or semantic (meaning).")] = "hybrid",
    category: CategoryOption = None,
    tag: TagOption = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most to show.")] = 10,
    home: HomeOption = None,
    as_json: AsJson = False,
) -> None:
    from agentlightning.cli.output import print_json, print_table
    from agentlightning.kit.bridge import run_sync
    from agentlightning.kit.errors import BadInputError

    if mode not in ("hybrid", "text", "semantic"):
        raise BadInputError(f"There is no mode {mode!r}.", hint="hybrid, text or semantic")
    found = run_sync(_search(home, query[:1000], mode, category, tag or [], limit))
    if as_json:
        print_json(found["items"])
        return
    rows = [
        (entry["item"]["id"], f"{entry['score']:.4f}", entry["item"]["title"], _fragment(entry))
        for entry in found["items"]
    ]
    print_table("", ("id", "score", "title", "where"), rows, empty="nothing found")


def list_(
    category: CategoryOption = None,
    tag: TagOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most to show.")] = 50,
    after: Annotated[int, typer.Option(min=0, help="Begin after this number.")] = 0,
    home: HomeOption = None,
    as_json: AsJson = False,
) -> None:
    from agentlightning.cli.output import print_json, print_table
    from agentlightning.kit.bridge import run_sync

    items = run_sync(_list(home, after, limit, category, tag or []))
    if as_json:
        print_json(items)
        return
    rows = [(item["id"], item["title"], item["category"], ", ".join(item["tags"])) for item in items]
    print_table("", ("id", "title", "category", "tags"), rows)


async def _import(
    home: Path | None,
    folder: Path | None,
    packages: list[str],
    category: str | None,
    tags: list[str],
    *,
    embed: bool,
    quiet: bool,
) -> dict[str, Any]:
    from agentlightning.cli.output import progress
    from agentlightning.platform.knowledge.folders import folder_sources
    from agentlightning.platform.knowledge.importing import Report, import_sources
    from agentlightning.platform.knowledge.packages import package_sources

    def sources() -> Iterable[Any]:
        return package_sources(packages) if folder is None else folder_sources(folder, category=category, tags=tags)

    async with platform_at(home) as platform:
        total = 0
        with progress("reading", quiet) as bar:
            for _ in sources():
                total += 1
        with progress("importing", quiet) as bar:

            def told(done: Report) -> None:
                seen = done.sources + sum(done.refused.values())
                bar(seen / max(1, total), f"{done.items:,} items")

            report = await import_sources(platform.database, sources(), "system", told)
        result = report.as_dict()
        if embed:
            waiting = (await platform.knowledge.status())["waiting_for_vectors"]
            with progress("embedding", quiet) as bar:
                count = max(1, waiting, report.items)

                def told_vectors(done: int) -> None:
                    bar(done / max(count, done), f"{done:,} vectors")

                result["embedded"] = await platform.knowledge.indexer.drain(told_vectors)
        return result


async def _search(
    home: Path | None, query: str, mode: Any, category: str | None, tags: list[str], limit: int
) -> dict[str, Any]:
    from agentlightning.platform.knowledge.service import SearchQuery

    async with platform_at(home) as platform:
        return await platform.knowledge.find(SearchQuery(query, category, tuple(tags), mode, limit))


async def _list(
    home: Path | None, after: int, limit: int, category: str | None, tags: list[str]
) -> list[dict[str, Any]]:
    from agentlightning.platform.knowledge.service import plain

    async with platform_at(home) as platform:
        return [plain(item, preview=200) for item in await platform.knowledge.page(after, limit, category, tags)]


def _say(report: dict[str, Any], as_json: bool) -> None:
    from agentlightning.cli.output import duration, print_json

    if as_json:
        print_json(report)
        return
    parts = [f"{report['items']:,} items from {report['sources']:,} documents"]
    for name, text in (("unchanged", "unchanged"), ("replaced", "items replaced"), ("duplicates", "near-duplicates")):
        if report[name]:
            parts.append(f"{report[name]:,} {text}")
    parts += [f"{count:,} not read ({reason})" for reason, count in report["refused"].items()]
    if "embedded" in report:
        parts.append(f"{report['embedded']:,} vectors")
    typer.echo(f"imported in {duration(report['seconds'])}: {', '.join(parts)}")
    for problem in report["problems"]:
        typer.echo(f"  {problem}", err=True)


def _fragment(entry: dict[str, Any]) -> str:
    found = entry["highlights"]
    return " ".join(found[0]["text"].split())[:160] if found else ""

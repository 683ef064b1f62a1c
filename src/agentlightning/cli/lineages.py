"""`agl store lineages`: what was developed side by side, as a table and a picture."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentlightning.cli.locations import StoreOption, open_existing
from agentlightning.cli.options import AsJson
from agentlightning.cli.output import print_json, print_table

if TYPE_CHECKING:
    from agentlightning.algorithm.judged.side_by_side import Row


_PICTURES = (".png", ".svg", ".pdf")


_TOTALS = ("gain", "preferred", "locked")


def register(group: typer.Typer) -> None:
    """Add the command to `agl store`."""
    group.command(
        help="Show the lineages of a session side by side: each one's score by cycle, what is locked, what was "
        "preferred. Without a session: list the sessions.",
        epilog="Examples:  agl store lineages  |  agl store lineages camp-logo --plot logo.png",
    )(lineages)


def lineages(
    session: Annotated[str | None, typer.Argument(help="Which session.", show_default=False)] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw scores by cycle into this PNG or SVG file.")] = None,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    from agentlightning.kit.errors import BadInputError

    if session is None:
        if plot is not None:
            raise BadInputError("Which session shall be drawn?", hint="agl store lineages SESSION --plot FILE")
        _list(store, as_json=as_json)
        return
    rows = asyncio.run(_rows(store, session))
    if plot is not None:
        from agentlightning.trainer.curve import draw_lineages

        if plot.suffix.lower() not in _PICTURES:
            raise BadInputError(f"{plot} is no picture that can be drawn.", hint=f"Name it {' or '.join(_PICTURES)}.")
        draw_lineages(rows, plot, title=session)
    if as_json:
        print_json([row.as_dict() for row in rows])
        return
    cycles = sorted({cell.cycle for row in rows for cell in row.cells})
    print_table(
        f"{session}: mean score from 0 to 10 by cycle",
        ("lineage", *(f"cycle {cycle}" if len(cycles) < 5 else f"{cycle}" for cycle in cycles), *_TOTALS),
        [_line(row, cycles) for row in rows],
    )
    if plot is not None:
        typer.echo(f"picture: {plot}")


def _line(row: Row, cycles: list[int]) -> list[Any]:
    by_cycle = {cell.cycle: cell for cell in row.cells}
    scores = [
        None if cycle not in by_cycle else "not scored" if (score := by_cycle[cycle].score) is None else f"{score:.1f}"
        for cycle in cycles
    ]
    wins, losses = sum(cell.wins for cell in row.cells), sum(cell.losses for cell in row.cells)
    gain = None if row.gain is None else f"{row.gain:+.1f}"
    return [row.name, *scores, gain, f"{wins} of {wins + losses}", "yes" if row.lineage.locked else "no"]


async def _rows(store: str | None, session: str) -> list[Row]:
    from agentlightning.algorithm.judged.side_by_side import side_by_side

    opened = open_existing(store)
    try:
        return await side_by_side(opened, session)
    finally:
        await opened.close()


def _list(store: str | None, *, as_json: bool) -> None:
    async def read() -> Any:
        opened = open_existing(store)
        try:
            return await opened.query_lineage_sessions(sort_by="create_time", sort_order="desc", limit=50)
        finally:
            await opened.close()

    found = asyncio.run(read())
    if as_json:
        print_json([item.model_dump() for item in found])
        return
    rows = [(item.session_id, item.name, len(item.lineages)) for item in found]
    print_table("", ("session", "name", "lineages"), rows, empty="no sessions yet")

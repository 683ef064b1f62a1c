"""Tables for people, JSON for programs."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any


def print_json(value: Any) -> None:
    """Print `value` as indented JSON."""
    import orjson

    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode() + "\n")


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str = "nothing yet"
) -> None:
    """Print a table; `None` cells are shown as a dash."""
    from rich.console import Console
    from rich.table import Table

    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    count = 0
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
        count += 1
    console = Console()
    if title and count:
        console.print(title, style="italic")
    if count:
        console.print(table)
    else:
        console.print(empty)


def percent(value: float | None) -> str:
    """`0.8734` as `87.3 %`; a reward beyond [0, 1] is no share and stays a number."""
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if 0 <= value <= 1 else f"{value:.3g}"


def interval(evaluation: dict[str, Any]) -> str:
    """`87.3 %  [82.6, 90.9]`; `[?]` where one value allows no interval."""
    low, high = evaluation["ci_low"], evaluation["ci_high"]
    known = all(bound is not None and math.isfinite(bound) for bound in (low, high))
    scale = 100 if 0 <= evaluation["accuracy"] <= 1 else 1
    bounds = f"[{scale * low:.1f}, {scale * high:.1f}]" if known else "[?]"
    return f"{percent(evaluation['accuracy'])}  {bounds}"


def duration(seconds: float) -> str:
    """`95` as `1 min 35 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(count: int) -> str:
    """Bytes as `12.3 MiB`."""
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


def report_rows(what: str, rows: dict[str, int], as_json: bool) -> None:
    """Say to how many rows of each table something was done."""
    if as_json:
        print_json({"rows": rows})
        return
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in rows.items() if count)
    sys.stdout.write(f"{what}: {counts or 'nothing'}\n")


@contextmanager
def progress(
    what: str, quiet: bool, *, stopped: str = "nothing is lost; the same command continues"
) -> Generator[Callable[[float, str], None]]:
    """A bar on standard error, where it does not mix with results; Ctrl-C is answered by what to do next."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %  {task.fields[part]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as bar:
        task = bar.add_task(what, total=1.0, part="")

        def report(fraction: float, part: str) -> None:
            bar.update(task, completed=fraction, part=part)

        try:
            yield report
        except KeyboardInterrupt:
            bar.stop()
            sys.stderr.write(f"stopped: {stopped}\n")
            raise

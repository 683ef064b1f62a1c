"""Pictures: the learning curve of a run, lineages side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentlightning.algorithm.judged.side_by_side import Row
from agentlightning.kit.errors import MissingExtraError


def draw_curve(events: list[dict[str, Any]], path: Path, *, title: str = "") -> Path:
    """Draw training reward and held-out accuracy (with its 95 % interval) by step.

    Args:
        events: Entries of `metrics.jsonl`.
        path: Where the PNG goes.
        title: Shown above the plot.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt, ticker = _matplotlib()
    steps = [e for e in events if e["type"] == "step" and e.get("reward") is not None]
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    axes.plot(
        [e["step"] for e in steps],
        [e["reward"] for e in steps],
        color="#9aa5b1",
        lw=1.5,
        label="training reward",
    )
    colors = ("#2563eb", "#dc2626", "#059669", "#d97706")
    names = sorted({e.get("name", "val") for e in events if e["type"] == "eval"})
    for color, name in zip(colors, names, strict=False):
        points = sorted(
            (e for e in events if e["type"] == "eval" and e.get("name", "val") == name),
            key=lambda e: e["step"],
        )
        x = [e["step"] for e in points]
        y = [e["accuracy"] for e in points]
        axes.plot(x, y, "o-", color=color, label=f"held-out: {name}" if name != "val" else "held-out")
        axes.fill_between(x, [e["ci_low"] for e in points], [e["ci_high"] for e in points], color=color, alpha=0.15)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("mean reward")
    axes.set_ylim(0, 1) if all(0 <= (e.get("reward") or 0) <= 1 for e in steps) else None
    axes.grid(alpha=0.25)
    axes.set_title(title)
    axes.legend(loc="lower right", frameon=False)
    return _saved(plt, figure, path)


def draw_lineages(rows: Sequence[Row], path: Path, *, title: str = "") -> Path:
    """Draw each lineage's mean score (0 to 10) by cycle; what is locked has a ring around its newest point.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt, ticker = _matplotlib()
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    for number, row in enumerate(rows):
        scored = [(cell.cycle, cell.score) for cell in row.cells if cell.score is not None]
        if not scored:
            continue
        cycles, scores = zip(*scored, strict=True)
        color = f"C{number % 10}"
        axes.plot(cycles, scores, "o-", color=color, label=row.name + (" (locked)" if row.lineage.locked else ""))
        if row.lineage.locked:
            axes.plot(cycles[-1], scores[-1], "o", ms=13, mfc="none", mec=color)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set_xlabel("cycle")
    axes.set_ylabel("mean score")
    axes.set_ylim(-0.3, 10.3)
    axes.grid(alpha=0.25)
    axes.set_title(title)
    if axes.lines:
        axes.legend(loc="lower right", frameon=False)
    return _saved(plt, figure, path)


def _matplotlib() -> tuple[Any, Any]:
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
        from matplotlib import ticker
    except ImportError as error:
        raise MissingExtraError("Drawing needs matplotlib.", hint="pip install 'agentlightning[learn]'") from error
    return plt, ticker


def _saved(plt: Any, figure: Any, path: Path) -> Path:
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return path

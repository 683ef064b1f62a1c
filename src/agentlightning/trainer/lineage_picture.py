"""The score by round of a prompt optimisation as a PNG."""

from __future__ import annotations

from pathlib import Path

from agentlightning.algorithm.prompt import Tree
from agentlightning.kit.errors import MissingExtraError


def draw_lineage(tree: Tree, path: Path, *, title: str = "") -> Path:
    """Draw the best validation score after each round with its 95 % interval, and the score of every candidate.

    Args:
        tree: What was read by `read_tree`.
        path: Where the PNG goes.
        title: Shown above the plot.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
        from matplotlib import ticker
    except ImportError as error:
        raise MissingExtraError("Drawing needs matplotlib.", hint="pip install 'agentlightning[learn]'") from error

    rounds = [record for record in tree.rounds if record["n"]]
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    dots = [(node.round, score["mean"]) for node in tree.nodes.values() if (score := node.scores.get("val"))]
    axes.plot([x for x, _ in dots], [y for _, y in dots], "o", color="#9aa5b1", ms=4, label="candidates")
    x = [record["round"] for record in rounds]
    axes.plot(x, [record["mean"] for record in rounds], "o-", color="#2563eb", label="best so far")
    low, high = ([record[bound] for record in rounds] for bound in ("low", "high"))
    axes.fill_between(x, low, high, color="#2563eb", alpha=0.15)
    for record in rounds:
        axes.annotate(
            f"{record['spent_calls']} calls",
            (record["round"], record["mean"]),
            xytext=(0, 8),
            textcoords="offset points",
            fontsize=7,
            ha="center",
        )
    held_out = next((c for c in (tree.result or {}).get("comparisons", []) if c["held_out"]), None)
    if held_out is not None:
        axes.axhline(held_out["before"], color="#dc2626", ls=":", lw=1, label=f"{held_out['data']}: before")
        axes.axhline(held_out["after"], color="#059669", ls=":", lw=1, label=f"{held_out['data']}: after")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set_xlabel("round")
    axes.set_ylabel("mean reward")
    axes.grid(alpha=0.25)
    axes.set_title(title)
    axes.legend(loc="best", frameon=False, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return path

"""`agl lineage`: where the prompts of an optimisation came from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from agentlightning.cli.options import AsJson
from agentlightning.cli.output import percent, print_json

_SHORT = 90
_WIDE = 400


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        help="Show the prompts of an optimisation as a tree: parents, critiques, scores, cost.",
        epilog="Examples:  agl lineage RUN  |  agl lineage RUN --candidate 3f9c  |  agl lineage RUN --picture tree.png",
    )(lineage)


def lineage(
    run: Annotated[str, typer.Argument(help="Run, or the beginning of its name.")],
    candidate: Annotated[str | None, typer.Option(help="Show the prompts of this candidate.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the score by round as a PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    from rich.console import Console

    from agentlightning.algorithm.prompt import read_tree

    directory = _find(run)
    tree = read_tree(directory)
    assert tree is not None  # _find looks for it
    if picture is not None:
        from agentlightning.trainer.lineage_picture import draw_lineage

        draw_lineage(tree, picture, title=directory.name)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)  # nobody wants a file with broken lines
    if as_json:
        print_json(tree.as_dict())
    elif candidate is not None:
        _show_candidate(console, tree, candidate)
    else:
        _show_tree(console, tree, directory.name)
        if picture is not None:
            console.print(f"drawn: {picture}", markup=False, highlight=False)


def _find(run: str) -> Path:
    from agentlightning.config import Settings
    from agentlightning.kit.errors import BadInputError, NotFoundError

    root = Settings().runs_path
    found = sorted(path.parent for path in root.glob("*/lineage.jsonl")) if root.is_dir() else []
    exact = [path for path in found if path.name == run]
    matching = exact or [path for path in found if path.name.startswith(run)]
    if not matching:
        names = ", ".join(path.name for path in found[-5:]) or "none"
        raise NotFoundError(f"There is no optimisation {run!r}.", hint=f"There are: {names}.")
    if len(matching) > 1:
        raise BadInputError(f"{run!r} could be {', '.join(path.name for path in matching)}.", hint="Write more of it.")
    return matching[0]


def _show_tree(console: Any, tree: Any, name: str) -> None:
    from rich.text import Text
    from rich.tree import Tree

    best = (tree.result or (tree.rounds[-1] if tree.rounds else {})).get("best")
    why = f"  {tree.run['why']}" if tree.run.get("why") else ""
    root = Tree(Text(f"{name}: {tree.run.get('optimizer', '?')}{why}"))

    def add(branch: Any, node: Any) -> None:
        child = branch.add(Text(_line(node, tree, is_best=node.id == best)))
        for name in node.children:
            add(child, tree.nodes[name])

    for node in tree.roots:
        add(root, node)
    console.print(root)
    if tree.dropped:
        from collections import Counter

        reasons = Counter(drop["reason"] for drop in tree.dropped)
        told = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
        console.print(Text(f"never ran: {told}"))
    for comparison in (tree.result or {}).get("comparisons", []):
        gain, low, high = comparison["gain"]
        kind = "held out" if comparison["held_out"] else "chosen on"
        console.print(
            Text(
                f"{comparison['data']} ({kind}, n={comparison['n']}): {percent(comparison['before'])} -> "
                f"{percent(comparison['after'])}, gain {gain:+.3f} [{low:+.3f}, {high:+.3f}]"
            )
        )


def _line(node: Any, tree: Any, *, is_best: bool) -> str:
    score = node.scores.get("val")
    told = f"{percent(score['mean'])} (n={score['n']})" if score and score["n"] else "fell out early"
    parent = tree.nodes.get(node.parents[0]) if node.parents else None
    before = parent.scores.get("val") if parent else None
    if score and before and score["n"] and before["n"]:
        told += f" {score['mean'] - before['mean']:+.3f}"
    critique = " ".join(node.critique.split())
    critique = critique if len(critique) <= _SHORT else f"{critique[: _SHORT - 1]}…"
    mark = "★ " if is_best else ""
    return f"{mark}{node.id}  round {node.round}  {node.origin}  {told}  {critique or node.note}".rstrip()


def _show_candidate(console: Any, tree: Any, name: str) -> None:
    import difflib

    from rich.text import Text

    from agentlightning.kit.errors import NotFoundError

    found = [node for node in tree.nodes.values() if node.id.startswith(name)]
    if len(found) != 1:
        raise NotFoundError(
            f"{len(found)} candidates begin with {name!r}.", hint=f"There are: {', '.join(list(tree.nodes)[:12])}."
        )
    node = found[0]
    console.print(Text(_line(node, tree, is_best=False)))
    if node.critique:
        console.print(Text(f"\n{node.critique}"))
    parent = tree.nodes.get(node.parents[0]) if node.parents else None
    for prompt, text in node.prompts.items():
        console.print(Text(f"\n--- {prompt}\n{text}\n---"))
        if parent is not None and parent.prompts.get(prompt) != text:
            old = parent.prompts.get(prompt, "").splitlines()
            changes = difflib.unified_diff(old, text.splitlines(), parent.id, node.id, lineterm="", n=1)
            console.print(Text("\n".join(changes)))

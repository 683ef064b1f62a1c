"""`agl nano`: the embedded model: where it is, and how to build it again from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(help="The embedded model: show it, rebuild it.", no_args_is_help=True)
    group.command(help="Print the folder of the embedded model.", epilog="Example:  agl nano path")(path)
    group.command(
        help="Rebuild the embedded model from scratch: tokenizer, data, pre-training.",
        epilog="Example:  agl nano build --out ./nano --seed 0",
    )(build)
    app.add_typer(group, name="nano")


def path() -> None:
    from agentlightning import nano

    typer.echo(str(nano.model_path()))


def build(
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")] = Path("nano-model"),
    seed: Annotated[int, typer.Option(help="Seeds data, initial weights and order.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; part of what makes a build reproducible.", min=1)] = 1,
    steps: Annotated[int | None, typer.Option(help="Fewer steps than the recipe, for a trial.", min=1)] = None,
) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from agentlightning.kit.errors import MissingExtraError

    try:
        from agentlightning.nano.pretrain import build as build_model
    except ImportError as error:
        raise MissingExtraError(f"Building needs {error.name}.", hint="pip install 'agentlightning[learn]'") from error
    columns = (
        TextColumn("pre-training"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %  loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("build", total=1.0, loss=float("nan"))

        def report(fraction: float, facts: dict[str, Any]) -> None:
            progress.update(task, completed=fraction, loss=facts.get("loss", float("nan")))

        folder = build_model(out, seed=seed, threads=threads, progress=report, steps=steps)
    typer.echo(f"built {folder}")

"""`agl store feedback` and `agl store preferences`: what people said of rollouts, to read, to add, to train on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from agentlightning.cli.locations import StoreOption, open_existing
from agentlightning.cli.options import AsJson
from agentlightning.cli.output import print_json, print_table

if TYPE_CHECKING:
    from agentlightning.algorithm.judged import Stream

Limit = Annotated[int, typer.Option("--limit", min=1, help="Longest list.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write; standard output without it.", show_default=False)
]


def register(group: typer.Typer) -> None:
    """Add the commands to `agl store`."""
    feedback = typer.Typer(help="What people said of rollouts: scores, thumbs, comments.", no_args_is_help=True)
    feedback.command("list", help="Newest first.", epilog="Example:  agl store feedback list --author ada --json")(
        list_feedback
    )
    feedback.command(
        "add",
        help="Judge a rollout.",
        epilog="Examples:  agl store feedback add ROLLOUT --score 7 --comment 'too long'  |  "
        "agl store feedback add ROLLOUT --thumb up",
    )(add_feedback)
    feedback.command(
        "samples",
        help="Write what was scored as JSONL: prompt, completion, score from 0 to 1, comment. "
        "What cannot be used is counted on standard error.",
        epilog="Example:  agl store feedback samples -o scored.jsonl",
    )(samples)
    group.add_typer(feedback, name="feedback")
    group.command(
        help="List which rollouts are better than which, or write them as pairs that DPO trains on (--as jsonl): "
        "prompt, chosen, rejected. What cannot be used is counted on standard error.",
        epilog="Examples:  agl store preferences  |  agl store preferences --as jsonl -o pairs.jsonl",
    )(preferences)


def list_feedback(
    author: Annotated[str | None, typer.Option("--author", help="Only this author's.")] = None,
    rollout: Annotated[list[str] | None, typer.Option("--rollout", help="Only of this rollout; repeatable.")] = None,
    limit: Limit = 50,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    async def read(opened: Any) -> Any:
        return await opened.query_feedback(
            author=author, rollout_id_in=rollout, sort_by="create_time", sort_order="desc", limit=limit
        )

    found = asyncio.run(_with(store, read))
    if as_json:
        print_json([item.model_dump() for item in found])
        return
    rows = [
        (
            item.rollout_id,
            None if item.score is None else f"{item.score:g} of {item.score_max:g}",
            item.thumb,
            item.author,
            item.comment,
        )
        for item in found
    ]
    print_table("", ("rollout", "score", "thumb", "author", "comment"), rows, empty="no feedback yet")
    _say_more(found)


def add_feedback(
    rollout: Annotated[str, typer.Argument(help="Id of the rollout.")],
    score: Annotated[float | None, typer.Option("--score", help="On the scale of --scale.")] = None,
    scale: Annotated[
        tuple[float, float], typer.Option("--scale", metavar="WORST BEST", help="What the score is between.")
    ] = (0.0, 10.0),
    thumb: Annotated[str | None, typer.Option("--thumb", help="up or down.")] = None,
    comment: Annotated[str | None, typer.Option("--comment", help="In your words.")] = None,
    author: Annotated[str | None, typer.Option("--author", help="Who says it.")] = None,
    attempt: Annotated[str | None, typer.Option("--attempt", help="Id of the attempt.")] = None,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    async def add(opened: Any) -> Any:
        return await opened.add_feedback(
            rollout,
            attempt_id=attempt,
            score=score,
            score_min=scale[0],
            score_max=scale[1],
            thumb=thumb,
            comment=comment,
            author=author,
        )

    given = asyncio.run(_with(store, add))
    if as_json:
        print_json(given.model_dump())
    else:
        typer.echo(f"kept as {given.feedback_id}")


def samples(
    output: Output = None,
    author: Annotated[str | None, typer.Option("--author", help="Only this author's.")] = None,
    store: StoreOption = None,
) -> None:
    from dataclasses import asdict

    from agentlightning.algorithm.judged import scored_samples

    async def write(opened: Any) -> None:
        await _write_lines(scored_samples(opened, author=author), asdict, output)

    asyncio.run(_with(store, write))


def preferences(
    as_: Annotated[Literal["table", "jsonl"], typer.Option("--as", help="What to print.")] = "table",
    output: Output = None,
    same: Annotated[
        Literal["prompt", "task"],
        typer.Option("--same", help="What both sides of a pair must share: all the model was given, or the task."),
    ] = "prompt",
    source: Annotated[list[str] | None, typer.Option("--source", help="person, lock or judge; repeatable.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="Only of this lineage session.")] = None,
    limit: Limit = 50,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    from agentlightning.algorithm.judged import PreferencePair, preference_pairs

    async def write(opened: Any) -> None:
        pairs = preference_pairs(opened, same=same, source_in=source, session_id=session)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await _write_lines(pairs, PreferencePair.as_trl, output)

    async def read(opened: Any) -> Any:
        return await opened.query_preferences(
            source_in=source, session_id=session, sort_by="create_time", sort_order="desc", limit=limit
        )

    if as_ == "jsonl":
        asyncio.run(_with(store, write))
        return
    found = asyncio.run(_with(store, read))
    if as_json:
        print_json([item.model_dump() for item in found])
        return
    rows = [(p.chosen_rollout_id, p.rejected_rollout_id, p.source, p.weight, p.author) for p in found]
    print_table("", ("better", "worse", "source", "weight", "author"), rows, empty="no preferences yet")
    _say_more(found)


async def _with(location: str | None, work: Callable[[Any], Any]) -> Any:
    store = open_existing(location)
    try:
        return await work(store)
    finally:
        await store.close()


def _say_more(found: Any) -> None:
    if found.total > len(found):
        typer.echo(f"{found.total - len(found):,} more (--limit)", err=True)


async def _write_lines(stream: Stream[Any], as_row: Callable[[Any], dict[str, Any]], output: Path | None) -> None:
    """A JSON object a line; a file appears under its name only when it is complete."""
    import orjson

    from agentlightning.kit.files import atomic_stream

    with atomic_stream(output) if output is not None else nullcontext(sys.stdout.buffer) as target:
        async for example in stream:
            target.write(orjson.dumps(as_row(example)) + b"\n")
        target.flush()
    report = stream.report
    typer.echo(f"{report.used:,} written, {report.skipped.total():,} skipped", err=True)
    for reason, count in report.skipped.most_common():
        typer.echo(f"  {reason}: {count:,}, e.g. {', '.join(report.examples[reason][:3])}", err=True)

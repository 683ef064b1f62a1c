"""`agl runs | rollouts | show | resources`: look at what is stored."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from agentlightning.cli.locations import StoreOption, open_existing
from agentlightning.cli.options import AsJson
from agentlightning.cli.output import duration, percent, print_json, print_table


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(help="List training runs with their results.", epilog="Example:  agl runs --json")(runs)
    app.command(
        help="List rollouts, newest first.",
        epilog="Examples:  agl rollouts --status failed  |  agl rollouts --run demo-... --mode train --limit 50",
    )(rollouts)
    app.command(
        help="Show one rollout: its conversation, spans, reward and failure.",
        epilog="Examples:  agl show demo-....t00003.001.02  |  agl show ROLLOUT --spans --json",
    )(show)
    app.command(help="List resources and registered model versions.", epilog="Example:  agl resources")(resources)


def runs(as_json: AsJson = False) -> None:
    from agentlightning.config import Settings
    from agentlightning.kit.clock import iso
    from agentlightning.trainer.runlog import RunRecord

    root = Settings().runs_path
    records = [RunRecord(path.parent).data for path in root.glob("*/run.json")] if root.is_dir() else []
    records.sort(key=lambda record: record.get("created_at", 0.0), reverse=True)
    if as_json:
        print_json(records)
        return
    print_table(
        "",
        ("run", "status", "algorithm", "before", "after", "took", "started"),
        (
            (
                record["run_id"],
                record["status"],
                record["algorithm"],
                percent(_first_accuracy(record.get("before"))),
                percent(_first_accuracy(record.get("after"))),
                duration(record.get("seconds", 0.0)),
                iso(record["created_at"]),
            )
            for record in records
        ),
        empty="No runs yet. Start one with `agl demo` or `agl train`.",
    )


def _first_accuracy(evaluations: dict[str, Any] | None) -> float | None:
    return next((e["accuracy"] for e in (evaluations or {}).values()), None)


def rollouts(
    run: Annotated[str | None, typer.Option(help="Only rollouts of this run.")] = None,
    status: Annotated[list[str] | None, typer.Option(help="Only these statuses (repeatable).")] = None,
    mode: Annotated[str | None, typer.Option(help="train, val or test.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1)] = 20,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    from agentlightning.kit.bridge import run_sync

    run_sync(_rollouts(run, status, mode, limit, store, as_json=as_json))


async def _rollouts(
    run: str | None,
    status: list[str] | None,
    mode: str | None,
    limit: int,
    location: str | None,
    *,
    as_json: bool,
) -> None:
    from typing import get_args

    from agentlightning.agent import find_final_reward
    from agentlightning.kit.errors import BadInputError
    from agentlightning.schemas import RolloutStatus

    unknown = set(status or ()) - set(get_args(RolloutStatus))
    if unknown:
        raise BadInputError(
            f"Unknown status {', '.join(sorted(unknown))}.",
            hint=f"Statuses: {', '.join(get_args(RolloutStatus))}.",
        )
    opened = open_existing(location)
    try:
        found = await opened.query_rollouts(
            status_in=status,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            rollout_id_contains=f"{run}." if run else None,
            sort_by="start_time",
            sort_order="desc",
            limit=limit if mode is None else -1,
        )
        chosen = [r for r in found if mode is None or r.mode == mode][:limit]
        spans = await opened.query_many_spans([r.rollout_id for r in chosen])
    finally:
        await opened.close()
    rows = [
        {**r.model_dump(exclude={"attempt"}), "reward": find_final_reward(spans.get(r.rollout_id, []))} for r in chosen
    ]
    if as_json:
        print_json(rows)
        return
    print_table(
        "",
        ("rollout", "status", "mode", "reward", "task"),
        ((r["rollout_id"], r["status"], r["mode"], r["reward"], _short(r["input"])) for r in rows),
        empty="No rollouts match. Run something first, e.g. `agl demo`.",
    )


def _short(task: Any) -> str:
    if isinstance(task, dict):
        text = task.get("question") or task.get("prompt") or task.get("input") or str(task)
    else:
        text = str(task)
    text = str(text)
    return text if len(text) <= 70 else text[:67] + "..."


def show(
    rollout: Annotated[str, typer.Argument(help="Rollout id, as `agl rollouts` prints it.")],
    spans: Annotated[bool, typer.Option("--spans", help="List every span too.")] = False,
    attempt: Annotated[str, typer.Option(help="Attempt id, or latest.")] = "latest",
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    from agentlightning.kit.bridge import run_sync

    run_sync(_show(rollout, attempt, store, spans=spans, as_json=as_json))


async def _show(rollout_id: str, attempt_id: str, location: str | None, *, spans: bool, as_json: bool) -> None:
    from rich.console import Console

    from agentlightning.cli.transcript import render
    from agentlightning.kit.errors import NotFoundError

    store = open_existing(location)
    try:
        rollout = await store.get_rollout_by_id(rollout_id)
        if rollout is None:
            close = await store.query_rollouts(rollout_id_contains=rollout_id, limit=3)
            names = ", ".join(r.rollout_id for r in close)
            raise NotFoundError(
                f"No rollout {rollout_id!r}.",
                hint=f"Did you mean {names}?" if names else "`agl rollouts` lists them.",
            )
        attempts = await store.query_attempts(rollout_id)
        found = list(await store.query_spans(rollout_id, attempt_id))
    finally:
        await store.close()
    if as_json:
        print_json(
            {
                "rollout": rollout.model_dump(),
                "attempts": [a.model_dump() for a in attempts],
                "spans": [s.model_dump() for s in found],
            }
        )
        return
    console = Console()
    console.print(f"[bold]{rollout.rollout_id}[/]  {rollout.status}  mode={rollout.mode}", highlight=False)
    for item in attempts:
        took = "" if item.end_time is None else f"  {item.end_time - item.start_time:.2f} s"
        console.print(f"attempt {item.sequence_id}  {item.status}{took}  worker={item.worker_id}", highlight=False)
        error = (item.metadata or {}).get("error")
        if error:
            console.print(
                f"  {error.get('class')}: {error.get('type')}: {error.get('message')}",
                style="red",
                markup=False,
            )
    console.print(render(found, tokens=True))
    if spans:
        print_table(
            "spans",
            ("#", "name", "status", "ms", "span"),
            (
                (
                    s.sequence_id,
                    s.name,
                    s.status.status_code,
                    _milliseconds(s.start_time, s.end_time),
                    s.span_id,
                )
                for s in found
            ),
        )


def _milliseconds(start: float | None, end: float | None) -> str | None:
    return None if start is None or end is None else f"{1000 * (end - start):.1f}"


def resources(store: StoreOption = None, as_json: AsJson = False) -> None:
    from agentlightning.config import Settings
    from agentlightning.kit.bridge import run_sync
    from agentlightning.registry import ModelRegistry

    registry = ModelRegistry(Settings().models_path)
    versions = [version for name in registry.names() for version in registry.versions(name)]
    snapshots = run_sync(_resources(store))
    if as_json:
        print_json({"models": versions, "resources": snapshots})
        return
    print_table(
        "model versions",
        ("model", "stage", "before", "after", "run", "path"),
        (
            (
                v.ref,
                v.stage,
                percent(_first_accuracy(v.metrics.get("before"))),
                percent(_first_accuracy(v.metrics.get("after"))),
                v.run_id,
                v.path,
            )
            for v in versions
        ),
        empty="No model versions registered yet.",
    )
    print_table(
        "\nresources",
        ("id", "version", "holds"),
        ((s["resources_id"], s["version"], ", ".join(s["resources"])) for s in snapshots),
        empty="No resources stored yet.",
    )


async def _resources(location: str | None) -> list[dict[str, Any]]:
    from agentlightning.kit.errors import NotFoundError

    try:
        store = open_existing(location)
    except NotFoundError:
        if location is not None:
            raise
        return []  # there may be model versions nevertheless
    try:
        found = await store.query_resources(sort_by="create_time", sort_order="desc", limit=20)
        return [snapshot.model_dump(exclude={"resources": {"__all__": {"api_key"}}}) for snapshot in found]
    finally:
        await store.close()

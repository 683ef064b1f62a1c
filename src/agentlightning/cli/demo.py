"""`agl demo`: the main job on the embedded defaults. Trains a text-to-SQL agent with GRPO and shows what it gained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentlightning.cli.locations import StoreOption, settings_with
from agentlightning.cli.output import duration, interval, print_json

if TYPE_CHECKING:
    from agentlightning.config import Settings
    from agentlightning.trainer import RunResult

HELP = """Train a real agent on this machine: no key, no GPU, no service, no network.

A text-to-SQL agent is evaluated on held-out questions, trained with GRPO through the gateway, and evaluated again.
Ctrl-C stops it; the same command continues from the last checkpoint."""

EPILOG = "Examples:  agl demo  |  agl demo --fresh --seed 3  |  agl demo --json"

TRAIN_TASKS, VAL_TASKS, TEST_TASKS = 1024, 96, 256
NEW_COMBINATIONS, NEW_PHRASINGS = "new_questions", "new_phrasings"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(help=HELP, epilog=EPILOG)(demo)


def demo(
    seed: Annotated[int, typer.Option(help="Seeds tasks and sampling.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the last demo and start over.")] = False,
    steps: Annotated[int | None, typer.Option(help="Training steps (default: the measured recipe).", min=1)] = None,
    n: Annotated[int, typer.Option("--eval-tasks", help="Held-out questions per evaluation.", min=8)] = TEST_TASKS,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON only.")] = False,
) -> None:
    from agentlightning.store.databases import parse_location, show_location

    settings = settings_with(store)
    folder = settings.home / "demo"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    state = _State(folder)
    if state.finished:
        _say_finished(state, as_json=as_json)
        return
    where = show_location(parse_location(settings.store_location))
    plan = state.begin(seed=seed, steps=steps, eval_tasks=n, store=where)
    result = _train(settings, folder, plan, quiet=as_json)
    summary = _summarize(result, plan)
    state.finish(summary)
    _report(settings, state, summary, result, as_json=as_json)


class _State:
    """What of a demo is on disk: the plan it was started with, and its result."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan_path = folder / "plan.json"
        self.result_path = folder / "result.json"

    @property
    def finished(self) -> bool:
        return self.result_path.exists()

    def begin(self, **wanted: Any) -> dict[str, Any]:
        """The plan of the demo under way, or a new one. A different wish for a demo under way is an error."""
        import orjson

        from agentlightning.kit.errors import ConflictError
        from agentlightning.kit.files import write_atomic
        from agentlightning.kit.ids import new_name

        if not self.plan_path.exists():
            write_atomic(self.plan_path, orjson.dumps({"run_id": new_name("demo"), **wanted}))
        plan = orjson.loads(self.plan_path.read_bytes())
        changed = [key for key, value in wanted.items() if plan.get(key, value) != value]
        if changed:
            differences = ", ".join(f"{key} {plan[key]} (asked for: {wanted[key]})" for key in changed)
            raise ConflictError(
                f"A demo with other settings is under way: {differences}.",
                hint="Repeat its settings to continue it, or add --fresh to start over.",
            )
        return plan

    def finish(self, summary: dict[str, Any]) -> None:
        import orjson

        from agentlightning.kit.files import write_atomic

        write_atomic(self.result_path, orjson.dumps(summary, option=orjson.OPT_INDENT_2))

    def result(self) -> dict[str, Any]:
        import orjson

        return orjson.loads(self.result_path.read_bytes())


def _train(settings: Settings, folder: Path, plan: dict[str, Any], *, quiet: bool) -> RunResult:
    import contextlib

    from agentlightning import nano
    from agentlightning.algorithm import GRPO
    from agentlightning.cli.agents import load_object
    from agentlightning.cli.view import RunView
    from agentlightning.nano.recipe import RECIPE
    from agentlightning.trainer import Trainer

    seed, databases = plan["seed"], (folder / "databases").absolute()
    recipe = dict(RECIPE)
    if plan["steps"] is not None:
        recipe["steps"] = plan["steps"]
    view = None if quiet else RunView("agl demo: GRPO on a text-to-SQL agent")
    trainer = Trainer(
        algorithm=GRPO(recipe, seed=seed),
        model=nano.model_path(),
        evaluator="agentlightning.nano.recipe:reward",
        max_concurrency=recipe["prompts_per_step"] * recipe["group_size"],
        name="demo",
        run_id=plan["run_id"],
        seed=seed,
        settings=settings,
        on_event=view,
    )
    with view or contextlib.nullcontext():
        return trainer.fit(
            load_object(f"{agent_path()}:answer"),
            nano.make_tasks("train", TRAIN_TASKS, seed, databases),
            val_dataset=nano.make_tasks("val", VAL_TASKS, seed, databases),
            test_datasets={
                NEW_COMBINATIONS: nano.make_tasks("test", plan["eval_tasks"], seed, databases),
                NEW_PHRASINGS: nano.make_tasks("test_unseen_phrasing", plan["eval_tasks"], seed, databases),
            },
        )


def agent_path() -> Path:
    """The example agent: in the repository, or as it was packed into the installed package."""
    import agentlightning

    package = Path(agentlightning.__file__).parent
    packed = package / "nano" / "sql_agent.py"
    return packed if packed.exists() else package.parents[1] / "examples" / "sql_agent" / "agent.py"


def _summarize(result: RunResult, plan: dict[str, Any]) -> dict[str, Any]:
    from agentlightning.trainer.runlog import MetricsLog, RunRecord

    def numbers(evaluations: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
        return {name: evaluations[key][name] for name in ("accuracy", "ci_low", "ci_high", "n")}

    keys = list(result.before)
    first = f"{NEW_COMBINATIONS}/sampled"
    config = RunRecord(result.directory).data["config"]
    curve = [e for e in MetricsLog(result.directory, tensorboard=False).read() if e["type"] == "eval"]
    return {
        "before": numbers(result.before, first),
        "after": numbers(result.after, first),
        "seconds": round(result.seconds, 1),
        "seed": plan["seed"],
        "steps": config["steps"],
        "gain": dict(zip(("mean", "ci_low", "ci_high"), result.gain or (), strict=False)),
        "all": {key: {"before": numbers(result.before, key), "after": numbers(result.after, key)} for key in keys},
        "curve": [{k: e[k] for k in ("step", "accuracy", "ci_low", "ci_high", "n")} for e in curve],
        "run_id": result.run_id,
        "run": str(result.directory),
        "model": result.model.ref if result.model else None,
    }


def _report(settings: Settings, state: _State, summary: dict[str, Any], result: RunResult, *, as_json: bool) -> None:
    from agentlightning.kit.bridge import run_sync
    from agentlightning.trainer.curve import draw_curve
    from agentlightning.trainer.runlog import MetricsLog

    events = MetricsLog(result.directory, tensorboard=False).read()
    png = draw_curve(events, state.folder / "curve.png", title="GRPO on the text-to-SQL agent, held-out accuracy")
    if as_json:
        print_json(summary)
        return
    run_sync(_print_transcripts(settings, result))
    _print_result(summary, state, png)


def _print_result(summary: dict[str, Any], state: _State, png: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    names = {
        f"{NEW_COMBINATIONS}/sampled": "new questions, sampled (T=1)",
        f"{NEW_COMBINATIONS}/greedy": "new questions, greedy",
        f"{NEW_PHRASINGS}/sampled": "new phrasings, sampled (T=1)",
        f"{NEW_PHRASINGS}/greedy": "new phrasings, greedy",
    }
    table = Table(title="Accuracy on held-out questions and databases, 95 % intervals", title_justify="left", box=None)
    for column in ("", "before", "after", "n"):
        table.add_column(column)
    for key, row in summary["all"].items():
        table.add_row(names.get(key, key), interval(row["before"]), interval(row["after"]), str(row["after"]["n"]))
    console = Console()
    console.print()
    console.print(table)
    gain = summary["gain"]
    console.print(
        f"\nGain: {100 * gain['mean']:.1f} points [{100 * gain['ci_low']:.1f}, {100 * gain['ci_high']:.1f}] "
        f"in {duration(summary['seconds'])}, {summary['steps']} steps, seed {summary['seed']}.",
        highlight=False,
    )
    model = summary["model"] or "none (the gain's interval includes zero)"
    for label, value in (
        ("model", model),
        ("run", summary["run"]),
        ("result", str(state.result_path)),
        ("curve", str(png)),
    ):
        console.print(f"{label:<8} {value}", highlight=False, soft_wrap=True)
    console.print("\nNext:  agl runs  |  agl rollouts  |  agl show ROLLOUT  |  agl chat", highlight=False)


async def _print_transcripts(settings: Settings, result: RunResult) -> None:
    """Show one held-out question that failed before and works now, both times in full."""
    from rich.console import Console

    from agentlightning.cli.transcript import render
    from agentlightning.store import SqlLightningStore

    before = result.before[f"{NEW_COMBINATIONS}/sampled"]["rewards"]
    after = result.after[f"{NEW_COMBINATIONS}/sampled"]["rewards"]
    flipped = [i for i, (b, a) in enumerate(zip(before, after, strict=True)) if b == 0.0 and a == 1.0]
    if not flipped:
        return
    console = Console()
    store = SqlLightningStore(settings.store_location)
    try:
        for when in ("before", "after"):
            rollout_id = f"{result.run_id}.{when}-{NEW_COMBINATIONS}-sampled.{flipped[0]:04d}"
            spans = await store.query_spans(rollout_id, "latest")
            console.rule(f"{when}  {rollout_id}", align="left")
            console.print(render(spans))
    finally:
        await store.close()


def _say_finished(state: _State, *, as_json: bool) -> None:
    summary = state.result()
    if as_json:
        print_json(summary)
        return
    typer.echo("This demo is finished; `agl demo --fresh` starts over.")
    _print_result(summary, state, state.folder / "curve.png")

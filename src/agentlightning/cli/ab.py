"""`agl ab`: two prompts for one agent, each on its share of the tasks, until one is shown to be better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from agentlightning.cli.locations import StoreOption, settings_with
from agentlightning.cli.options import Concurrency, Fresh, NewRun, RolloutTimeout, Runners

HELP = """Compare two prompts of an agent: tasks are divided between them until one is shown to be better.

The result may be looked at after every rollout: the interval holds at all times (a confidence sequence). The same
command again continues where it was cut."""

EPILOG = """Examples:

  agl ab agent.py:solve --data tasks.jsonl --control old.txt --treatment new.txt --model nano

  agl ab agent.py:solve --data tasks.jsonl --control old.txt --treatment RUN/best_prompts.json --most 400

  agl ab agent.py:solve --data visits.csv --control a.txt --treatment b.txt --key user --ratio 0.8"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("ab", help=HELP, epilog=EPILOG)(compare)


def compare(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="path/to/file.py:function or module:function.")],
    data: Annotated[Path, typer.Option(help="Tasks (.jsonl, .json, .csv, .parquet, or a Hugging Face folder).")],
    control: Annotated[list[str], typer.Option(help="[NAME=]FILE with a prompt of now (repeatable).")],
    treatment: Annotated[
        list[str], typer.Option(help="[NAME=]FILE with the new prompt, or a result of agl optimize (repeatable).")
    ],
    model: Annotated[str | None, typer.Option(help="Local model, or the name to ask --base-url for.")] = None,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server of the model.")] = None,
    reward: Annotated[
        str | None, typer.Option(help="exact, f1, … or file.py:function(task, output), when the agent returns none.")
    ] = None,
    ratio: Annotated[float, typer.Option(help="Share of the tasks that gets the control.")] = 0.5,
    most: Annotated[int, typer.Option(help="Results after which it ends without a winner.")] = 200,
    minimal_effect: Annotated[
        float, typer.Option(help="End when the difference cannot be larger than this.", min=0)
    ] = 0.0,
    alpha: Annotated[float, typer.Option(help="How often equal prompts may ever be told apart.")] = 0.05,
    key: Annotated[
        str | None, typer.Option(help="Column of the tasks whose value decides: the same value, the same prompt.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Rollouts between two looks.", min=1)] = 16,
    timeout_s: RolloutTimeout = 120.0,
    run_id: NewRun = None,
    fresh: Fresh = False,
    runners: Runners = 1,
    concurrency: Concurrency = 64,
    seed: Annotated[int, typer.Option(help="Seeds the order of the tasks and sampling.")] = 0,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON only.")] = False,
) -> None:
    from agentlightning.algorithm.experiment import ABTest, Comparison
    from agentlightning.cli import optimize_inputs as inputs
    from agentlightning.cli.agents import load_dataset, load_object, required_columns, resolve_model
    from agentlightning.cli.output import print_json, progress
    from agentlightning.schemas import NamedResources
    from agentlightning.trainer import Trainer

    subject = load_object(agent)
    prompts: list[NamedResources] = [dict(inputs.load_prompts(subject, agent, n)) for n in (control, treatment)]
    columns = [name for name in required_columns(subject) if name not in ("llm", "prompt_template", "resources")]
    tasks = load_dataset(data, columns=[*columns, *([key] if key else [])])
    chosen: Any = [prompts[1], tasks, model, base_url, reward, ratio, most, alpha, minimal_effect, key, seed]
    name = inputs.run_name(agent, "ab", prompts[0], {}, chosen, fresh=fresh).replace("optimize", "ab", 1)
    test = ABTest(name, control_ratio=ratio, experiment_duration=most, alpha=alpha, minimal_effect=minimal_effect)
    comparison = Comparison(*prompts, test=test, key=_by(key) if key else None, batch_size=batch, timeout_s=timeout_s)
    with progress("comparing", as_json, stopped="the same command continues") as told:

        def show(event: dict[str, Any]) -> None:
            if event["type"] == "abtest":
                done = sum(event["n"].values()) + sum(event["missing"].values())
                told(done / event["planned"], f"{done}/{event['planned']}  {event['reason']}")

        trainer = Trainer(
            algorithm=comparison,
            model=resolve_model(model) if model and base_url is None else None,
            initial_resources={**prompts[0], **inputs.agent_model(model, base_url)},
            n_runners=runners,
            max_concurrency=concurrency,
            evaluator=inputs.load_reward(reward),
            run_id=run_id or name,
            seed=seed,
            settings=settings_with(store),
            on_event=show,
        )
        trainer.fit(subject, tasks)
    verdict = comparison.verdict
    assert verdict is not None
    if as_json:
        print_json({"run_id": trainer.run_id, **verdict.as_dict()})
        return
    _show(verdict)
    typer.echo(f"kept in {trainer.directory / 'abtest.json'}")


def _by(column: str) -> Callable[[Any], str]:
    return lambda task: str(task[column])


def _show(verdict: Any) -> None:
    for arm in ("control", "treatment"):
        mean = "-" if verdict.mean[arm] is None else f"{verdict.mean[arm]:.3f}"
        missing = f"  without reward: {verdict.missing[arm]}" if verdict.missing[arm] else ""
        typer.echo(f"{arm:<10} mean reward {mean}  n={verdict.n[arm]}{missing}")
    if verdict.difference is not None:
        typer.echo(f"difference {verdict.difference:+.3f}  [{verdict.ci_low:+.3f}, {verdict.ci_high:+.3f}]")
    typer.secho(verdict.reason, bold=True, fg="green" if verdict.winner == "treatment" else None)

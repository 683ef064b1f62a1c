"""`agl eval`: the mean reward of an agent on a data set, with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from agentlightning.cli.locations import StoreOption, settings_with
from agentlightning.cli.options import Concurrency, RolloutTimeout, Runners
from agentlightning.cli.output import interval, print_json

HELP = """Evaluate an agent on tasks, with a local model or any OpenAI-compatible server."""

EPILOG = """Examples:

  agl eval --agent agent.py:solve --data test.jsonl --model ./Qwen3-0.6B

  agl eval --agent agent.py:solve --data test.jsonl --base-url http://127.0.0.1:11434/v1 --model llama3.2

  agl eval --agent agent.py:solve --data test.jsonl --prompt .agentlightning/runs/RUN/best_prompts.json --model demo@v1

  agl eval --agent agent.py:answer --evaluator score.py:exact --data test.csv --model demo@v1 --greedy"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval", help=HELP, epilog=EPILOG)(evaluate)


def evaluate(
    data: Annotated[Path, typer.Option(help="Tasks (.jsonl, .json, .csv, .parquet, or a Hugging Face folder).")],
    agent: Annotated[str | None, typer.Option(help="path/to/file.py:function or module:function.")] = None,
    command: Annotated[str | None, typer.Option(help="Command line to run as the agent.")] = None,
    model: Annotated[str | None, typer.Option(help="Local model, or the name to ask --base-url for.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server to use instead of a local model.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="[NAME=]FILE with a prompt, or a result of agl optimize (repeatable; default: the agent's own)."
        ),
    ] = None,
    evaluator: Annotated[str | None, typer.Option(help="file.py:function(task, output) -> reward.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Temperature 0.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature.", min=0)] = None,
    timeout_s: RolloutTimeout = 120.0,
    limit: Annotated[int | None, typer.Option(help="Only the first so many tasks.", min=1)] = None,
    runners: Runners = 1,
    concurrency: Concurrency = 64,
    seed: Annotated[int, typer.Option(help="Seeds sampling.")] = 0,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    from agentlightning.algorithm import algo
    from agentlightning.algorithm.evaluation import evaluate as run_evaluation
    from agentlightning.cli import optimize_inputs as inputs
    from agentlightning.cli.agents import load_dataset, required_columns, resolve_model
    from agentlightning.cli.train import load_agent, load_evaluator
    from agentlightning.cli.view import RunView
    from agentlightning.trainer import Trainer

    subject = load_agent(agent, command)
    resources = {
        **(inputs.load_prompts(subject, agent or "", prompt) if prompt else inputs.own_prompts(subject)),
        **inputs.agent_model(model, base_url),
    }
    columns = [name for name in required_columns(subject) if name not in (*resources, "llm", "resources")]
    tasks = load_dataset(data, columns=columns)
    overrides: dict[str, Any] = {}
    if greedy or temperature is not None:
        overrides["temperature"] = 0.0 if greedy else temperature
    found: list[Any] = []

    async def evaluation(*, context: Any, train_dataset: Any) -> None:
        context.report({"type": "plan", "steps": 0, "rollouts": min(len(tasks), limit or len(tasks))})
        found.append(
            await run_evaluation(
                context, train_dataset, label="eval", overrides=overrides, limit=limit, timeout_s=timeout_s
            )
        )

    remote = base_url is not None
    view = None if as_json else RunView(f"agl eval: {agent or command}")
    algorithm = algo(evaluation)
    algorithm.phase = "evaluating"
    trainer = Trainer(
        algorithm=algorithm,
        model=None if remote else resolve_model(model),
        initial_resources=dict(resources) or None,
        n_runners=runners,
        max_concurrency=concurrency,
        evaluator=load_evaluator(evaluator),
        name="eval",
        seed=seed,
        settings=settings_with(store),
        on_event=view,
    )
    import contextlib

    with view or contextlib.nullcontext():
        trainer.fit(subject, tasks)
    summary: dict[str, Any] = {**found[0].as_dict(), "run_id": trainer.run_id}
    if as_json:
        print_json(summary)
        return
    typer.echo(f"mean reward {interval(summary)}  n={summary['n']}  without reward: {summary['missing']}")
    for reason, count in summary["missing_reasons"].items():
        typer.echo(f"  {count} x {reason}")
    typer.echo(f"look closer: agl rollouts --run {trainer.run_id}")

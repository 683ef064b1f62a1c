"""`agl train`: GRPO on your agent and tasks, SFT on examples or the best traces, DPO on preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from agentlightning.cli.locations import StoreOption, settings_with
from agentlightning.cli.options import Concurrency
from agentlightning.cli.output import duration, interval, print_json

HELP = """Train a model: through an agent by reinforcement (GRPO), on examples (SFT), on preference pairs (DPO).

The agent is a function in a file or module (decorated with @agl.rollout, or plain with --evaluator), or a command
line (--command). Tasks come from JSONL, JSON, CSV or Parquet. SFT and DPO learn from --data (rows with messages, or
with prompt and completion; with prompt, chosen and rejected) or, without it, from the store; an agent is only measured
there, on --tasks. Repeat the command with --run-id to continue."""

EPILOG = """Examples:

  agl train --agent agent.py:solve --data train.jsonl --val val.jsonl --model ./Qwen3-0.6B

  agl train --agent agent.py:answer --evaluator score.py:exact --data train.jsonl --set steps=20

  agl train --command "node agent.js" --data train.jsonl --model nano

  agl train --agent agent.py:solve --data train.jsonl --model ./Qwen3-0.6B --runner ray --runners 8

  agl train --algorithm sft --data conversations.jsonl --model ./Qwen3-0.6B

  agl train --algorithm sft --set min_reward=1.0 --set top_k=2 --model nano

  agl train --algorithm dpo --data pairs.jsonl --model ./Qwen3-0.6B --agent agent.py:solve --tasks tasks.jsonl"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(help=HELP, epilog=EPILOG)(train)


def train(
    data: Annotated[
        Path | None,
        typer.Option(help="Training tasks or examples (.jsonl, .json, .csv, .parquet, or a Hugging Face folder)."),
    ] = None,
    algorithm: Annotated[str, typer.Option(help="grpo, sft or dpo.")] = "grpo",
    agent: Annotated[str | None, typer.Option(help="path/to/file.py:function or module:function.")] = None,
    command: Annotated[str | None, typer.Option(help="Command line to run as the agent.")] = None,
    model: Annotated[str | None, typer.Option(help="Model directory, hub id, registered name, or nano.")] = None,
    val: Annotated[Path | None, typer.Option(help="Held-out tasks; sft, dpo: held-out examples.")] = None,
    tasks: Annotated[
        Path | None, typer.Option(help="sft, dpo: tasks on which the agent is measured before and after.")
    ] = None,
    evaluator: Annotated[str | None, typer.Option(help="file.py:function(task, output) -> reward.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with the algorithm's settings.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting of the algorithm, key=value (repeatable).")
    ] = None,
    runners: Annotated[
        int | None, typer.Option(help="How many runners (default 1; subprocess: processors).", min=1)
    ] = None,
    runner: Annotated[
        str, typer.Option(help="Where rollouts run: process, subprocess (one at a time in each), ray.")
    ] = "process",
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster, host:port (default: RAY_ADDRESS, else auto).")
    ] = None,
    concurrency: Concurrency = 64,
    lora_rank: Annotated[int | None, typer.Option(help="Train a LoRA adapter of this rank only.", min=1)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    name: Annotated[str, typer.Option(help="Name of the registered model.")] = "model",
    run_id: Annotated[str | None, typer.Option(help="Continue this run.")] = None,
    seed: Annotated[int, typer.Option(help="Seeds task order and sampling.")] = 0,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON only.")] = False,
) -> None:
    import contextlib

    from agentlightning.cli.agents import resolve_model
    from agentlightning.cli.view import RunView
    from agentlightning.trainer import Trainer

    learner = _algorithm(algorithm, config, settings or [], seed)
    subject = load_agent(agent, command) if algorithm == "grpo" or agent or command else None
    given = _datasets(algorithm, subject, data, val, tasks)
    view = None if as_json else RunView(f"agl train: {algorithm}{' ' if subject else ''}{agent or command or ''}")
    trainer = Trainer(
        algorithm=learner,
        model=resolve_model(model),
        n_runners=runners,
        runner={"type": runner, **({"address": ray_address} if ray_address else {})},
        max_concurrency=concurrency,
        evaluator=load_evaluator(evaluator),
        name=name,
        run_id=run_id,
        seed=seed,
        settings=settings_with(store),
        device=device,
        lora={"r": lora_rank} if lora_rank else None,
        on_event=view,
    )
    with view or contextlib.nullcontext():
        result = trainer.fit(subject, **given)
    if as_json:
        print_json(
            {
                "run_id": result.run_id,
                "run": str(result.directory),
                "before": result.before,
                "after": result.after,
                "gain": result.gain,
                "learning": result.learning.as_dict() if result.learning else None,
                "model": result.model.ref if result.model else None,
                "seconds": result.seconds,
            }
        )
        return
    typer.echo(f"\nRun {result.run_id} took {duration(result.seconds)}; {result.directory}")
    for key in result.before:
        typer.echo(f"{key}: {interval(result.before[key])} -> {interval(result.after[key])}")
    if result.learning is not None:
        _say_learning(result.learning)
    typer.echo(f"Registered: {result.model.ref}" if result.model else f"Weights: {result.directory / 'model'}")


def _algorithm(name: str, config: Path | None, assignments: list[str], seed: int) -> Any:
    from agentlightning import algorithm as room
    from agentlightning.kit.errors import BadInputError

    if name not in ("grpo", "sft", "dpo"):
        raise BadInputError(f"There is no algorithm {name!r} that trains weights.", hint="Use grpo, sft or dpo.")
    return getattr(room, name.upper())({"seed": seed, **grpo_settings(config, assignments, name)})


def _datasets(algorithm: str, subject: Any, data: Path | None, val: Path | None, tasks: Path | None) -> dict[str, Any]:
    """What `Trainer.fit` is given beside the agent."""
    from agentlightning.cli.agents import load_dataset, required_columns
    from agentlightning.kit.errors import BadInputError

    if algorithm == "grpo":
        if tasks is not None:
            raise BadInputError("--tasks is for sft and dpo; GRPO takes --data and --val.")
        if data is None:
            raise BadInputError("GRPO needs --data, the tasks to learn from.")
        columns = required_columns(subject)
        return {
            "train_dataset": load_dataset(data, columns=columns),
            "val_dataset": load_dataset(val, columns=columns) if val else None,
        }
    if (tasks is None) != (subject is None):
        raise BadInputError(
            "--tasks and the agent that is measured on them belong together.",
            hint="Give --agent (or --command) and --tasks, or neither of them.",
        )
    return {
        "train_dataset": load_dataset(data) if data else None,
        "val_dataset": load_dataset(val) if val else None,
        "test_datasets": {"tasks": load_dataset(tasks, columns=required_columns(subject))} if tasks else None,
    }


def _say_learning(learning: Any) -> None:
    from agentlightning.cli.view import measures

    left_out = ", ".join(f"{count} {reason}" for reason, count in learning.data["skipped"].items())
    typer.echo(
        f"Learned {learning.tokens:,} tokens of {learning.train:,} {learning.unit} in {learning.steps} steps"
        + (f"; left out: {left_out}" if left_out else "")
    )
    if not learning.before:
        typer.echo("Nothing was held out, so there is no measure of it.")
        return
    typer.echo(
        f"held-out {learning.unit} (n={learning.held_out}): {measures(learning.before)} -> {measures(learning.after)}"
    )
    mean, low, high = learning.gain
    typer.echo(f"gain in {learning.measure}: {mean:+.4g} [{low:+.4g}, {high:+.4g}]")


def load_agent(agent: str | None, command: str | None) -> Any:
    """The agent named by `--agent` or `--command`.

    Raises:
        BadInputError: Neither or both are given.
    """
    from agentlightning.cli.agents import load_object
    from agentlightning.kit.errors import BadInputError

    if (agent is None) == (command is None):
        raise BadInputError("Give either --agent or --command.", hint="See agl train --help for examples.")
    if command is not None:
        from agentlightning.runner import CommandAgent

        return CommandAgent(command)
    assert agent is not None
    return load_object(agent)


def load_evaluator(reference: str | None) -> Any:
    """The function named by `--evaluator`, if any."""
    from agentlightning.cli.agents import load_object

    return load_object(reference) if reference else None


def grpo_settings(config: Path | None, assignments: list[str], section: str = "grpo") -> dict[str, Any]:
    """Settings of a TOML file (of its table `section`, if there is one), then `key=value` pairs on top.

    Values are read as TOML where they parse.

    Raises:
        BadInputError: The file is missing or no TOML, or a pair has no `=`.
    """
    import tomllib

    from agentlightning.kit.errors import BadInputError

    values: dict[str, Any] = {}
    if config is not None:
        try:
            values = tomllib.loads(config.read_text(encoding="utf-8"))
        except OSError as error:
            raise BadInputError(f"Cannot read {config}: {error.strerror}.") from error
        except tomllib.TOMLDecodeError as error:
            raise BadInputError(f"{config} is not TOML: {error}.") from error
        values = values.get(section, values)
    for assignment in assignments:
        key, separator, raw = assignment.partition("=")
        if not separator:
            raise BadInputError(f"--set {assignment!r} has no '='.", hint="Write --set steps=20.")
        try:
            values[key] = tomllib.loads(f"value = {raw}")["value"]
        except tomllib.TOMLDecodeError:
            values[key] = raw
    return values

"""`agl optimize`: better prompts for your agent, with a budget, and with the gain on held-out tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentlightning.cli.locations import StoreOption, settings_with
from agentlightning.cli.options import Concurrency, Fresh, NewRun, Runners

HELP = """Optimise the prompts of an agent.

AGENT is path/to/file.py:function or module:function. Its prompts come from --prompt, else from the PromptTemplates that
its module defines. The same command again continues where it was cut, and pays for nothing twice."""

EPILOG = """Examples:

  agl optimize agent.py:solve --data tasks.jsonl --base-url http://127.0.0.1:11434/v1 --model llama3.2 --proposer qwen3

  agl optimize agent.py:solve --data tasks.jsonl --optimizer apo --budget-calls 500 --set beam_width=2

  agl optimize agent.py:answer --data qa.csv --reward exact --prompt prompt.txt --model nano --optimizer edit

  agl optimize agent.py:solve --data train.parquet --test test.parquet --budget-money 2 --price gpt-4.1-mini=0.4/1.6"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(help=HELP, epilog=EPILOG)(optimize)


def optimize(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="path/to/file.py:function or module:function.")],
    data: Annotated[Path, typer.Option(help="Tasks (.jsonl, .json, .csv, .parquet, or a Hugging Face folder).")],
    val: Annotated[
        Path | None, typer.Option(help="Tasks that choose between prompts (default: a part of --data).")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Tasks for the gain at the end (default: a part of --data).")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="[NAME=]FILE with a prompt, or a result of this command (repeatable).")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="apo, gepa, fewshot, edit or auto.")] = "auto",
    reward: Annotated[
        str | None, typer.Option(help="exact, f1, … or file.py:function(task, output), when the agent returns none.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The agent's model: local, or a name to ask --base-url for.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server of the models.")] = None,
    proposer: Annotated[str | None, typer.Option(help="Model that writes new prompts.")] = None,
    proposer_url: Annotated[str | None, typer.Option(help="Its server, when it is not --base-url.")] = None,
    budget_calls: Annotated[int | None, typer.Option(help="Most model calls.", min=1)] = None,
    budget_tokens: Annotated[int | None, typer.Option(help="Most tokens.", min=1)] = None,
    budget_money: Annotated[float | None, typer.Option(help="Most US dollars.", min=0)] = None,
    budget_time: Annotated[float | None, typer.Option(help="Most seconds.", min=0)] = None,
    price: Annotated[
        list[str] | None, typer.Option(help="MODEL=INPUT/OUTPUT, US dollars per million tokens (repeatable).")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings of the optimizer.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="One setting, key=value (repeatable).")] = None,
    flat_start: Annotated[
        bool, typer.Option("--flat-start", help="Go on when all first rewards are the same.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the result here, too.")] = None,
    run_id: NewRun = None,
    fresh: Fresh = False,
    runners: Runners = 1,
    concurrency: Concurrency = 64,
    seed: Annotated[int, typer.Option(help="Seeds the split, the search and sampling.")] = 0,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON only.")] = False,
) -> None:
    import contextlib

    from agentlightning.algorithm.prompt import Budget, make_optimizer
    from agentlightning.cli import optimize_inputs as inputs
    from agentlightning.cli.agents import load_object, resolve_model
    from agentlightning.cli.optimize_view import OptimizeView, show_result
    from agentlightning.cli.output import print_json
    from agentlightning.cli.train import grpo_settings
    from agentlightning.kit.files import write_atomic
    from agentlightning.trainer import Trainer

    subject = load_object(agent)
    prompts = inputs.load_prompts(subject, agent, prompt or [])
    parts = inputs.load_parts(data, val, test, subject, seed=seed)
    chosen = grpo_settings(config, settings or [], section="optimize")
    name = inputs.run_name(
        agent, optimizer, prompts, parts, [chosen, reward, model, base_url, proposer, seed], fresh=fresh
    )
    algorithm = make_optimizer(
        optimizer,
        budget=Budget(
            calls=budget_calls,
            tokens=budget_tokens,
            usd=budget_money,
            wall_s=budget_time,
            prices=inputs.read_prices(price or []),
        ),
        proposer=inputs.find_proposer(proposer, proposer_url or base_url),
        proposer_model=proposer,
        price_of=inputs.known_prices(),
        flat_start=flat_start,
        **chosen,
    )
    view = None if as_json else OptimizeView(f"agl optimize: {agent}", algorithm.budget)
    trainer = Trainer(
        algorithm=algorithm,
        model=resolve_model(model) if model and base_url is None else None,
        initial_resources={**prompts, **inputs.agent_model(model, base_url)},
        n_runners=runners,
        max_concurrency=concurrency,
        evaluator=inputs.load_reward(reward),
        run_id=run_id or name,
        seed=seed,
        settings=settings_with(store),
        on_event=view,
    )
    with view or contextlib.nullcontext():
        found = trainer.fit(
            subject, parts["train"], val_dataset=parts["val"], test_datasets=inputs.held_out(parts)
        ).optimization
    assert found is not None
    if out is not None:
        write_atomic(out, (found.directory / "best_prompts.json").read_bytes())
    if as_json:
        print_json(found.as_dict())
        return
    show_result(found)

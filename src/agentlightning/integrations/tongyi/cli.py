"""`tongyi-cli`: ask the research agent, let it learn, see what it learned. Everything is loaded when it is used."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

EPILOG = """Examples:

  tongyi-cli "How does this project store its data?"

  tongyi-cli --train --training-mode prompt "What are the key findings of notes/report.md?"

  tongyi-cli --training-stats

  tongyi-cli --optimize --optimize-iterations 50

  tongyi-cli --export-training-data data.json

The model is any OpenAI-compatible server: --base-url and --model, or OPENAI_BASE_URL, OPENAI_MODEL and OPENAI_API_KEY.
Settings: training_config.ini, overridden by TONGYI_* variables, overridden by options."""

app = typer.Typer(
    name="tongyi-cli",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(epilog=EPILOG, help="Research a question with a model and tools, and learn from doing so.")
def run(
    context: typer.Context,
    query: Annotated[str | None, typer.Argument(help="The question.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Keep and trace this interaction.")] = False,
    training_mode: Annotated[
        str | None, typer.Option(metavar="prompt|rl|sft", help="What interactions are kept for.")
    ] = None,
    training_stats: Annotated[bool, typer.Option("--training-stats", help="Show what the training data say.")] = False,
    optimize: Annotated[bool, typer.Option("--optimize", help="Optimise on the training data.")] = False,
    optimize_iterations: Annotated[
        int | None, typer.Option(min=1, help="Runs of the agent that an optimisation may pay for.")
    ] = None,
    export_training_data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all training data as JSON.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show plan, calls, sources and the log.")] = False,
    agent: Annotated[str | None, typer.Option(metavar="tongyi|claude", help="Which form of the agent.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server, with /v1.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings, instead of training_config.ini.")] = None,
) -> None:
    from agentlightning.integrations.tongyi.config import load_config
    from agentlightning.integrations.tongyi.training_manager import TrainingManager

    logging.getLogger("agentlightning").setLevel(logging.DEBUG if verbose else logging.WARNING)
    settings = load_config(config).changed(
        agent={"agent_type": agent, "model": model, "base_url": base_url},
        training={"enabled": True if train else None, "mode": training_mode},
    )
    if not (query or training_stats or optimize or export_training_data or optimize_iterations):
        typer.echo(context.get_help())
        raise typer.Exit(2)
    manager = TrainingManager(settings)
    if query is not None:
        _ask(manager, query, verbose=verbose)
    if optimize or optimize_iterations is not None:
        _optimize(manager, optimize_iterations)
    if export_training_data is not None:
        _export(manager, export_training_data)
    if training_stats:
        _show(manager)


def _ask(manager: Any, query: str, *, verbose: bool) -> None:
    from agentlightning.kit.bridge import run_sync
    from agentlightning.kit.errors import AgentLightningError

    worker = _agent(manager)
    try:
        typer.echo(run_sync(_answered(worker, query)))
    except AgentLightningError:
        if worker.last is not None and worker.last.is_success:
            typer.echo(worker.last.answer)  # it could not be kept or judged, but it was paid for
        raise
    finally:
        # Every interaction is on disk already; folding it in is all that is left to do, also after Ctrl-C.
        if worker.is_training:
            worker.save()
        if verbose and worker.last is not None:
            _explain_research(worker)
    if not worker.is_training:
        return
    typer.echo(f"\n(kept for training: reward {_number(worker.last_interaction.reward)})", err=True)
    trigger = worker.trials.due()
    if trigger is not None:
        typer.echo(f"(optimising now: {trigger.reason})", err=True)
        _tell(manager.run_optimization(worker, report=_Progress()))  # the question was answered: no failure


async def _answered(worker: Any, query: str) -> str:
    import asyncio

    from agentlightning.algorithm.base import RunStopped
    from agentlightning.kit.signals import stop_requests

    task = asyncio.ensure_future(worker.process_query(query))
    with stop_requests(lambda number: task.cancel()):
        try:
            return await task
        except asyncio.CancelledError:
            raise RunStopped("What was answered before is kept.") from None
        finally:
            await worker.toolset.close()


def _agent(manager: Any) -> Any:
    try:
        return manager.create_optimized_agent()
    except ImportError as error:
        _fail(f"❌ Optimized agents not available: {getattr(error, 'message', error)}", getattr(error, "hint", ""))
        raise typer.Exit(1) from error


def _optimize(manager: Any, iterations: int | None) -> None:
    if not manager.statistics().total_interactions:
        _no_data()
        raise typer.Exit(1)
    if not _tell(manager.run_optimization(_agent(manager), iterations, report=_Progress())):
        raise typer.Exit(1)


def _tell(outcome: Any) -> bool:
    if outcome.success:
        typer.echo(f"✅ {outcome.message}")
        if outcome.run_id:
            spent = outcome.spent
            cost = f" ({spent['calls']} model calls, {spent['tokens']} tokens)" if spent else ""
            closer = (
                f"agl lineage {outcome.run_id}" if spent else "agl runs"
            )  # prompts were searched, or weights trained
            typer.echo(f"   run {outcome.run_id}{cost}; look closer: {closer}")
        return True
    from agentlightning.integrations.tongyi.optimization import HINTS

    _fail("❌ Optimization failed", outcome.reason)
    for hint in HINTS:
        typer.echo(f"  - {hint}", err=True)
    return False


def _export(manager: Any, path: Path) -> None:
    from agentlightning.kit.errors import NotFoundError

    try:
        count = manager.export_training_data(None, path)
    except NotFoundError:
        _no_data()
        raise typer.Exit(1) from None
    typer.echo(f"✅ {count} interactions written to {path}")


def _show(manager: Any) -> None:
    from rich.console import Console

    from agentlightning.integrations.tongyi.book import PromptBook
    from agentlightning.integrations.tongyi.stats import table_of

    found = manager.statistics()
    if not found.total_interactions:
        _no_data()
        return
    book = PromptBook(manager.config.training.training_data_path)
    table = table_of(found, manager.config, book.versions, active=book.active, candidate=book.candidate)
    Console().print(table)
    _show_trials(manager, book)


def _show_trials(manager: Any, book: Any) -> None:
    from agentlightning.integrations.tongyi.trials import Trials

    trials = Trials(manager.config, manager.config.training.training_data_path, book)
    verdict = trials.verdict()
    if verdict is not None:
        counts = ", ".join(f"{arm} n={verdict.n[arm]} mean {_number(verdict.mean[arm])}" for arm in verdict.n)
        typer.echo(f"A/B test: {verdict.reason} ({counts})")
    for entry in trials.decided():
        typer.echo(f"A/B test of version {entry['candidate']}: {entry['reason']}")


def _explain_research(worker: Any) -> None:
    found = worker.last
    lines = ["", f"tools: {', '.join(worker.toolset.names)}"]
    lines += [f"not available: {name}: {why}" for name, why in worker.toolset.unavailable.items()]
    lines += [f"plan {number}: {step}" for number, step in enumerate(found.plan, start=1)]
    lines += [f"{call.tool} {call.arguments[:120]}{' (failed)' if call.is_error else ''}" for call in found.calls]
    lines += [f"{source.marker} {source.kind}: {source.locator}" for source in found.sources]
    lines += [f"taken out, never read: {what}" for what in found.flagged]
    lines += [f"not found in the sources: {what}" for what in found.unsupported]
    lines += [f"note: {note}" for note in found.notes]
    lines.append(f"{found.model_calls} model calls, {found.seconds:.1f} s")
    typer.echo("\n".join(lines), err=True)


class _Progress:
    """One line for each round, or for a tenth of the steps of fine-tuning, on standard error."""

    def __call__(self, event: dict[str, Any]) -> None:
        if event["type"] == "step" and "token_accuracy" in event:
            if event["step"] % max(1, event["steps"] // 10) == 0:
                typer.echo(f"  step {event['step']} of {event['steps']}: loss {event['loss']:.3f}", err=True)
            return
        if event["type"] == "step" and event.get("reward") is not None:
            spent = event.get("spent") or {}
            cost = f", {spent['calls']} calls" if "calls" in spent else ""
            typer.echo(f"  round {event['step']} of {event['steps']}: reward {event['reward']:.3f}{cost}", err=True)


def _no_data() -> None:
    from agentlightning.integrations.tongyi.training_manager import NO_DATA

    typer.echo(f"ℹ️ {NO_DATA}")  # noqa: RUF001 - the documented message


def _fail(message: str, reason: str) -> None:
    typer.secho(message, err=True, fg="red")
    if reason:
        typer.echo(f"   {reason}", err=True)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by the user."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # uvicorn has much to say of calls that Ctrl-C has cut; it sets its own level, hence a filter.
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.levelno > logging.ERROR)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # ours are explained in a line, the others raised again
        code = _explained(error)
        if code is None:
            raise
        sys.exit(code)


def _explained(error: Exception) -> int | None:
    from agentlightning.kit.errors import AgentLightningError

    if not isinstance(error, AgentLightningError):
        return None
    if error.code == "RUN_STOPPED":
        typer.secho(f"stopped: {error.message} The same command continues.", err=True, fg="yellow")
        return 130
    if isinstance(error, ImportError):
        _fail(f"❌ Optimized agents not available: {error.message}", error.hint)
        return 1
    typer.secho(f"error: {error.message}", err=True, fg="red")
    if error.hint:
        typer.echo(f"next:  {error.hint}", err=True)
    return 1


if __name__ == "__main__":
    main()

"""`agl import` and `agl export`: other products' sessions in, better agents out."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from agentlightning.cli.locations import StoreOption
from agentlightning.cli.options import AsJson
from agentlightning.cli.output import print_json

_IMPORT_EXAMPLES = """Examples:

  agl import training-camp session.json

  agl import training-camp session.json --check

  agl import training-camp --schema > training-camp.schema.json"""

_EXPORT_EXAMPLES = """Examples:

  agl export training-camp session.json --agent writer --prompt better.txt -o improved.json

  agl export training-camp session.json --result .agentlightning/runs/optimise-1/best_prompts.json -o improved.json"""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    bring = typer.Typer(help="Bring in what another product recorded.", no_args_is_help=True)
    bring.command(
        "training-camp",
        help="Add a session of Training Camp to the store: attempts become rollouts with their spans, scores feedback, "
        "and what was locked is preferred to what was not. Repeating it is harmless.",
        epilog=_IMPORT_EXAMPLES,
    )(import_training_camp)
    app.add_typer(bring, name="import")
    give = typer.Typer(help="Give improved agents back to another product.", no_args_is_help=True)
    give.command(
        "training-camp",
        help="Write an exported session again, with a new version of the agents whose prompts are better now. "
        "Everything else in it stays as it came.",
        epilog=_EXPORT_EXAMPLES,
    )(export_training_camp)
    app.add_typer(give, name="export")


def import_training_camp(
    file: Annotated[Path | None, typer.Argument(help="What Training Camp exported: JSON, or JSON with gzip.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether the file is right, and what is in it.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the format.")] = False,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    from agentlightning.integrations.training_camp import json_schema, load_export
    from agentlightning.kit.errors import BadInputError

    if schema:
        print_json(json_schema())
        return
    if file is None:
        raise BadInputError("Which file?", hint="agl import training-camp FILE")
    camp = load_export(file)
    scored = sum(attempt.score is not None for attempt in camp.attempts)
    found: dict[str, Any] = {
        "session": camp.session.id,
        "agents": len(camp.agent_ids),
        "lineages": len(camp.lineages),
        "attempts": len(camp.attempts),
        "scored": scored,
        "unread_events": dict(camp.unread),
    }
    if not check:
        found["imported"] = asyncio.run(_import(camp, store, quiet=as_json))
    if as_json:
        print_json(found)
        return
    typer.echo(
        f"session {camp.session.id}: {found['agents']} agents, {found['lineages']} lineages, "
        f"{found['attempts']} attempts, {scored} of them scored"
    )
    for kind, count in camp.unread.items():
        typer.echo(f"  not read: {count} events of type {kind}; an export writes them out again")
    if not check:
        typer.echo("  " + ", ".join(f"{count} {name}" for name, count in found["imported"].items() if count))
        if camp.lineages:
            from agentlightning.integrations.training_camp import session_id_of

            typer.echo(f"side by side: agl store lineages {session_id_of(camp)}")


async def _import(camp: Any, store: str | None, *, quiet: bool) -> dict[str, int]:
    from agentlightning.cli.locations import chosen_location
    from agentlightning.cli.output import progress
    from agentlightning.integrations.training_camp import import_camp
    from agentlightning.store import SqlLightningStore

    opened = SqlLightningStore(chosen_location(store))
    try:
        with progress("importing", quiet) as told:
            counts = await import_camp(
                opened, camp, progress=lambda done, all_of_them: told(done / all_of_them, f"{done}/{all_of_them}")
            )
    finally:
        await opened.close()
    return counts.as_dict()


def export_training_camp(
    file: Annotated[Path, typer.Argument(help="The session as Training Camp exported it.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to; standard output without it.")] = None,
    agent: Annotated[
        str | None, typer.Option("--agent", help="Whose prompt. Not needed if there is one agent.")
    ] = None,
    prompt: Annotated[Path | None, typer.Option("--prompt", help="File with the new system prompt.")] = None,
    result: Annotated[
        Path | None, typer.Option("--result", help="best_prompts.json of a run of `agl optimize`.")
    ] = None,
) -> None:
    import orjson

    from agentlightning.integrations.training_camp import Improvement, improved, load_export, prompts_of, write_export
    from agentlightning.integrations.training_camp.exporting import SYSTEM_PROMPT
    from agentlightning.kit.errors import BadInputError

    if (prompt is None) == (result is None):
        raise BadInputError("Give either --prompt or --result.", hint="See agl export training-camp --help.")
    camp = load_export(file)
    if agent is None:
        if len(camp.agent_ids) > 1:
            raise BadInputError("Which agent?", hint=f"Give --agent: {', '.join(camp.agent_ids)}.")
        agent = camp.agent_ids[0]
    prompts, evidence = _prompts(prompt, result)
    if len(prompts) == 1 and agent in camp.agent_ids and not prompts.keys() & prompts_of(camp.latest(agent)).keys():
        prompts = {SYSTEM_PROMPT: next(iter(prompts.values()))}  # agl optimize calls an only prompt prompt_template
    content = improved(camp, [Improvement(agent, prompts, evidence)])
    if output is None:
        sys.stdout.write(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    write_export(content, output)
    version = content["agents"][-1]["version"]
    typer.echo(f"{output}: {agent} version {version}")


def _prompts(prompt: Path | None, result: Path | None) -> tuple[dict[str, str], dict[str, Any]]:
    from agentlightning.integrations.training_camp.exporting import SYSTEM_PROMPT
    from agentlightning.kit.errors import BadInputError

    path = prompt or result
    try:
        text = path.read_text(encoding="utf-8") if path is not None else ""
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path} cannot be read: {error}") from error
    if prompt is not None:
        return {SYSTEM_PROMPT: text}, {}
    try:
        content = json.loads(text)
        prompts = {str(name): str(value["template"]) for name, value in content["best"]["prompts"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"{path} is no result of agl optimize: the best prompts are missing.") from error
    told = ("run_id", "optimizer", "is_improved", "comparisons", "spent")
    return prompts, {key: content[key] for key in told if key in content}

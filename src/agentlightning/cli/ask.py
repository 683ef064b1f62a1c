"""`agl ask`: put a question to one of the agents that come with the program, with its tools."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from agentlightning.cli.output import print_json

HELP = """Ask an agent that comes with the program (`agl agents list`), with its tools, on a model of yours.

Python runs in the sandbox, files are those of the folder given. A result of agl optimize replaces its prompt."""

EPILOG = """Examples:

  agl ask "Which lines of app.log tell why it stopped?" --agent log_agent --files . --model llama3.2

  agl ask "What is 2**100?" --agent code_agent

  agl ask "Summarise README.md" --agent summary_agent --files . --prompt best_prompts.json"""

_OPENAI = "https://api.openai.com/v1"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("ask", help=HELP, epilog=EPILOG)(ask)


def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    agent: Annotated[str, typer.Option(help="Which agent.")] = "research_agent",
    model: Annotated[str | None, typer.Option(help="Name of the model; else OPENAI_MODEL, or the only one.")] = None,
    base_url: Annotated[str | None, typer.Option(help="The server; else OPENAI_BASE_URL, or OpenAI's.")] = None,
    files: Annotated[Path | None, typer.Option(help="Folder that its tools may read and write.")] = None,
    prompt: Annotated[
        Path | None, typer.Option(help="Text file, or result of agl optimize, with another system prompt.")
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds it may take.", min=1)] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print answer, tools and tokens as JSON.")] = False,
) -> None:
    from agentlightning.kit.bridge import run_sync
    from agentlightning.kit.errors import BadInputError, NotFoundError
    from agentlightning.platform.agents.shipped import shipped

    if not question.strip():
        raise BadInputError("The question is empty.", hint='Write it in quotes: agl ask "What is …?"')
    definition = shipped(agent)
    if files is not None and not files.is_dir():
        raise NotFoundError(f"There is no folder {files}.", hint="Give --files FOLDER.")
    text = definition.system_prompt if prompt is None else _prompt_of(prompt)
    answer, name = run_sync(_ask(definition, text, question, model, base_url, files, timeout_s))
    if as_json:
        used = [{"tool": use.tool, "arguments": use.arguments, "is_error": use.result.is_error} for use in answer.uses]
        print_json(
            {"answer": answer.output, "model": name, "steps": answer.steps, "tools": used, "usage": answer.usage}
        )
        return
    for use in answer.uses:
        typer.secho(f"{use.tool}: {'failed' if use.result.is_error else 'ok'}", err=True, dim=True)
    typer.echo(answer.output)


def _prompt_of(path: Path) -> str:
    from agentlightning.kit.errors import BadInputError

    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return text
        from agentlightning.algorithm.prompt import read_prompts
        from agentlightning.platform.learning.trainable import as_prompt

        return as_prompt(next(iter(read_prompts(path).values())))
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise BadInputError(f"{path} holds no prompt: {error!r}.", hint="Give a text, or best_prompts.json.") from error


async def _ask(
    definition: Any,
    prompt: str,
    question: str,
    model: str | None,
    base_url: str | None,
    files: Path | None,
    limit: float,
) -> tuple[Any, str]:
    import asyncio
    import tempfile

    import httpx

    from agentlightning.cli.agents_shipped import only_model
    from agentlightning.kit.errors import UpstreamError
    from agentlightning.platform.models_config import ModelNotConfiguredError
    from agentlightning.platform.tasks.react import Answer, Setting, load, react
    from agentlightning.tools import ToolContext, start_tools, toolbox

    key = os.environ.get("OPENAI_API_KEY", "")
    if base_url is None and "OPENAI_BASE_URL" not in os.environ and not key:
        raise ModelNotConfiguredError("Say which server has the model: --base-url URL.")
    url = (base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI).rstrip("/")
    await load()
    from openai import OpenAIError

    box = toolbox()
    await start_tools(box.values())
    tools = [box[name] for name in definition.tools if name in box and not box[name].unavailable]
    answer = Answer()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    given = {"api_key": key} if key else {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            context = ToolContext(
                workspace=files or Path(folder), permissions=frozenset({"*"}), deadline_s=definition.timeout_s
            )
            async with (
                httpx.AsyncClient(base_url=f"{url}/", headers=headers, timeout=limit) as client,
                asyncio.timeout(limit),
            ):
                name = model or definition.model or os.environ.get("OPENAI_MODEL") or await only_model(client)
                setting = Setting(
                    model=name,
                    base_url=url,
                    client=client,
                    temperature=definition.temperature,
                    max_steps=definition.max_steps,
                    **given,
                )
                await react(setting, prompt, [{"role": "user", "content": question}], tools, context, answer)
    except TimeoutError as error:
        raise UpstreamError(f"There was no answer within {limit:g} s.", hint="Give it longer: --timeout.") from error
    except OpenAIError as error:
        raise UpstreamError(
            f"The model server at {url} did not answer: {error}",
            hint="Is it running, and are --base-url, --model and OPENAI_API_KEY right?",
        ) from error
    finally:
        for tool in box.values():
            await tool.close()
    return answer, name

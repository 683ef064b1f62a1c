"""`agl agents`: the agents that come with the program, and how well they do on a model of yours."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, Any

import typer

from agentlightning.cli.output import percent, print_json, print_table

EVALUATE_EPILOG = """Examples:

  agl agents evaluate code_agent --base-url http://127.0.0.1:11434/v1 --model llama3.2

  agl agents evaluate triage_agent --split held_out --json"""

_AT_ONCE = 4
_TRIES = 3
_OPENAI = "https://api.openai.com/v1"

NameArgument = Annotated[str, typer.Argument(help="E.g. code_agent.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(help="The agents that come with the program.", no_args_is_help=True)
    group.command("list", help="List them.", epilog="Example:  agl agents list --type data")(list_agents)
    group.command("show", help="Show one with its prompt.", epilog="Example:  agl agents show sql_agent")(show)
    group.command(
        "evaluate",
        help="Run an agent's evaluation set on an OpenAI-compatible server, without tools.",
        epilog=EVALUATE_EPILOG,
    )(evaluate)
    app.add_typer(group, name="agents")


def list_agents(
    type: Annotated[str | None, typer.Option(help="Only those of this family, e.g. data.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table for a page.")] = False,
    as_json: JsonOption = False,
) -> None:
    from agentlightning.platform.agents.shipped import shipped, shipped_names

    found = [shipped(name) for name in shipped_names()]
    found = [each for each in found if type is None or each.type == type.removesuffix("_agent")]
    if as_json:
        print_json([each.model_dump(mode="json", exclude={"evaluation", "system_prompt"}) for each in found])
        return
    if markdown:
        typer.echo(table_of(found))
        return
    rows = [(each.name, each.type, each.description, each.evaluator.kind, len(each.evaluation)) for each in found]
    print_table("", ("name", "type", "what for", "checked by", "cases"), rows, empty="no agent of that type")


def table_of(definitions: Any) -> str:
    """A Markdown table of agents, as the reference has it."""
    head = "| agent | type | what for | tools | capabilities | checked by | cases | learns |"
    lines = [head, "|---" * 8 + "|"]
    for each in definitions:
        cells = (
            f"`{each.name}`",
            each.type,
            each.description,
            ", ".join(each.tools) or "none",
            ", ".join(each.capabilities),
            each.evaluator.kind,
            f"{len(each.cases('train'))} + {len(each.cases('held_out'))}",
            f"{each.learning.algorithm} below {each.learning.threshold:.0%} {each.learning.metric}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def show(name: NameArgument, as_json: JsonOption = False) -> None:
    from agentlightning.platform.agents.shipped import shipped

    found = shipped(name)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    learning = found.learning
    for label, value in (
        ("name", f"{found.name} ({found.role})"),
        ("what for", found.description),
        ("tools", ", ".join(found.tools) or "none"),
        ("capable of", ", ".join(found.capabilities)),
        ("checked by", f"{found.evaluator.kind}, {len(found.evaluation)} cases"),
        ("learns", f"{learning.algorithm} below {percent(learning.threshold)} {learning.metric}"),
    ):
        typer.echo(f"{label:<11} {value}")
    typer.echo(f"\n{found.system_prompt.strip()}")


def evaluate(
    name: NameArgument,
    model: Annotated[str | None, typer.Option(help="Name of the model; else OPENAI_MODEL, or the only one.")] = None,
    base_url: Annotated[str | None, typer.Option(help="The server; else OPENAI_BASE_URL, or OpenAI's.")] = None,
    split: Annotated[str, typer.Option(help="train, held_out or all.")] = "all",
    limit: Annotated[int | None, typer.Option(help="Only the first so many cases.", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    from agentlightning.kit.bridge import run_sync
    from agentlightning.kit.errors import BadInputError
    from agentlightning.platform.agents.shipped import shipped

    if split not in ("train", "held_out", "all"):
        raise BadInputError(f"There is no split {split!r}.", hint="train, held_out or all")
    found = run_sync(_evaluate(shipped(name), model, base_url, split, limit))
    if as_json:
        print_json(found)
        return
    rows = [(each["case"], each["split"], _word(each), each["reason"][:80]) for each in found["results"]]
    print_table(f"{name} on {found['model']}", ("case", "split", "verdict", "why"), rows)
    low, high = found["interval"] or (float("nan"), float("nan"))
    typer.echo(f"\npassed {found['passed']} of {found['told']}, 95 %: [{100 * low:.0f}, {100 * high:.0f}] %")
    if found["told"] < found["cases"]:
        typer.echo(f"{found['cases'] - found['told']} could not be told")


async def _evaluate(
    definition: Any, model: str | None, base_url: str | None, split: str, limit: int | None
) -> dict[str, Any]:
    import httpx

    from agentlightning.algorithm.evaluators import Checker
    from agentlightning.kit.stats import wilson_interval
    from agentlightning.platform.agents.sandboxed import sandboxed

    cases = definition.cases(None if split == "all" else split)[:limit]
    url = (base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI).rstrip("/")
    key = os.environ.get("OPENAI_API_KEY", "")
    if base_url is None and "OPENAI_BASE_URL" not in os.environ and not key:
        from agentlightning.platform.models_config import ModelNotConfiguredError

        raise ModelNotConfiguredError("Say which server has the model: --base-url URL.")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=f"{url}/", headers=headers, timeout=definition.timeout_s) as client:
        chosen = model or os.environ.get("OPENAI_MODEL") or await only_model(client)

        async def ask(prompt: str) -> str:
            return await _complete(client, {"model": chosen, "messages": [{"role": "user", "content": prompt}]})

        checker = Checker(run_python=sandboxed, ask=ask)
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(number: int, case: Any) -> dict[str, Any]:
            body = {"model": chosen, "messages": _messages(definition, case), "temperature": definition.temperature}
            async with room:
                output = await _complete(client, body)
                verdict = await checker.check(definition.evaluator, case, output)
            return {
                "case": number,
                "split": case.split,
                "output": output,
                "score": verdict.score,
                "passed": verdict.passed,
                "reason": verdict.reason,
            }

        results = await asyncio.gather(*(one(number, case) for number, case in enumerate(cases)))
    told = [each for each in results if each["passed"] is not None]
    passed = sum(each["passed"] for each in told)
    return {
        "agent": definition.name,
        "model": chosen,
        "cases": len(results),
        "told": len(told),
        "passed": passed,
        "share": passed / len(told) if told else None,
        "interval": wilson_interval(passed, len(told)) if told else None,
        "results": results,
    }


def _messages(definition: Any, case: Any) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": definition.system_prompt}]
    for example in definition.few_shot:
        messages += [{"role": "user", "content": example.input}, {"role": "assistant", "content": example.output}]
    return [*messages, {"role": "user", "content": case.input}]


async def only_model(client: Any) -> str:
    from agentlightning.kit.errors import BadInputError

    answered = await _request(client, "GET", "models", None)
    names = [str(each.get("id")) for each in answered.get("data", [])]
    if len(names) != 1:
        raise BadInputError("Say which model: --model NAME.", hint=f"The server has: {', '.join(names) or 'none'}.")
    return names[0]


async def _complete(client: Any, body: dict[str, Any]) -> str:
    from agentlightning.kit.errors import UpstreamError

    answered = await _request(client, "POST", "chat/completions", body)
    try:
        return str(answered["choices"][0]["message"].get("content") or "")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UpstreamError("The server answered something that is no completion.") from error


async def _request(client: Any, method: str, path: str, body: Any) -> dict[str, Any]:
    """The JSON that the server answers; tried again when it is busy."""
    import httpx

    from agentlightning.kit.errors import UpstreamError

    problem = ""
    for attempt in range(_TRIES):
        if attempt:
            await asyncio.sleep(2.0**attempt)
        try:
            answered = await client.request(method, path, json=body)
            if answered.is_success:
                return answered.json()
            problem = f"answered {answered.status_code}: {answered.text[:200]}"
            if answered.status_code not in (429, 500, 502, 503, 529):
                break
        except httpx.HTTPError as error:
            problem = f"does not answer ({type(error).__name__})"
        except ValueError as error:
            raise UpstreamError(f"{client.base_url} answered no JSON.") from error
    raise UpstreamError(f"{client.base_url} {problem}", hint="Check --base-url, --model and OPENAI_API_KEY.")


def _word(result: dict[str, Any]) -> str:
    return {True: "right", False: "wrong", None: "?"}[result["passed"]]

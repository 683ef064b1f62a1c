"""`agl chat`: talk to a model, or ask the demo's agent a question about a sample database."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Talk to a model.

The demo's model speaks SQL only, so with it (the default) a question goes to the text-to-SQL agent and a sample
database; with --plain, or another model, it is an ordinary conversation."""

EPILOG = """Examples:

  agl chat

  agl chat "How many cars are from Japan?"

  agl chat --database my.sqlite --model demo@v1

  agl chat --model ./Qwen3-0.6B"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(help=HELP, epilog=EPILOG)(chat)


def chat(
    question: Annotated[str | None, typer.Argument(help="Ask this and leave; without it, a dialogue.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model directory, hub id, registered name, or nano (default: the demo's best)."),
    ] = None,
    database: Annotated[Path | None, typer.Option(help="SQLite file to ask about.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="A conversation without the SQL agent.")] = False,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.", min=0)] = 0.0,
) -> None:
    from agentlightning.kit.bridge import run_sync

    run_sync(_chat(question, model, database, temperature, plain=plain))


async def _chat(
    question: str | None, model: str | None, database: Path | None, temperature: float, *, plain: bool
) -> None:
    import contextlib
    import tempfile

    from agentlightning.gateway import Gateway
    from agentlightning.gateway.upstream.engine import EngineUpstream
    from agentlightning.learner.client import EngineClient
    from agentlightning.store import InMemoryLightningStore

    path, sql = _choose_model(model)
    async with contextlib.AsyncExitStack() as stack:
        store = InMemoryLightningStore()
        stack.push_async_callback(store.close)
        engine = await EngineClient.start(path)
        stack.push_async_callback(engine.close)
        gateway = Gateway(store, upstreams=[EngineUpstream(engine, name="default")])
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        if sql and not plain:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            talker: Any = _SqlTalker(gateway, store, database or _sample_database(Path(folder)), temperature)
        else:
            talker = _PlainTalker(gateway, temperature)
        talker.greet(path)
        await _dialogue(talker, question)


def _choose_model(name: str | None) -> tuple[str, bool]:
    """The model's path, and whether it is the demo's kind (which speaks SQL only)."""
    from agentlightning import nano
    from agentlightning.cli.agents import resolve_model
    from agentlightning.config import Settings
    from agentlightning.registry import ModelRegistry

    if name is not None:
        path = resolve_model(name)
        return path, name == "nano" or name.startswith("demo")
    versions = ModelRegistry(Settings().models_path).versions("demo")
    return (str(versions[-1].path) if versions else str(nano.model_path())), True


def _sample_database(folder: Path) -> Path:
    from agentlightning.nano.databases import build_database

    return build_database(3000, folder)


async def _dialogue(talker: Any, question: str | None) -> None:
    if question is not None:
        await talker.ask(question)
        return
    while True:
        try:
            line = (await asyncio.to_thread(input, "\n> ")).strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line in ("", "exit", "quit", "/exit", "/quit"):
            return
        await talker.ask(line)


class _SqlTalker:
    """Sends each question to the SQL agent and shows the whole transcript."""

    def __init__(self, gateway: Any, store: Any, database: Path, temperature: float) -> None:
        self.gateway, self.store, self.database = gateway, store, database
        self.temperature = temperature

    def greet(self, model: str) -> None:
        from agentlightning.cli.agents import load_object
        from agentlightning.cli.demo import agent_path
        from agentlightning.kit.errors import NotFoundError

        if not self.database.is_file():
            raise NotFoundError(f"There is no database {self.database}.")
        self.answer = load_object(f"{agent_path()}:answer")
        schema = load_object(f"{agent_path()}:read_schema")(str(self.database))
        typer.echo(f"model {model}\ntables of {self.database.name}:\n{schema}")

    async def ask(self, question: str) -> None:
        from openai import AsyncOpenAI
        from rich.console import Console

        from agentlightning.cli.transcript import render

        rollout = await self.store.start_rollout(input={"question": question})
        self.gateway.sampling.register([rollout.rollout_id], overrides={"temperature": self.temperature})
        base = f"{self.gateway.url}/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}/v1"
        async with AsyncOpenAI(base_url=base, api_key=self.gateway.api_key or "unused") as client:
            found = await self.answer(question, str(self.database), client=client)
        console = Console()
        console.print(render(await self.store.query_spans(rollout.rollout_id), reward=False))
        for row in (found.rows or [])[:20]:
            console.print("  " + " | ".join(str(cell) for cell in row), style="bold", markup=False)
        if found.rows is None:
            console.print(f"  no answer: {found.error or 'the model wrote no query'}", style="red", markup=False)


class _PlainTalker:
    """A conversation, streamed."""

    def __init__(self, gateway: Any, temperature: float) -> None:
        self.gateway, self.temperature = gateway, temperature
        self.messages: list[Any] = []

    def greet(self, model: str) -> None:
        typer.echo(f"model {model}")

    async def ask(self, question: str) -> None:
        from openai import AsyncOpenAI

        self.messages.append({"role": "user", "content": question})
        parts: list[str] = []
        async with AsyncOpenAI(base_url=f"{self.gateway.url}/v1", api_key=self.gateway.api_key or "unused") as client:
            stream = await client.chat.completions.create(
                model="default", messages=self.messages, temperature=self.temperature, stream=True
            )
            async for chunk in stream:
                piece = chunk.choices[0].delta.content if chunk.choices else None
                if piece:
                    parts.append(piece)
                    typer.echo(piece, nl=False)
        typer.echo()
        self.messages.append({"role": "assistant", "content": "".join(parts)})

"""`agl serve`: store, gateway and (with a model) the engine on one port."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from agentlightning.cli.locations import StoreOption, chosen_location

HELP = """Serve a model and record every call.

OpenAI-compatible at /v1, rollout-scoped at /rollout/{id}/attempt/{id}/v1, the store at /v1/agl."""

EPILOG = """Examples:

  agl serve --model nano --port 8005

  agl serve --model demo@v1

  agl serve --base-url http://127.0.0.1:11434/v1

  AGL_STORE_TOKEN=$(openssl rand -hex 32) agl serve --model nano --host 0.0.0.0"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(help=HELP, epilog=EPILOG)(serve)


def serve(
    model: Annotated[str | None, typer.Option(help="Model directory, hub id, registered name, or nano.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Front this OpenAI-compatible server instead.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8005,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    store: StoreOption = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="AGL_STORE_TOKEN", help="Ask for this token on the store's routes; better by environment."),
    ] = None,
    is_open: Annotated[
        bool, typer.Option("--open", help="Let other machines use the store without a token, too.")
    ] = False,
) -> None:
    from agentlightning.kit.bridge import run_sync

    run_sync(_serve(model, base_url, host, port, device, store, token, is_open))


async def _serve(
    model: str | None,
    base_url: str | None,
    host: str,
    port: int,
    device: str,
    location: str | None,
    token: str | None,
    is_open: bool,
) -> None:
    import asyncio
    import contextlib
    import os
    import signal

    from agentlightning.cli.agents import resolve_model
    from agentlightning.config import Settings
    from agentlightning.gateway import Gateway, spool_folder
    from agentlightning.gateway.upstream.engine import EngineUpstream
    from agentlightning.gateway.upstream.openai import OpenAIUpstream
    from agentlightning.kit.errors import BadInputError
    from agentlightning.learner.client import EngineClient
    from agentlightning.store import SqlLightningStore
    from agentlightning.store.access import check_exposure, store_token
    from agentlightning.store.routes import store_routes

    if model is not None and base_url is not None:
        raise BadInputError("--model and --base-url exclude each other.")
    token = store_token(token)
    check_exposure(host, token, is_open=is_open)
    async with contextlib.AsyncExitStack() as stack:
        store = SqlLightningStore(chosen_location(location))
        stack.push_async_callback(store.close)
        upstreams: Any
        if base_url is not None:
            upstreams = [OpenAIUpstream(base_url, api_key=os.environ.get("OPENAI_API_KEY"))]
        else:
            engine = await EngineClient.start(resolve_model(model), device=device)
            stack.push_async_callback(engine.close)
            upstreams = dict.fromkeys(("default", model or "nano"), EngineUpstream(engine, name=model or "nano"))
        routes = store_routes(store, token=token)
        spool = spool_folder(store, Settings().home)
        gateway = Gateway(store, upstreams=upstreams, host=host, port=port, extra_routes=routes, spool=spool)
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        typer.echo(f"serving {base_url or resolve_model(model)}")
        typer.echo(f"  OPENAI_BASE_URL={gateway.url}/v1   model: default")
        typer.echo(f"  store: {gateway.url}/v1/agl   health: {gateway.url}/health   stop: Ctrl-C")
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, stopped.set)
        await stopped.wait()

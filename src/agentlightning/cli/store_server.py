"""`agl store serve`: the store alone over HTTP, without gateway and model. And `agl store --port`, as in 0.3."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from agentlightning.cli.locations import StoreOption, chosen_location

if TYPE_CHECKING:
    from agentlightning.store import LightningStore, LightningStoreServer

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)]
Token = Annotated[str | None, typer.Option(envvar="AGL_STORE_TOKEN", help="Ask for this token; better by environment.")]
IsOpen = Annotated[bool, typer.Option("--open", help="Let other machines use the store without a token, too.")]
Origins = Annotated[
    list[str] | None,
    typer.Option("--cors-origin", help="Origin that browsers may call from (repeatable); '*' for all."),
]


def register(group: typer.Typer) -> None:
    """Add the command, and what the group does without one."""
    group.callback(invoke_without_command=True)(serve_as_03)
    group.command(
        name="serve",
        help="Serve the store alone over HTTP, for runners and algorithms elsewhere; agl serve adds gateway and model.",
        epilog="Example:  AGL_STORE_TOKEN=... agl store serve --host 0.0.0.0 --port 4747",
    )(serve)


def serve_as_03(
    context: typer.Context,
    port: Annotated[int | None, typer.Option(hidden=True, min=0, max=65535)] = None,
    host: Annotated[str, typer.Option(hidden=True)] = "127.0.0.1",
    cors_origins: Annotated[list[str] | None, typer.Option("--cors-origin", hidden=True)] = None,
    log_level: Annotated[str, typer.Option(hidden=True)] = "WARNING",
) -> None:
    if context.invoked_subcommand is not None or port is None:
        return
    from agentlightning.kit.logs import setup_logging

    setup_logging(log_level)
    serve(host=host, port=port, cors_origins=cors_origins)


def serve(
    store: StoreOption = None,
    host: Host = "127.0.0.1",
    port: Port = 4747,
    token: Token = None,
    is_open: IsOpen = False,
    cors_origins: Origins = None,
) -> None:
    from functools import partial

    from agentlightning.kit.bridge import run_sync
    from agentlightning.store import LightningStoreServer
    from agentlightning.store.access import check_exposure, store_token

    check_exposure(host, store_token(token), is_open=is_open)  # before a file is made
    create = partial(
        LightningStoreServer,
        host=host,
        port=port,
        cors_allow_origins=cors_origins,
        launch_mode="asyncio",
        token=token,
        is_open=is_open,
    )
    run_sync(_serve(chosen_location(store), create))


async def _serve(location: str, create: Callable[[LightningStore], LightningStoreServer]) -> None:
    import asyncio

    from agentlightning.kit.signals import stop_requests
    from agentlightning.store import SqlLightningStore

    store = SqlLightningStore(location)
    try:
        server = create(store)
        await server.start()
        typer.echo(f"store: {server.endpoint}/v1/agl   OTLP: {server.otlp_traces_endpoint()}   stop: Ctrl-C")
        stopped = asyncio.Event()
        with stop_requests(lambda number: stopped.set()):
            await stopped.wait()
            await server.stop()
    finally:
        await store.close()

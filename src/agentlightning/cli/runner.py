"""`agl runner`: work for a store on another machine."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from agentlightning.runner import RunnerPool

HELP = """Run an agent for a store that is elsewhere.

Claims rollouts from the store of a training or of `agl serve` on another machine, runs the agent on them here, and
reports spans and results back. Resources (prompts, the model's address) come with the rollouts. While the store is away
the runner waits, and keeps on disk what it has to report. The token comes from AGL_STORE_TOKEN."""

EPILOG = """Examples:

  AGL_STORE_TOKEN=... agl runner --store http://10.0.0.5:8005 --agent agent.py:solve

  agl runner --store http://10.0.0.5:8005 --agent my.module:solve --concurrency 16 --processes 4

  agl runner --store http://10.0.0.5:8005 --command "node agent.js" --max-rollouts 100

  agl runner --store http://10.0.0.5:8005 --agent fragile.py:solve --isolated --processes 8"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="runner", help=HELP, epilog=EPILOG)(runner)


def runner(
    store: Annotated[str, typer.Option(envvar="AGL_STORE_URL", help="Address of the store, http://host:port.")],
    agent: Annotated[str | None, typer.Option(help="path/to/file.py:function or module:function.")] = None,
    command: Annotated[str | None, typer.Option(help="Command line to run as the agent.")] = None,
    evaluator: Annotated[str | None, typer.Option(help="file.py:function(task, output) -> reward.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Rollouts at once per process (default 64).", min=1)] = None,
    processes: Annotated[int, typer.Option(help="Runner processes.", min=1)] = 1,
    isolated: Annotated[
        bool, typer.Option("--isolated", help="One rollout at a time per process: for agents that crash or block.")
    ] = False,
    max_rollouts: Annotated[int | None, typer.Option(help="End after so many per process.", min=1)] = None,
    gateway: Annotated[
        str | None, typer.Option(help="Model gateway for OPENAI_BASE_URL (default: the store's address, if it is one).")
    ] = None,
    lease: Annotated[
        float, typer.Option(help="How long the store waits for a sign of life before others get the work, seconds.")
    ] = 60.0,
    patience: Annotated[float, typer.Option(help="How long a store may be away, seconds.", min=0)] = 3600.0,
    drain: Annotated[float, typer.Option(help="When stopped: how long rollouts may finish, seconds.", min=0)] = 30.0,
    spool: Annotated[
        Path | None, typer.Option(help="Folder for reports while the store is away (default: below AGL_HOME).")
    ] = None,
) -> None:
    from agentlightning.kit.bridge import run_sync
    from agentlightning.kit.errors import BadInputError
    from agentlightning.runner import CommandAgent, RunnerPool
    from agentlightning.runner.spool import folder_of

    if (agent is None) == (command is None):
        raise BadInputError("Give either --agent or --command.", hint="See agl runner --help for examples.")
    if lease <= 0:
        raise BadInputError(f"--lease {lease:g} is no lease.", hint="Give seconds, more than 0.")
    if not store.startswith(("http://", "https://")):
        raise BadInputError(f"--store {store!r} is no address.", hint="Write --store http://host:port.")
    from agentlightning.config import Settings

    root = store.rstrip("/").removesuffix("/v1/agl")
    options: dict[str, Any] = {
        "store_url": root,
        "n_runners": processes,
        "max_concurrency": concurrency,
        "isolated": isolated,
        "gateway_key": os.environ.get("AGL_GATEWAY_KEY") or None,
        "evaluator": evaluator,
        "max_rollouts": max_rollouts,
        "store_patience_s": patience,
        "heartbeat_interval": lease / 3,
        "drain_timeout_s": drain,
        "spool": spool or folder_of(root, Settings().home),
    }
    subject = agent if command is None else CommandAgent(command)

    async def work() -> bool:
        found = gateway or await _gateway_at(root, patience)
        return await _work(RunnerPool(subject, gateway_url=found, log_path=_log_path(), **options), root)

    if run_sync(work()):
        raise typer.Exit(130)


def _log_path() -> Path:
    from agentlightning.config import Settings

    return Settings().home / "runners.log"


async def _gateway_at(root: str, patience_s: float) -> str | None:
    """The gateway's base URL when one answers at the store's address; waits for whoever does.

    Raises:
        StorageError: Nobody answers.
    """
    import time

    import httpx

    from agentlightning.kit.errors import StorageError

    started, pause_s, said = time.monotonic(), 0.2, False
    async with httpx.AsyncClient(timeout=10.0) as http:
        while True:
            try:
                answer = await http.get(f"{root}/v1/models")
            except httpx.HTTPError as error:
                if time.monotonic() - started >= patience_s:
                    raise StorageError(
                        f"Nothing answers at {root}: {error}.", hint="Check the address, and that the store runs."
                    ) from error
                if not said:
                    typer.echo(f"waiting for {root} ({error})", err=True)
                    said = True
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 5.0)
            else:
                return f"{root}/v1" if answer.status_code in (200, 401, 403) else None


async def _work(pool: RunnerPool, root: str) -> bool:
    """Run until the pool has ended; whether the user stopped it.

    Raises:
        AgentLightningError: The agent does not import, the token is wrong, or the store stayed away.
    """
    import signal

    from agentlightning.kit.signals import stop_requests

    stopped = asyncio.Event()
    by_user = False

    def stop(number: int) -> None:
        nonlocal by_user
        by_user = by_user or number == signal.SIGINT
        if not stopped.is_set():
            typer.echo("stopping: what runs may finish, the rest is handed back", err=True)
        stopped.set()

    with stop_requests(stop):
        await _until(stopped, pool, root)
    return by_user


async def _until(stopped: asyncio.Event, pool: RunnerPool, root: str) -> None:
    starting: asyncio.Task[Any] = asyncio.create_task(pool.start())
    waiting: asyncio.Task[Any] = asyncio.create_task(stopped.wait())
    ended: asyncio.Task[Any] | None = None
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            typer.echo(f"working for {root}   processes: {len(pool.pids())}   stop: Ctrl-C")
            ended = asyncio.create_task(pool.wait())
            await asyncio.wait({ended, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                ended.result()
    finally:
        tasks = [starting, waiting] if ended is None else [starting, waiting, ended]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await pool.stop()

"""Joins an existing Ray cluster, or says within a bounded time why not. Knows no runners."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import socket
import threading
from pathlib import Path
from typing import Any

from agentlightning.kit.errors import ConfigError, MissingExtraError

_CONNECT_TIMEOUT_S = 10.0
_JOIN_TIMEOUT_S = 60.0


def import_ray() -> Any:
    """The package.

    Raises:
        MissingExtraError: It is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        importlib.import_module("ray.exceptions")
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError("Ray is not installed.", hint="pip install 'agentlightning[ray]'") from error


async def join_cluster(ray: Any, address: str, namespace: str, working_dir: Path | None) -> None:
    """Connect this process to a cluster.

    Args:
        ray: The package.
        address: `host:port`, `ray://host:port`, or `auto` for the one of this machine.
        namespace: Of the actors.
        working_dir: Folder that Ray copies to the nodes.

    Raises:
        ConfigError: Nobody answers there, or it is no address.
    """
    await asyncio.to_thread(_check_address, address)
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[None] = loop.create_future()

    def join() -> None:
        error: Exception | None = None
        try:
            ray.init(
                address=address,
                namespace=namespace,
                runtime_env={"working_dir": str(working_dir)} if working_dir is not None else None,
                log_to_driver=False,
                configure_logging=False,
            )
        except Exception as failed:  # noqa: BLE001 - raised again where it is awaited
            error = failed
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(_settle, outcome, error)

    # A daemon thread: when Ray waits for a cluster that is gone, it must not hold up the end of the program. Not the
    # main thread, where Ray would put signal handlers of its own.
    threading.Thread(target=join, name="agentlightning-ray", daemon=True).start()
    try:
        async with asyncio.timeout(_JOIN_TIMEOUT_S):
            await outcome
    except (RuntimeError, ValueError, OSError) as error:  # OSError: ConnectionError and TimeoutError too
        raise _no_cluster(address, error) from error


def first_line(error: BaseException) -> str:
    """Ray's messages are long; the first line says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _settle(outcome: asyncio.Future[None], error: Exception | None) -> None:
    if outcome.done():
        return
    if error is None:
        outcome.set_result(None)
    else:
        outcome.set_exception(error)


def _check_address(address: str) -> None:
    """Look whether anybody listens, since Ray itself would wait for a minute."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(
            f"{address!r} is no address of a Ray cluster.", hint="Write host:port, e.g. 10.0.0.5:6379, or auto."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: BaseException) -> ConfigError:
    where = "on this machine" if address == "auto" else f"at {address}"
    return ConfigError(
        f"No Ray cluster answers {where}: {first_line(error)}",
        hint="Start one with 'ray start --head', or give the address (host:port) of one that runs.",
    )

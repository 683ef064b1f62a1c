"""`LightningStoreServer`: a store on its own port, and itself a store. Knows the store's interface and routes only."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from agentlightning.kit.errors import ConfigError, StorageError
from agentlightning.kit.http import HttpServer
from agentlightning.store import verbs, wire
from agentlightning.store.access import check_exposure, store_token
from agentlightning.store.base import LightningStore, LightningStoreCapabilities, LightningStoreStatistics
from agentlightning.store.client import LightningStoreClient
from agentlightning.store.routes import create_store_app

logger = logging.getLogger(__name__)

R = TypeVar("R")

DEFAULT_PORT = 4747
_START_TIMEOUT_S = 30.0


class LightningStoreServer(LightningStore):
    """Serves a store over HTTP. In this process its methods go straight to the store, in forked ones and in those that
    it is sent to over HTTP.

    Args:
        store: The store to serve; its owner closes it.
        host: Address to listen on; by default this machine only.
        port: Port; by default 4747, 0 takes a free one.
        cors_allow_origins: Origins that browsers may call from; `"*"` for all.
        launch_mode: `"thread"` serves from a thread with an event loop of its own, `"asyncio"` from the loop that
            calls `start`. 0.3's `"mp"` is refused.
        launcher_args: Must be `None`: 0.3's arguments for a launcher that is not part of this.
        n_workers: One.
        tracker: Accepted for compatibility; nobody is told.
        token: Bearer token that clients have to send; by default `AGL_STORE_TOKEN`, if set.
        is_open: Let other machines in without a token, too.

    Raises:
        ConfigError: Another launch mode, launcher arguments, several workers, or an address that other machines reach
            without a token.
    """

    def __init__(
        self,
        store: LightningStore,
        host: str | None = None,
        port: int | None = None,
        cors_allow_origins: Sequence[str] | str | None = None,
        launch_mode: Literal["asyncio", "thread", "mp"] = "thread",
        launcher_args: None = None,
        n_workers: int = 1,
        tracker: object | None = None,
        *,
        token: str | None = None,
        is_open: bool = False,
    ) -> None:
        if launch_mode not in ("asyncio", "thread"):
            raise ConfigError(f"launch_mode {launch_mode!r} is not supported.", hint="Use 'thread' or 'asyncio'.")
        if launcher_args is not None:
            raise ConfigError("There is no launcher to take launcher_args.", hint="Give host, port and launch_mode.")
        if n_workers != 1:
            raise ConfigError(
                f"One server is one process, not {n_workers}.",
                hint="Start `agl store serve` several times on the same file or PostgreSQL database, each on its port.",
            )
        if tracker is not None:
            logger.warning("LightningStoreServer(tracker=...) has no effect.")
        self.store = store
        self._token = token = store_token(token)
        check_exposure(host or "127.0.0.1", token, is_open=is_open)
        self._launch_mode = launch_mode
        app = create_store_app(store, token=token, cors_allow_origins=cors_allow_origins)
        self._http = HttpServer(app, host=host or "127.0.0.1", port=DEFAULT_PORT if port is None else port)
        self._thread: _ServerThread | None = None
        self._owner = os.getpid()
        self._remote: LightningStoreClient | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process talks to this one."""
        return _client, (self.endpoint, self._token)

    @property
    def endpoint(self) -> str:
        """Address for `LightningStoreClient`; with port 0 known after `start`."""
        return self._http.url

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """What this implementation can do."""
        return LightningStoreCapabilities(thread_safe=True, async_safe=True, zero_copy=True, otlp_traces=True)

    def otlp_traces_endpoint(self) -> str:
        """URL to which OpenTelemetry exporters may send traces."""
        return self.endpoint + wire.OTLP_PATH

    async def start(self) -> None:
        """Serve; returns when connections are accepted.

        Raises:
            PortInUseError: Another program listens on the port.
        """
        if self._launch_mode == "asyncio":
            await self._http.start()
        elif self._thread is None:
            thread = _ServerThread(self._http)
            await asyncio.to_thread(thread.start_and_wait)
            self._thread = thread

    async def run_forever(self) -> None:
        """Serve until cancelled."""
        await self.start()
        try:
            await asyncio.Event().wait()
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Stop serving; requests under way get a few seconds. The store stays open. In a forked process: nothing."""
        if self._is_forked():
            return
        if self._launch_mode == "asyncio":
            await self._http.stop()
        elif self._thread is not None:
            thread, self._thread = self._thread, None
            await asyncio.to_thread(thread.stop_and_wait)

    async def close(self) -> None:
        """Stop serving; in a forked process: close the connections to the server."""
        await self.stop()
        if self._remote is not None:
            await self._remote.close()

    async def statistics(self) -> LightningStoreStatistics:
        """Count what is stored."""
        return await self._here().statistics()

    async def execute(self, verb: verbs.Verb[R]) -> R:
        """Execute one verb on the store, without HTTP unless this process was forked from the server's."""
        return await self._here().execute(verb)

    def _is_forked(self) -> bool:
        return os.getpid() != self._owner

    def _here(self) -> LightningStore:
        """What to call in this process: a forked one has no copy of the store's threads."""
        if not self._is_forked():
            return self.store
        if self._remote is None:
            self._remote = _client(self.endpoint, self._token)
        return self._remote


def _client(address: str, token: str | None) -> LightningStoreClient:
    return LightningStoreClient(address, token=token)


class _ServerThread:
    """An HTTP server in an event loop on a thread of its own."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="agl-store-server", daemon=True)

    def start_and_wait(self) -> None:
        """Start; raises what the server's start raised."""
        self._thread.start()
        if not self._ready.wait(_START_TIMEOUT_S):
            raise StorageError(f"The store server did not start within {_START_TIMEOUT_S:.0f} s.")
        if self._error is not None:
            raise self._error

    def stop_and_wait(self) -> None:
        """Stop and join the thread."""
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            await self._server.start()
        except Exception as error:  # noqa: BLE001 - raised again in start_and_wait
            self._error = error
            self._ready.set()
            return
        self._ready.set()
        try:
            await self._stop.wait()
        finally:
            await self._server.stop()

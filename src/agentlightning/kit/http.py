"""An ASGI server inside the running event loop, and sockets bound with clear errors. Knows no application.

The caller keeps its own signal handlers and its own event loop; several servers may share one loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Generator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, TypeVar

from agentlightning.kit.errors import AgentLightningError, ConfigError, PortInUseError

if TYPE_CHECKING:
    import uvicorn

T = TypeVar("T")

Message = MutableMapping[str, Any]
AsgiApp = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]

# Longer than the idle time of common client pools (httpx 5 s, aiohttp 15 s): the client closes first and no
# request is written to a connection that the server is just closing.
_KEEP_ALIVE_S = 75
_CANCEL_GRACE_S = 5.0
_WEBSOCKET_MAX_BYTES = 64 * 1024
_STOPPING = "agentlightning.stopping"


def bind_socket(host: str, port: int) -> socket.socket:
    """Bind a TCP socket; `port=0` takes a free one.

    Raises:
        PortInUseError: Another program listens there.
        ConfigError: The host is not an address of this machine, or the port is not allowed.
    """
    if not 0 <= port <= 65535:  # getaddrinfo would quietly wrap it around
        raise ConfigError(f"Cannot listen on {host}:{port}: ports go from 0 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"Cannot listen on {host}:{port}: {error}.", hint="Check the host name.") from error
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Listening already here makes a second listener fail now rather than when its server starts.
        bound.listen(1)
    except OSError as error:
        bound.close()
        raise _bind_error(host, port, error) from error
    bound.setblocking(False)
    return bound


def _bind_error(host: str, port: int, error: OSError) -> AgentLightningError:
    number = error.errno
    if number == errno.EADDRINUSE:
        return PortInUseError(
            f"Port {port} on {host} is taken by another program.",
            hint="Stop it, choose another port, or use port 0 for a free one.",
            details={"host": host, "port": port},
        )
    if number in (errno.EACCES, errno.EPERM):
        hint = "Ports below 1024 need privileges; choose a higher one."
    else:
        hint = "Check host and port; 127.0.0.1 is this machine, 0.0.0.0 all its addresses."
    return ConfigError(f"Cannot listen on {host}:{port}: {error}.", hint=hint)


async def unless_stopping(scope: Mapping[str, Any], work: Awaitable[T]) -> T | None:
    """What `work` gives; `None`, and it is cancelled, when the server that the request came to begins to stop.

    For answers without an end: they would hold up the stop for the whole grace time.
    """
    stopping: asyncio.Event | None = (scope.get("extensions") or {}).get(_STOPPING)
    if stopping is None:
        return await work
    working, over = asyncio.ensure_future(work), asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({working, over}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        over.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago; prefer `port=0` where the server itself may choose."""
    with bind_socket(host, 0) as bound:
        return bound.getsockname()[1]


class HttpServer:
    """Serves an ASGI app on its own port within the running event loop.

    Args:
        app: The application; its lifespan events are not sent, the owner starts what it needs.
        host: Address to listen on.
        port: Port; 0 takes a free one, see `port` after `start`.
        shutdown_grace_s: How long `stop` lets requests finish before it cancels them.
        websockets: Take websockets, too; needs the package `websockets`.
        bound: A socket that listens already, instead of `host` and `port`; closed when the server has stopped.
    """

    def __init__(
        self,
        app: AsgiApp,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        shutdown_grace_s: float = 5.0,
        websockets: bool = False,
        bound: socket.socket | None = None,
    ) -> None:
        self._app = app
        self.host, self.port = (host, port) if bound is None else bound.getsockname()[:2]
        self._bound = bound
        self._websockets = websockets
        self._shutdown_grace_s = shutdown_grace_s
        self._stopping = asyncio.Event()
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Base URL without a trailing slash. A wildcard address is given as the loopback one."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host and "[" not in host else f"http://{host}:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether it accepts connections."""
        return self._serving is not None and not self._serving.done()

    async def start(self) -> None:
        """Bind and serve; returns when connections are accepted. Calling it again is harmless.

        Raises:
            PortInUseError: Another program listens on the port.
            ConfigError: Host or port cannot be used.
        """
        if self.is_running:
            return
        bound = bind_socket(self.host, self.port) if self._bound is None else self._bound
        self.port = bound.getsockname()[1]
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stopping = self._stopping = asyncio.Event()

        async def app(
            scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
        ) -> None:
            scope["extensions"] = {**(scope.get("extensions") or {}), _STOPPING: stopping}
            await self._app(scope, receive, send)

        server = self._server = _new_server(app, self._shutdown_grace_s, ready, websockets=self._websockets)
        serving = self._serving = asyncio.create_task(server.serve([bound]), name=f"http:{self.port}")
        try:
            await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.stop()
            raise
        if serving.done():
            bound.close()
            serving.result()

    async def stop(self) -> None:
        """Stop accepting, end streams, give requests in flight their grace, then cancel them; harmless when stopped."""
        server, serving = self._server, self._serving
        self._server = self._serving = None
        if server is None or serving is None:
            return
        self._stopping.set()
        server.should_exit = True
        try:
            await serving
        finally:
            # uvicorn cancels what outlived the grace but does not wait for it.
            late = [task for task in server.server_state.tasks if not task.done()]
            if late:
                await asyncio.wait(late, timeout=_CANCEL_GRACE_S)

    async def __aenter__(self) -> HttpServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def _new_server(
    app: AsgiApp, shutdown_grace_s: float, ready: asyncio.Future[None], *, websockets: bool
) -> uvicorn.Server:
    import uvicorn

    class EmbeddedServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready.set_result(None)

        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None]:  # pyright: ignore[reportIncompatibleMethodOverride]
            yield  # Ctrl-C belongs to the program that embeds us

    config = uvicorn.Config(
        app,  # pyright: ignore[reportArgumentType]
        http="httptools",
        ws=_websocket_protocol() if websockets else "none",
        ws_max_size=_WEBSOCKET_MAX_BYTES,
        ws_max_queue=16,
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=2048,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(shutdown_grace_s)),
    )
    return EmbeddedServer(config)


def _websocket_protocol() -> type[asyncio.Protocol]:
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    class WebsocketProtocol(WebSocketsSansIOProtocol):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
                # A handshake that is refused with an answer is over, too; uvicorn would log an error for each.
                self.handshake_complete = True

    return WebsocketProtocol

"""Binds the model calls of an agent to its rollout, without a change to the agent.

Every httpx request that goes to the gateway from inside a rollout gets the rollout's path
(`/rollout/{id}/attempt/{id}/…`), so one module-global client serves many rollouts at once. openai, anthropic, LangChain
and litellm all send through httpx. Threads started inside a rollout inherit it. Knows nothing of dialects.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agentlightning.agent.scope import GatewayAddress, RolloutScope, bound_to, current_scope, own_scope, unattributed

logger = logging.getLogger(__name__)

_HTTP_MODULES = ("httpx", "httpx2")
"""Modules with the same client interface; patched once they are imported, never imported from here."""
_POOL_WORKER = "concurrent.futures.thread"
_BOUND = "agentlightning.bound"

_lock = threading.Lock()
_undo: list[Callable[[], None]] = []
_patched: set[str] = set()
_gateways: frozenset[GatewayAddress] = frozenset()
_key = ""
_key_is_for: GatewayAddress | None = None


def install(gateways: frozenset[GatewayAddress] = frozenset()) -> None:
    """Start binding. Idempotent, and cheap to repeat: a client library imported later is patched then.

    Args:
        gateways: Addresses that are gateways for every rollout of this process, beside those of a rollout's own.
    """
    global _gateways
    with _lock:
        if gateways:
            _gateways |= gateways
        _read_key()
        if not _patched:
            _patch_threads()
        for name in _HTTP_MODULES:
            if name not in _patched and hasattr(sys.modules.get(name), "AsyncClient"):
                _patched.add(name)
                _patch_http(sys.modules[name])


async def close_connections() -> None:
    """Close what bound calls of the running loop have opened; the next call opens new ones."""
    transport = sys.modules.get("agentlightning.agent.transport")
    if transport is not None:
        await transport.close()


def uninstall() -> None:
    """Undo `install`."""
    global _gateways, _key, _key_is_for
    with _lock:
        _key, _key_is_for = "", None
        while _undo:
            _undo.pop()()
        _patched.clear()
        _gateways = frozenset()


def _read_key() -> None:
    """The key that this run's gateway asks for, as the runner's starter has left it in the environment."""
    global _key, _key_is_for
    _key = os.environ.get("AGL_GATEWAY_KEY", "")
    url = os.environ.get("AGL_GATEWAY_URL", "")
    _key_is_for = GatewayAddress.parse(url) if _key and url else None


def _replace(owner: Any, name: str, wrapper: Any) -> None:
    original = getattr(owner, name)
    setattr(owner, name, wrapper)
    _undo.append(lambda: setattr(owner, name, original))


def _patch_http(module: Any) -> None:
    send_async, send_sync = module.AsyncClient.send, module.Client.send

    @functools.wraps(send_async)
    async def bound_async(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        bind_request(request)
        return await send_async(self, request, *args, **kwargs)

    @functools.wraps(send_sync)
    def bound_sync(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        bind_request(request)
        return send_sync(self, request, *args, **kwargs)

    if module.__name__ == "httpx":
        _patch_transport(module)
    _replace(module.AsyncClient, "send", bound_async)
    _replace(module.Client, "send", bound_sync)


def _patch_transport(module: Any) -> None:
    from agentlightning.agent import transport  # needs httpx, which is there by now

    handle = module.AsyncHTTPTransport.handle_async_request

    @functools.wraps(handle)
    async def handle_bound(self: Any, request: Any) -> Any:
        if _BOUND in request.extensions:
            return await transport.send(request)
        return await handle(self, request)

    _replace(module.AsyncHTTPTransport, "handle_async_request", handle_bound)


def bind_request(request: Any) -> None:
    """Rewrite the URL of an httpx request in place when it goes to a gateway and names no rollout yet."""
    url = request.url
    scope = current_scope()
    gateway = _gateway_of(url, scope)
    if gateway is None:
        return
    key = gateway.key or (_key if _key_is_for is not None and _key_is_for.serves(gateway.host, gateway.port) else "")
    if key:
        _set_key(request.headers, key)
    path: str = url.raw_path.decode("ascii")
    rest = path[len(gateway.prefix) :]
    if not path.startswith(gateway.prefix) or rest.startswith("/rollout/"):
        return
    if scope is None or not scope.rollout_id:
        if unattributed.count("model call") == 1:
            logger.warning(
                "A model call to the gateway was made outside of any rollout and belongs to none; more are counted."
            )
        return
    bound = f"{gateway.prefix}/rollout/{scope.rollout_id}/attempt/{scope.attempt_id}{rest}"
    request.url = url.copy_with(raw_path=bound.encode("ascii"))
    request.extensions[_BOUND] = True
    if "traceparent" not in request.headers:
        request.headers["traceparent"] = scope.traceparent()


def _set_key(headers: Any, key: str) -> None:
    """Agents may have written any key into their code; the gateway wants its own."""
    if "x-api-key" in headers:
        headers["x-api-key"] = key
    if "authorization" in headers or "x-api-key" not in headers:
        headers["authorization"] = f"Bearer {key}"


def _gateway_of(url: Any, scope: RolloutScope | None) -> GatewayAddress | None:
    known = scope.gateways | _gateways if scope is not None and scope.gateways else _gateways
    if not known:
        return None
    port = url.port or (443 if url.scheme == "https" else 80)
    found: GatewayAddress | None = None
    for gateway in known:
        if gateway.serves(url.host, port):
            if gateway.key:
                return gateway
            found = gateway
    return found


def _patch_threads() -> None:
    submit, start = ThreadPoolExecutor.submit, threading.Thread.start

    @functools.wraps(submit)
    def submit_in_scope(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        scope = own_scope()
        if scope is None:
            return submit(self, fn, *args, **kwargs)
        return submit(self, _in_scope(scope, fn), *args, **kwargs)

    @functools.wraps(start)
    def start_in_scope(self: threading.Thread) -> None:
        scope = own_scope()
        # Threads of a pool live longer than the rollout that happened to start them; their tasks bring the scope.
        target: Any = getattr(self, "_target", None)
        if scope is not None and getattr(target, "__module__", None) != _POOL_WORKER:
            self.run = _in_scope(scope, self.run)
        start(self)

    _replace(ThreadPoolExecutor, "submit", submit_in_scope)
    _replace(threading.Thread, "start", start_in_scope)
    _patched.add("threading")


def _in_scope(scope: RolloutScope, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with bound_to(scope):
            return function(*args, **kwargs)

    return run

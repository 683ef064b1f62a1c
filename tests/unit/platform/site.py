"""A platform that really runs: its own database, its own event loop in a thread, reached over a socket."""

import asyncio
import io
import secrets
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import bcrypt
import httpx
import jwt

from agentlightning.kit.http import HttpServer
from agentlightning.platform.app import create_app
from agentlightning.platform.auth import passwords
from agentlightning.platform.auth.models import User
from agentlightning.platform.migrations import migrate
from agentlightning.platform.mounts import ModelSetup
from agentlightning.platform.settings import PlatformSettings, load_settings

T = TypeVar("T")

PASSWORD = "four unrelated words"
_WAIT_S = 100
_hashes: dict[str, str] = {}


def until(holds: Callable[[], Any]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + _WAIT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def password_hash() -> str:
    """Of PASSWORD; made once."""
    if not _hashes:
        _hashes[PASSWORD] = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(passwords.ROUNDS)).decode()
    return _hashes[PASSWORD]


class Site:
    """A running platform with helpers to make users and log them in."""

    def __init__(self, settings: PlatformSettings, extend: Any = None, models: ModelSetup | None = None) -> None:
        self.settings = settings
        migrate(settings.location)
        self.app = create_app(settings, models)
        if extend is not None:
            extend(self.app)
        self.platform = self.app.state.platform
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.url = ""
        self._made = 0

    def start(self) -> "Site":
        self._thread.start()
        assert self._ready.wait(_WAIT_S)
        if self._failed is not None:
            raise self._failed
        self.client = httpx.Client(base_url=self.url, timeout=_WAIT_S)
        return self

    def stop(self) -> None:
        self.client.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_WAIT_S)
        assert not self._thread.is_alive(), self._what_it_waits_for()
        if self._failed is not None:
            raise self._failed
        self._loop.close()

    def _what_it_waits_for(self) -> str:
        told = io.StringIO()
        for task in asyncio.all_tasks(self._loop):
            task.print_stack(file=told)
        return told.getvalue()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the platform's own event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_WAIT_S)

    def add_user(self, role: str = "user", name: str = "", **more: Any) -> str:
        """A new user with PASSWORD; answers its name."""
        self._made += 1
        name = name or f"{role}{self._made}-{secrets.token_hex(3)}"

        now, hashed = time.time(), password_hash()
        given = {"password_hash": hashed, **more}
        user = User(username=name, role=role, created_at=now, updated_at=now, **given)

        async def add() -> None:
            async with self.platform.database.write() as session:
                session.add(user)

        self.run(add())
        return name

    def login(self, name: str, password: str = PASSWORD) -> dict[str, Any]:
        """The answer of a login that has to work."""
        found = self.client.post("/auth/login", json={"username": name, "password": password})
        assert found.status_code == 200, found.text
        return found.json()

    def headers(self, role: str = "user") -> dict[str, str]:
        """Of a fresh user with that role."""
        return bearer(self.login(self.add_user(role))["access_token"])

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:  # noqa: BLE001 - reported by start()
            self._failed = error
            self._ready.set()

    async def _serve(self) -> None:
        async with self.app.router.lifespan_context(self.app), HttpServer(self.app, websockets=True) as server:
            self.url = self.platform.url = server.url
            self._ready.set()
            await self._stop.wait()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def signing_key(site: Site) -> tuple[str, str]:
    return next(iter(site.platform.tokens._keys.items()))


def resigned(
    site: Site, token: str, key: str | None = None, header: dict[str, Any] | None = None, **claims: Any
) -> str:
    """The token with other claims, signed anew."""
    kid, right = signing_key(site)
    now = {**jwt.decode(token, options={"verify_signature": False}), **claims}
    return jwt.encode(
        {name: value for name, value in now.items() if value is not None},
        right if key is None else key,
        algorithm="HS256",
        headers={name: value for name, value in {"kid": kid, **(header or {})}.items() if value is not None},
    )


def settings_for(home: Any, **given: Any) -> PlatformSettings:
    """Without the surroundings' DATABASE_URL and REDIS_URL, and with limits that tests do not reach by accident."""
    generous = {"anonymous_per_minute": 100_000, "requests_per_minute": 100_000, "login_attempts_per_address": 10_000}
    return load_settings(**{"home": home, "DATABASE_URL": None, "REDIS_URL": None, **generous, **given})


def error_code(answer: httpx.Response) -> str:
    body = answer.json()
    assert body["success"] is False
    assert set(body) == {"success", "error", "timestamp", "request_id"}
    assert body["request_id"] == answer.headers["x-request-id"]
    return body["error"]["code"]


def raw(site: Site, text: str) -> str:
    """The status line for a request that no client library would send."""
    port = int(site.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(text.replace("\n", "\r\n").encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer.decode("latin-1")

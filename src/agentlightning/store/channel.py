"""Calls to a store server from one event loop: concurrent ones share a request, lost ones are repeated. Knows no verbs.

While a few requests are under way, further calls gather and leave together in the next one; the server answers each
for itself. So the cost of HTTP is shared by as many calls as there are at the time, and a single call waits for nobody.
"""

from __future__ import annotations

import asyncio
import io
import logging
import random
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from agentlightning.kit.collector import relax_collector, restore_collector
from agentlightning.kit.errors import AgentLightningError, StorageError
from agentlightning.store import wire

logger = logging.getLogger(__name__)

_MAX_FLIGHTS = 4
_MAX_BATCH = 256
_MAX_BATCH_BYTES = 4_000_000
_STREAM_BYTES = 500_000
_RETRY_STATUSES = (408, 429, 502, 503, 504)
_JITTER = 0.2
_LONGEST_RETRY_AFTER_S = 60.0

_outcomes = msgspec.msgpack.Decoder(list[wire.Outcome])


@dataclass(frozen=True, kw_only=True)
class ChannelSettings:
    """How to reach the server; times in seconds."""

    address: str
    token: str | None = field(repr=False)
    retry_delays: tuple[float, ...]
    health_retry_delays: tuple[float, ...]
    request_timeout: float
    connection_timeout: float


class Channel:
    """Connections of one event loop to one server."""

    def __init__(self, settings: ChannelSettings) -> None:
        self._settings = settings
        headers = {"content-type": wire.MSGPACK, "accept": wire.MSGPACK}
        if settings.token is not None:
            headers["authorization"] = f"Bearer {settings.token}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers=headers, auto_decompress=False
        )
        self._waiting: list[tuple[bytes, asyncio.Future[Any]]] = []
        self._flights: set[asyncio.Task[None]] = set()
        relax_collector()
        self._restore_collector = weakref.finalize(self, restore_collector)

    async def call(self, payload: bytes) -> Any:
        """Send one encoded verb, with whatever else is waiting, and return its decoded value.

        Raises:
            AgentLightningError: What the server raised.
            StorageError: The server did not answer, in spite of all retries.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((payload, future))
        if len(self._flights) < _MAX_FLIGHTS and (len(self._waiting) == 1 or not self._flights):
            self._flights.add(asyncio.create_task(self._fly()))
        return await future

    async def post(self, path: str, body: bytes, *, extra_s: float = 0.0) -> bytes:
        """POST `body`; repeat when the connection fails, which every caller's request has to allow for.

        Args:
            path: With its leading slash.
            body: Encoded as msgpack.
            extra_s: How much longer than usual the server may take on purpose, seconds.

        Raises:
            AgentLightningError: What the server raised.
            StorageError: It did not answer.
        """
        timeout = aiohttp.ClientTimeout(
            total=self._settings.request_timeout + extra_s,
            sock_connect=self._settings.connection_timeout,
        )
        problem: Exception | str = ""
        asked_s = 0.0
        for delay_s in (0.0, *self._settings.retry_delays):
            if delay_s:
                # Not all clients of a store that comes back should call in the same moment.
                delay_s = max(delay_s * random.uniform(1 - _JITTER, 1 + _JITTER), asked_s)
                logger.info("Store at %s: %s; next try in %s s.", self._settings.address, problem, delay_s)
                await self._pause(delay_s, at_least_s=asked_s)
            asked_s = 0.0
            try:
                # A stream, so that aiohttp sends a large body piece by piece.
                data = io.BytesIO(body) if len(body) > _STREAM_BYTES else body
                async with self._session.post(self._settings.address + path, data=data, timeout=timeout) as reply:
                    answer = await reply.read()
                    if reply.status < 300:
                        return answer
                    if reply.status not in _RETRY_STATUSES:
                        raise _error_of(reply.status, answer)
                    problem = f"status {reply.status}"
                    asked_s = _retry_after(reply.headers.get("retry-after"))
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = error
        raise StorageError(
            f"The store at {self._settings.address} does not answer: {problem or type(problem).__name__}.",
            hint="Check that it runs and that the address is right; what it acknowledged is safe.",
            details={"address": self._settings.address, "tries": 1 + len(self._settings.retry_delays)},
        )

    async def close(self) -> None:
        """Let requests under way finish, then close the connections."""
        while self._flights:
            await asyncio.gather(*self._flights, return_exceptions=True)
        self._restore_collector()
        await self._session.close()

    async def _fly(self) -> None:
        """Carry everything that waits, batch by batch, until nothing does."""
        try:
            await asyncio.sleep(0)  # let those that run in this turn of the loop come on board
            while self._waiting:
                await self._carry(self._board())
        finally:
            # In the same turn of the loop as the last look at who waits: a done callback would come later, and a call
            # in between would count on a flight that is over.
            flight = asyncio.current_task()
            assert flight is not None
            self._flights.discard(flight)

    async def _carry(self, batch: Sequence[tuple[bytes, asyncio.Future[Any]]]) -> None:
        futures = [future for _, future in batch]
        try:
            body = wire.msgpack_encoder.encode([msgspec.Raw(payload) for payload, _ in batch])
            outcomes = _decoded(await self.post(wire.BATCH_PATH, body), self._settings.address)
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - belongs to the callers, who get it
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, outcome in zip(futures, outcomes, strict=True):
            if future.done():
                continue
            if outcome.error is not None:
                future.set_exception(wire.error_from_wire(outcome.error))
            else:
                future.set_result(outcome.value)

    def _board(self) -> Sequence[tuple[bytes, asyncio.Future[Any]]]:
        size = count = 0
        for payload, _ in self._waiting[:_MAX_BATCH]:
            size += len(payload)
            if count and size > _MAX_BATCH_BYTES:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _pause(self, delay_s: float, *, at_least_s: float = 0.0) -> None:
        """Wait, but only until the server is back; `at_least_s` was asked for by a server that is there."""
        deadline = time.monotonic() + delay_s
        await asyncio.sleep(at_least_s)
        for nap_s in self._settings.health_retry_delays:
            await asyncio.sleep(min(nap_s, max(0.0, deadline - time.monotonic())))
            if time.monotonic() >= deadline or await self._is_healthy():
                return
        await asyncio.sleep(max(0.0, deadline - time.monotonic()))

    async def _is_healthy(self) -> bool:
        timeout = aiohttp.ClientTimeout(total=self._settings.connection_timeout)
        try:
            async with self._session.get(self._settings.address + wire.HEALTH_PATH, timeout=timeout) as reply:
                return reply.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False


def _retry_after(header: str | None) -> float:
    """Seconds that the server asked to wait, within reason; dates are not understood and count as none."""
    try:
        seconds = float(header or 0.0)
    except ValueError:
        return 0.0
    return min(seconds, _LONGEST_RETRY_AFTER_S) if seconds > 0.0 else 0.0


def _decoded(answer: bytes, address: str) -> list[wire.Outcome]:
    try:
        return _outcomes.decode(answer)
    except msgspec.MsgspecError as error:
        raise StorageError(f"What answers at {address} is no store: {error}.", hint="Check the address.") from error


def _error_of(status: int, answer: bytes) -> AgentLightningError:
    try:
        return wire.error_from_wire(msgspec.json.decode(answer, type=dict[str, Any]))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return StorageError(
            f"The store answered with status {status}: {answer[:200]!r}.",
            hint="Is something else listening at this address?",
        )

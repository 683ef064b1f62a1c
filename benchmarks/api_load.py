"""The load on `benchmarks/api.py`'s servers: users on keep-alive connections of their own, in a process of its own.

A user is a connection with a bearer token that asks, waits for the whole answer and asks again, at once or after a
pause. Callbacks on bare sockets: about 15 microseconds of CPU a request, a small part of what the servers take.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import multiprocessing.connection
import random
import time
from dataclasses import dataclass, field

import uvloop

_LATE_S = 30.0


@dataclass(frozen=True)
class Load:
    """What users do to one server.

    Attributes:
        port: Of the server, on this machine.
        requests: Heads and bodies without a token, of which users take one after the other in an order of their own.
        tokens: One for each user, used in turn; empty sends none.
        users: How many at once.
        seconds: How long.
        own: Requests that only that user may send, for each user.
        own_share: How much of what a user asks is of its own.
        pause_s: Mean of the exponential pause between an answer and the next request; 0 asks at once.
        once: Take every request once only, in order; for what has to be new each time.
        expected: Status of a good answer.
    """

    port: int
    requests: list[tuple[bytes, bytes]]
    tokens: list[str]
    users: int
    seconds: float
    own: list[list[tuple[bytes, bytes]]] = field(default_factory=list[list[tuple[bytes, bytes]]])
    own_share: float = 0.0
    pause_s: float = 0.0
    once: bool = False
    expected: bytes = b"200"


@dataclass
class Outcome:
    """What came back; latencies in seconds, sorted."""

    latencies: list[float] = field(default_factory=list[float])
    failed: int = 0
    failures: list[str] = field(default_factory=list[str])
    seconds: float = 0.0
    """To the last answer."""
    last: float = 0.0
    client_cpu_s: float = 0.0

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return (len(self.latencies) - self.failed) / self.seconds

    def percentile_ms(self, share: float) -> float:
        """Of the time to the whole answer."""
        return percentile(self.latencies, share) * 1000


def percentile(ordered: list[float], share: float) -> float:
    """The value that `share` of the sorted values are not above (nearest rank)."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


class User(asyncio.Protocol):
    """One connection."""

    def __init__(self, number: int, load: Load, run: Run) -> None:
        self._load, self._run = load, run
        self._number, self._random = number, random.Random(number)
        token = load.tokens[number % len(load.tokens)] if load.tokens else ""
        self._between = f"authorization: Bearer {token}\r\n\r\n".encode() if token else b"\r\n"
        self._buffer = b""
        self._began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def ask(self) -> None:
        """Send the next request, unless time is over."""
        request = self._run.next_request(self._number, self._random)
        if request is None:
            self._run.gone()
            return
        self._began = time.perf_counter()
        self._transport.write(request[0] + self._between + request[1])  # pyright: ignore[reportAttributeAccessIssue]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        place = head.find(b"content-length:")
        if place < 0 or len(self._buffer) < end + 4 + int(head[place + 15 :].split(b"\r", 1)[0]):
            return
        answer, self._buffer = self._buffer, b""
        outcome = self._run.outcome
        outcome.last = time.perf_counter()
        outcome.latencies.append(outcome.last - self._began)
        if answer[9:12] != self._load.expected:
            self._fail(answer[:500].decode("latin-1"))
        pause = self._load.pause_s
        if pause:
            asyncio.get_running_loop().call_later(self._random.expovariate(1 / pause), self.ask)
        else:
            self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._run.is_over:
            self._run.outcome.latencies.append(time.perf_counter() - self._began)
            self._fail(f"connection lost: {error}")
            self._run.gone()

    def close(self) -> None:
        """Hang up."""
        self._transport.close()

    def _fail(self, why: str) -> None:
        self._run.outcome.failed += 1
        if len(self._run.outcome.failures) < 3:
            self._run.outcome.failures.append(why)


class Run:
    """One load, from the first connection to the last answer."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._taken = 0
        self._until = 0.0
        self._left = load.users
        self._done = asyncio.Event()
        self.outcome = Outcome()
        self.is_over = False

    def next_request(self, user: int, chooser: random.Random) -> tuple[bytes, bytes] | None:
        """`None` when time is over, or all of those that may be sent once are sent."""
        if time.perf_counter() >= self._until:
            return None
        if self._load.own_share and chooser.random() < self._load.own_share:
            return chooser.choice(self._load.own[user % len(self._load.own)])
        if not self._load.once:
            return chooser.choice(self._load.requests)
        self._taken += 1
        return self._load.requests[self._taken - 1] if self._taken <= len(self._load.requests) else None

    def gone(self) -> None:
        """A user has finished."""
        self._left -= 1
        if not self._left:
            self._done.set()

    async def go(self) -> Outcome:
        """Connect everybody, then start the clock."""
        loop, users = asyncio.get_running_loop(), list[User]()
        for start in range(0, self._load.users, 100):
            made = [User(number, self._load, self) for number in range(start, min(start + 100, self._load.users))]
            await asyncio.gather(
                *(loop.create_connection(lambda user=user: user, "127.0.0.1", self._load.port) for user in made)
            )
            users += made
        cpu, began = time.process_time(), time.perf_counter()
        self._until = began + self._load.seconds
        for number, user in enumerate(users):
            if self._load.pause_s:  # they do not all come at the same moment
                loop.call_later(self._load.pause_s * number / len(users), user.ask)
            else:
                user.ask()
        async with asyncio.timeout(self._load.seconds + _LATE_S):
            await self._done.wait()
        self.outcome.seconds = max(self.outcome.last, began) - began
        self.outcome.client_cpu_s = time.process_time() - cpu
        self.is_over = True
        for user in users:
            user.close()
        self.outcome.latencies.sort()
        return self.outcome


def _serve(pipe: multiprocessing.connection.Connection) -> None:
    async def main() -> None:
        while (load := await asyncio.to_thread(pipe.recv)) is not None:
            gc.collect()
            gc.freeze()
            pipe.send(await Run(load).go())

    gc.disable()
    uvloop.run(main())


class Generator:
    """A process that loads servers, one load after the other."""

    def __enter__(self) -> Generator:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self._process.join(10)

    def run(self, load: Load) -> Outcome:
        """Do it and wait for the outcome."""
        self._pipe.send(load)
        if not self._pipe.poll(load.seconds + 2 * _LATE_S):
            raise TimeoutError("the load generator does not answer")
        return self._pipe.recv()


class _Echo(asyncio.Protocol):
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self.answer)  # pyright: ignore[reportAttributeAccessIssue]


def serve_nothing(pipe: multiprocessing.connection.Connection) -> None:
    """A server that answers a constant at once: with it the generator shows what it can do."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(_Echo, "127.0.0.1", 0, backlog=2048)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())

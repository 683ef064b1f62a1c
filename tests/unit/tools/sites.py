"""Small HTTP servers that say exactly what a test wants, byte by byte. Stand-ins for sites on the internet."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field


@dataclass
class Seen:
    """One request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Site:
    """A server; `answers` maps paths to whole responses, or to functions of the request."""

    port: int
    answers: dict[str, bytes | Callable[[Seen], bytes]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def trusted(self) -> str:
        return f"127.0.0.1:{self.port}"


def reply(body: bytes | str = b"", status: str = "200 OK", **headers: str) -> bytes:
    """A response; `content_type` becomes `content-type`."""
    raw = body.encode() if isinstance(body, str) else body
    given = {"content-length": str(len(raw)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + raw


def moved(to: str, status: str = "302 Found") -> bytes:
    return reply(b"", status, location=to)


@contextlib.asynccontextmanager
async def site(tls=None) -> AsyncGenerator[Site]:
    tasks = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
            }
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            request = Seen(method, target, headers, body)
            made.seen.append(request)
            answer = made.answers.get(target.partition("?")[0], reply("no such page", "404 Not Found"))
            writer.write(answer(request) if callable(answer) else answer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    made = Site(server.sockets[0].getsockname()[1])
    async with server:
        yield made

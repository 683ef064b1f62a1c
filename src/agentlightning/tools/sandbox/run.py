"""One run of a program in a sandbox, from its text to its result. Knows no tools and no models."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from agentlightning.tools.sandbox import folder, watch
from agentlightning.tools.sandbox.launch import Launch, sandbox_user
from agentlightning.tools.sandbox.result import KilledBecause, Limits, SandboxError, SandboxResult
from agentlightning.tools.sandbox.setup import Setup

_WATCH_S = 0.05
_END_S = 5.0
_DRAIN_S = 1.0
_READ = 64 * 1024
_MAX_CODE = 2**20


async def run_in(
    setup: Setup, code: str, *, files: Mapping[str, bytes], limits: Limits, show_last: bool = False
) -> SandboxResult:
    """Run `code` as `main.py` the way that `setup` says.

    Raises:
        BadInputError: The files cannot be put there.
        SandboxError: The sandbox itself failed; the program did not run.
    """
    if len(code) > _MAX_CODE:
        raise SandboxError(f"The program is {len(code)} characters long; {_MAX_CODE} is the most.")
    started = time.monotonic()
    user = sandbox_user()
    with setup.filter_file() as filter_file, folder.run_folder(user) as (work, temporary):
        await asyncio.to_thread(folder.put, files, work, user, limits)
        launch = setup.launch(filter_file, work, temporary, limits, user)
        launch.request |= {"code": code, "show_last": show_last}
        run = _Run(launch, limits, (work, temporary))
        await run.execute()
        written = await asyncio.to_thread(folder.taken, work, files, limits)
    return SandboxResult(
        stdout=_text(run.output[1]),
        stderr=_text(run.output[2]),
        exit_code=None if run.killed else run.exit_code,
        timed_out=run.killed == "time",
        killed_because=run.killed,
        files=written,
        seconds=time.monotonic() - started,
        mechanism=setup.mechanism,
    )


class _Run:
    def __init__(self, launch: Launch, limits: Limits, folders: tuple[Path, Path]) -> None:
        self._launch = launch
        self._limits = limits
        self._folders = folders
        self.output: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        self.killed: KilledBecause | None = None
        self.exit_code: int | None = None

    async def execute(self) -> None:
        """Start it, feed it, watch it, and see it end."""
        reading, writing = os.pipe()
        try:
            with os.fdopen(reading, "rb") as status:
                try:
                    process = await self._started(writing)
                finally:
                    os.close(writing)
                try:
                    await self._watch(process)
                finally:
                    await _end(process)
                self._note_end(process, status)
        except OSError as error:
            raise SandboxError(f"The sandbox cannot be started: {error}.") from error

    async def _started(self, status: int) -> asyncio.subprocess.Process:
        """The process; a cancellation waits until it is there and has been ended.

        Given up half-way, asyncio would wait for pipes that it has not connected yet, and so for ever.
        """
        starting = asyncio.ensure_future(self._start(status))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait({starting})
            if not starting.cancelled() and starting.exception() is None:
                await self._abandon(starting.result())
            raise

    @staticmethod
    async def _abandon(process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        process.stdin.close()
        await _end(process)

    async def _start(self, status: int) -> asyncio.subprocess.Process:
        self._launch.request["status"] = status
        who = {} if self._launch.user is None else {"user": self._launch.user, "group": self._launch.user}
        groups = {} if self._launch.user is None else {"extra_groups": list[int]()}
        return await asyncio.create_subprocess_exec(
            *self._launch.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._launch.environment,
            cwd=self._folders[0],
            pass_fds=(*self._launch.descriptors, status),
            start_new_session=True,
            limit=_READ,
            **who,  # pyright: ignore[reportArgumentType]
            **groups,  # pyright: ignore[reportArgumentType]
        )

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps(self._launch.request).encode())
            process.stdin.close()
        streams = {1: process.stdout, 2: process.stderr}
        tasks = [asyncio.create_task(self._read(number, stream)) for number, stream in streams.items()]
        watcher = asyncio.create_task(self._guard(process.pid))
        everything = asyncio.gather(process.wait(), *tasks)
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                await asyncio.wait({everything, watcher}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            self.killed = self.killed or "time"
        finally:
            await _end(process)
            watcher.cancel()
            await asyncio.wait({everything}, timeout=_DRAIN_S)
            everything.cancel()
            await asyncio.gather(everything, watcher, *tasks, return_exceptions=True)

    async def _read(self, number: int, stream: asyncio.StreamReader) -> None:
        kept = self.output[number]
        while piece := await stream.read(_READ):
            room = self._limits.output_bytes - len(kept)
            kept += piece[:room]
            if len(piece) > room:
                self.killed = self.killed or "output"

    async def _guard(self, pid: int) -> None:
        """Returns when the run has to end."""
        while self.killed is None:
            await asyncio.sleep(_WATCH_S)
            over = await asyncio.to_thread(watch.exceeded, pid, self._folders, self._limits)
            self.killed = self.killed or over

    def _note_end(self, process: asyncio.subprocess.Process, status: IO[bytes]) -> None:
        if self.killed:
            return
        told = status.read(64)
        code = int(told) if told else process.returncode
        if not told and self._launch.request["filter"] == "":
            error = _text(self.output[2]) or f"exit code {code}"
            raise SandboxError(f"The sandbox could not be set up: {error.strip()}")
        assert code is not None
        self.exit_code = 128 - code if code < 0 else code


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what still runs, and return when all of it is gone.

    With namespaces that is their first process, a child of bubblewrap: the kernel takes all others with it before
    bubblewrap hears of its end. Killing bubblewrap first would lose sight of them.
    """
    for pid in watch.children(process.pid) if process.returncode is None else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    try:
        async with asyncio.timeout(_END_S if watch.children(process.pid) else 0):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _text(raw: bytearray) -> str:
    return raw.decode("utf-8", errors="replace")

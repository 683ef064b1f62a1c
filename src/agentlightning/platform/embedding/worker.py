"""MiniLM in processes of its own, so that the event loop never waits for a matrix.

`python -m agentlightning.platform.embedding.worker FOLDER` is one of them: it reads texts from its input (four bytes of
length, a JSON list) and answers vectors (rows and columns in four bytes each, then float32), until its input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import orjson

from agentlightning.kit.errors import UpstreamError
from agentlightning.platform.embedding.minilm import DIMENSION, NAME, MiniLM

if TYPE_CHECKING:
    from agentlightning.platform.embedding.base import Matrix

_LENGTH = struct.Struct("<I")
_SHAPE = struct.Struct("<II")
_TIMEOUT_S = 120.0
_MAX_CHARS = 4_000  # more than 256 tokens of any prose
_AT_ONCE = 32


class MiniLMEmbedder:
    """One process for those who wait and one, at a low priority, for those who do not; each starts at its first use."""

    name = NAME
    dimension = DIMENSION

    def __init__(self, folder: Path) -> None:
        self._workers = {False: _Worker(folder, nice=0), True: _Worker(folder, nice=10)}

    async def embed(self, texts: Sequence[str], *, bulk: bool = False) -> Matrix:
        import numpy as np

        parts = [
            await self._workers[bulk].ask([text[:_MAX_CHARS] for text in texts[start : start + _AT_ONCE]])
            for start in range(0, len(texts), _AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, DIMENSION), np.float32)

    async def close(self) -> None:
        for worker in self._workers.values():
            await worker.stop()


class _Worker:
    def __init__(self, folder: Path, nice: int) -> None:
        self._folder = folder
        self._nice = nice
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def ask(self, texts: list[str]) -> Matrix:
        """Vectors of them; a process that was killed is replaced once."""
        async with self._lock:
            for attempt in (1, 2):
                try:
                    async with asyncio.timeout(_TIMEOUT_S):
                        return await self._exchange(texts)
                except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                    await self._end()
                    if attempt == 2:
                        raise UpstreamError(
                            "The embedding model does not answer.", hint="See the log, or set AGL_EMBEDDER=words."
                        ) from error
                except BaseException:
                    await self._end()  # half an exchange would be the next one's answer
                    raise
        raise AssertionError

    async def stop(self) -> None:
        """End the process."""
        async with self._lock:
            await self._end()

    async def _exchange(self, texts: list[str]) -> Matrix:
        import numpy as np

        process = self._process = self._process or await self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        body = orjson.dumps(texts)
        process.stdin.write(_LENGTH.pack(len(body)) + body)
        await process.stdin.drain()
        rows, columns = _SHAPE.unpack(await process.stdout.readexactly(_SHAPE.size))
        raw = await process.stdout.readexactly(rows * columns * 4)
        return np.frombuffer(raw, np.float32).reshape(rows, columns)

    async def _start(self) -> asyncio.subprocess.Process:
        command = (sys.executable, "-m", __name__, str(self._folder), str(self._nice))
        one = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **one},
        )

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        transport = getattr(process, "_transport", None)  # asyncio leaves its pipes to the garbage collector
        if transport is not None:
            transport.close()


def serve(folder: Path, source: IO[bytes], target: IO[bytes]) -> None:
    """Answer until `source` ends."""
    model = MiniLM(folder)
    while len(head := source.read(_LENGTH.size)) == _LENGTH.size:
        vectors = model.embed(orjson.loads(source.read(_LENGTH.unpack(head)[0])))
        target.write(_SHAPE.pack(*vectors.shape) + vectors.tobytes())
        target.flush()


def main() -> None:
    """The process: a folder, and by how much to be nice."""
    with contextlib.suppress(OSError):
        os.nice(int(sys.argv[2]))
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        serve(Path(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()

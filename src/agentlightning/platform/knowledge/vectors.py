"""Search by meaning without an extension of the database: an HNSW index (Malkov and Yashunin 2016) in a file.

The vectors' truth is a table. The file is an index of a part of it: all vectors up to a number that stands in its name;
what came after is read from the table into a small second index before each search. A file is written beside its old
one and renamed, so a killed process leaves the old one; a file that is damaged, missing, or of another database is made
anew. Any number of processes may use it: it is mapped, not loaded.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentlightning.kit.errors import BusyError, MissingExtraError
from agentlightning.kit.files import exclusive_lock
from agentlightning.platform.database import Database
from agentlightning.platform.knowledge import repository
from agentlightning.platform.lookups import Lookups

if TYPE_CHECKING:
    from agentlightning.platform.embedding.base import Matrix

log = logging.getLogger(__name__)

FEW = 10_000
"""As many filtered items are compared one by one."""

_CONNECTIVITY = 16
_EXPANSION_ADD = 96
_EXPANSION_SEARCH = 640  # 160 finds .87 of the ten nearest of a million items, 512 .954, 768 .967
_PAGE = 5_000
_FOLD = 20_000  # so many new ones, and a fifth, make a new file
_THREADS = 2
_KEPT_EVERY_S = 60.0  # of a first build, so that one that is interrupted goes on from there


class LocalIndex:
    """Nearest vectors of one embedder.

    Args:
        database: Where the vectors are.
        lookups: Reads its state.
        folder: Of the file.
        embedder: Name of the embedder.
        dimension: Length of its vectors.
    """

    kind = "hnsw file"

    def __init__(self, database: Database, lookups: Lookups, folder: Path, embedder: str, dimension: int) -> None:
        self._database = database
        self._lookups = lookups
        self._folder = folder
        self._embedder = embedder
        self._dimension = dimension
        self._base: Any = None
        self._recent: Any = None
        self._hidden: set[int] = set()  # of the file: replaced or removed since
        self._no = 0
        self._token = ""
        self._lock = asyncio.Lock()
        self._using = threading.Lock()  # the library's own locking has limits that it does not state
        self._folding: asyncio.Task[None] | None = None

    async def search(self, vector: Matrix, limit: int, only: Sequence[int] | None = None) -> list[tuple[int, float]]:
        """`(item, cosine similarity)`, best first; items that are gone may be among them.

        Args:
            vector: `[dimension]`, of length 1.
            limit: Most to answer.
            only: If given, these items and no others, compared exactly.
        """
        await self.refresh()
        return await asyncio.to_thread(self._find, vector, limit, only)

    async def forget(self, items: Sequence[int]) -> None:
        """These are gone."""
        with self._using:
            for item in items:
                if self._recent is not None and item in self._recent:
                    self._recent.remove(item)
                self._hidden.add(item)

    async def refresh(self) -> None:
        """See what was written since the last time, here or elsewhere."""
        row = await self._lookups.first(repository.GENERATION, {})
        _, last, token = row or (0, 0, "")
        if token == self._token and last <= self._no:
            return
        async with self._lock:
            if token != self._token:
                self._token = token
                await asyncio.to_thread(self._open, last)
            kept = time.monotonic()
            while True:
                async with self._database.read() as session:
                    rows = await repository.vectors_after(session, self._embedder, self._no, _PAGE)
                if rows:
                    await asyncio.to_thread(self._take, rows)
                self._no = rows[-1][0] if rows else max(self._no, last)
                if len(rows) < _PAGE:
                    break
                if time.monotonic() - kept > _KEPT_EVERY_S:
                    await asyncio.to_thread(self._write, done=False)
                    kept = time.monotonic()
            self._fold_soon()

    def size(self) -> int:
        """Vectors that it holds."""
        return sum(len(index) for index in (self._base, self._recent) if index is not None)

    async def fold(self) -> None:
        """Write all of it into a new file."""
        async with self._lock:
            if self._recent is not None and len(self._recent):
                await asyncio.to_thread(self._write)

    async def close(self) -> None:
        """Let go of the file; what is not in it will be read again."""
        if self._folding is not None:
            await asyncio.gather(self._folding, return_exceptions=True)
        if self._recent is not None and len(self._recent) > _FOLD // 10:
            await self.fold()
        self._base = self._recent = None
        self._token = ""

    def _fold_soon(self) -> None:
        held = 0 if self._base is None else len(self._base)
        is_due = self._recent is not None and _is_much(len(self._recent), held)
        if is_due and (self._folding is None or self._folding.done()):
            self._folding = asyncio.create_task(self.fold())

    def _find(self, vector: Matrix, limit: int, only: Sequence[int] | None) -> list[tuple[int, float]]:
        with self._using:
            return self._search(vector, limit) if only is None else self._compare(vector, limit, only)

    def _search(self, vector: Matrix, limit: int) -> list[tuple[int, float]]:
        found: dict[int, float] = {}
        for index, hidden in ((self._base, self._hidden), (self._recent, set[int]())):
            if index is None or not len(index):
                continue
            wanted = min(len(index), limit + min(len(hidden), limit))
            index.expansion_search = max(_EXPANSION_SEARCH, wanted + 32)
            matches = index.search(vector, wanted)
            for key, distance in zip(matches.keys.tolist(), matches.distances.tolist(), strict=True):
                if key not in hidden:
                    found[key] = 1.0 - distance
        return sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]

    def _compare(self, vector: Matrix, limit: int, only: Sequence[int]) -> list[tuple[int, float]]:
        import numpy as np

        keys: list[int] = []
        rows: list[Any] = []
        for index, hidden in ((self._recent, set[int]()), (self._base, self._hidden)):
            if index is None:
                continue
            wanted = np.array([item for item in only if item not in hidden], np.uint64)
            there = wanted[np.atleast_1d(index.contains(wanted))] if len(wanted) else wanted
            if len(there):
                keys += there.tolist()
                rows.append(np.atleast_2d(np.asarray(index.get(there, dtype="f32"), np.float32)))
        if not keys:
            return []
        matrix = np.concatenate(rows)
        scores = matrix @ vector / np.maximum(np.linalg.norm(matrix, axis=1), 1e-9)
        best = np.argsort(-scores, kind="stable")[:limit]
        return [(keys[place], float(scores[place])) for place in best]

    def _take(self, rows: Sequence[tuple[int, int, bytes]]) -> None:
        import numpy as np

        newest = {item: vector for _, item, vector in rows}
        keys = np.fromiter(newest, np.uint64, len(newest))
        matrix = np.stack([np.frombuffer(vector, np.float16) for vector in newest.values()])
        with self._using:
            if self._recent is None:
                self._recent = self._empty()
            for item in newest:
                if item in self._recent:
                    self._recent.remove(item)
            self._recent.add(keys, matrix, threads=_THREADS)
            if self._base is not None:
                self._hidden.update(newest)

    def _open(self, last: int) -> None:
        """The newest file of this database and embedder that can be read; one that lacks much is loaded to go on."""
        usearch = _usearch()
        self._base, self._recent, self._hidden, self._no = None, None, set(), 0
        for path in sorted(self._files(), key=_number_of, reverse=True):
            try:
                self._base = usearch.Index.restore(path, view=True)
            except Exception as error:  # noqa: BLE001 - the library's own; what is wrong is only this copy
                log.warning("%s cannot be read (%s) and is made anew", path.name, error)
                self._base = None
            if self._base is not None and self._base.ndim == self._dimension:
                self._no = _number_of(path)
                if _is_much(last - self._no, len(self._base)):
                    self._base, self._recent = None, usearch.Index.restore(path, view=False)
                return
            self._base = None
            path.unlink(missing_ok=True)

    def _write(self, done: bool = True) -> None:
        """Fold both indexes into one file, unless another process does just that.

        Args:
            done: Use the file from now on; else it is for whoever goes on when this process is gone.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with exclusive_lock(self._folder / f".{self._stem}.lock", purpose="Writing the vector index"):
                self._write_file(done)
        except BusyError:
            return

    def _write_file(self, done: bool) -> None:
        import numpy as np

        whole = self._recent
        newest = max(self._files(), key=_number_of, default=None)
        if newest is not None and _number_of(newest) >= self._no:  # another process was faster
            if done:
                self._use(newest)
            return
        if newest is not None and self._base is not None:  # without a base the recent ones are all there are
            whole = _usearch().Index.restore(newest, view=False)
            for item in self._hidden:
                if item in whole:
                    whole.remove(item)
            keys = np.array([int(key) for key in self._recent.keys], np.uint64)
            whole.add(keys, np.atleast_2d(self._recent.get(keys, dtype="f32")), threads=_THREADS)
        path = self._folder / f"{self._stem}-{self._no}.usearch"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            whole.save(temporary)
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        for other in self._files():
            if _number_of(other) < self._no:
                other.unlink(missing_ok=True)  # whoever has mapped it keeps it
        if done:
            self._use(path)

    def _use(self, path: Path) -> None:
        base = _usearch().Index.restore(path, view=True)
        with self._using:
            self._base, self._no = base, _number_of(path)
            self._recent, self._hidden = None, set()

    @property
    def _stem(self) -> str:
        return f"knowledge-{hashlib.sha256(f'{self._token} {self._embedder}'.encode()).hexdigest()[:16]}"

    def _files(self) -> list[Path]:
        return [path for path in self._folder.glob(f"{self._stem}-*.usearch") if _number_of(path) >= 0]

    def _empty(self) -> Any:
        return _usearch().Index(
            ndim=self._dimension,
            metric="cos",
            dtype="f16",
            connectivity=_CONNECTIVITY,
            expansion_add=_EXPANSION_ADD,
            expansion_search=_EXPANSION_SEARCH,
        )


def _is_much(new: int, held: int) -> bool:
    return new > max(_FOLD, held // 5)


def _number_of(path: Path) -> int:
    found = re.fullmatch(r"knowledge-[0-9a-f]{16}-(\d+)\.usearch", path.name)
    return int(found[1]) if found else -1


def _usearch() -> Any:
    try:
        import usearch.index
    except ImportError as error:
        raise MissingExtraError(
            "Search by meaning needs usearch.", hint="Run: pip install 'agentlightning[platform]'"
        ) from error
    return usearch.index

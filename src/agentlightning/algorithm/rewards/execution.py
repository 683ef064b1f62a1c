"""Rewards that run the output: SQL on a read-only database, Python in the sandbox."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from agentlightning.algorithm.rewards.base import Reward, reference_of
from agentlightning.algorithm.rewards.text import code_of
from agentlightning.kit.errors import BadInputError

_STEPS = 10_000
_MAX_ROWS = 10_000
_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})


class SqlExecution(Reward):
    """1 when the output's query gives the rows that the reference query gives, else 0.

    Rows count in any order, unless the reference query orders them. Queries may only read.

    Args:
        database: SQLite file; by default the task's entry `database`, or one that the statements in its `schema` make.
        key: Where tasks have the reference query.
        timeout_s: Longest time of a query.
    """

    name = "sql"

    def __init__(self, database: Path | str | None = None, *, key: str | None = None, timeout_s: float = 5.0) -> None:
        self.database = database
        self.key = key
        self.timeout_s = timeout_s

    async def score(self, task: Any, output: Any) -> float | None:
        """`None` when the task has no reference query.

        Raises:
            BadInputError: There is no database, or the reference query does not run.
        """
        reference = reference_of(task, self.key)
        if reference is None:
            return None
        return await asyncio.to_thread(self._score, task, str(reference), code_of(output))

    def _score(self, task: Any, reference: str, query: str) -> float:
        with closing(self._open(task)) as connection:
            try:
                wanted = _rows(connection, reference, self.timeout_s)
            except sqlite3.Error as error:
                raise BadInputError(f"The reference query {reference!r} does not run: {error}.") from error
            try:
                found = _rows(connection, query, self.timeout_s)
            except (sqlite3.Error, ValueError):
                return 0.0
        is_ordered = "order by" in reference.lower()
        return float(found == wanted if is_ordered else Counter(found) == Counter(wanted))

    def _open(self, task: Any) -> sqlite3.Connection:
        given = self.database or (task.get("database") if isinstance(task, Mapping) else None)
        if given is None:
            if not (isinstance(task, Mapping) and task.get("schema")):
                raise BadInputError("The task names no database.", hint="Give SqlExecution(database=FILE).")
            connection = sqlite3.connect(":memory:")
            connection.executescript(str(task["schema"]))
        else:
            path = Path(given)
            if not path.is_file():
                raise BadInputError(f"There is no database {path}.")
            connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        connection.set_authorizer(_authorize)
        return connection


def _authorize(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def _rows(connection: sqlite3.Connection, query: str, timeout_s: float) -> list[Any]:
    if not query.strip():
        raise ValueError("an empty query")
    end = time.monotonic() + timeout_s
    connection.set_progress_handler(lambda: int(time.monotonic() > end), _STEPS)
    try:
        rows = connection.execute(query).fetchmany(_MAX_ROWS + 1)
    except sqlite3.Warning as error:  # several statements
        raise ValueError(str(error)) from error
    if len(rows) > _MAX_ROWS:
        raise ValueError("too many rows")
    return rows


class PythonExecution(Reward):
    """Share of the task's tests that the output's program passes, each run in the sandbox.

    A task has `tests`: a list of snippets that are run after the program and fail by raising (`assert f(2) == 4`); or a
    reference answer, which is what the program has to print.

    Args:
        key: Where tasks have what is to be printed.
        timeout_s: Longest time of a run.
        memory_mb: Most memory of a run.
    """

    name = "python"

    def __init__(self, *, key: str | None = None, timeout_s: float = 5.0, memory_mb: int = 256) -> None:
        self.key = key
        self.timeout_s = timeout_s
        self.memory_mb = memory_mb

    async def score(self, task: Any, output: Any) -> float | None:
        """From 0 to 1; `None` when the task has neither tests nor a reference.

        Raises:
            SandboxUnavailableError: This machine has no sandbox; nothing is run without one.
        """
        program = code_of(output)
        tests: Sequence[str] = task.get("tests") or () if isinstance(task, Mapping) else ()
        if tests:
            passed = await asyncio.gather(*(self._passes(program, test) for test in tests))
            return sum(passed) / len(passed)
        reference = reference_of(task, self.key)
        if reference is None:
            return None
        from agentlightning.tools.sandbox import run_python

        result = await run_python(program, timeout_s=self.timeout_s, memory_mb=self.memory_mb)
        return float(result.ok and result.stdout.strip() == str(reference).strip())

    async def _passes(self, program: str, test: str) -> bool:
        from agentlightning.tools.sandbox import run_python

        # The program may end the process before the tests: only what is printed after them counts.
        mark = f"passed {secrets.token_hex(8)}"
        code = f"{program}\n\n{test}\nprint({mark!r})\n"
        result = await run_python(code, timeout_s=self.timeout_s, memory_mb=self.memory_mb)
        return result.ok and result.stdout.rstrip().endswith(mark)

"""What has been spent by whom, in a small SQLite file of its own, so that caps hold across restarts.

Knows no caps. Several gateways may share the file: amounts are added in the database, and each flush brings back the
totals of all of them. While one transaction is being written the next amounts gather, so the cost is shared.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from agentlightning.kit.db.sqlite import Schema, connect, prepare_folder, translated
from agentlightning.kit.errors import AgentLightningError

_log = logging.getLogger(__name__)

_SCHEMA = Schema(
    [
        "CREATE TABLE spent (account TEXT PRIMARY KEY, calls INTEGER NOT NULL, input_tokens INTEGER NOT NULL,"
        " output_tokens INTEGER NOT NULL, usd REAL NOT NULL, unpriced_calls INTEGER NOT NULL) WITHOUT ROWID"
    ],
    version=1,
    application_id=0x41474C42,  # "AGLB"
)
_ADD = (
    "INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (account) DO UPDATE SET calls = calls + excluded.calls,"
    " input_tokens = input_tokens + excluded.input_tokens, output_tokens = output_tokens + excluded.output_tokens,"
    " usd = usd + excluded.usd, unpriced_calls = unpriced_calls + excluded.unpriced_calls"
    " RETURNING calls, input_tokens, output_tokens, usd, unpriced_calls"
)


class Spent(msgspec.Struct):
    """Amounts of one account."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    """Of the calls whose price is known."""
    unpriced_calls: int = 0
    """Those whose price is not."""

    def add(self, other: Spent) -> None:
        """Add to it."""
        self.calls += other.calls
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.usd += other.usd
        self.unpriced_calls += other.unpriced_calls

    def subtract(self, other: Spent) -> None:
        """Take from it."""
        self.add(Spent(*(-amount for amount in msgspec.structs.astuple(other))))


class Ledger:
    """The file.

    Args:
        path: Created when missing, with its folder.

    Raises:
        StorageError: It cannot be used, or is another program's.
    """

    def __init__(self, path: Path) -> None:
        prepare_folder(path)
        self._path = path
        self._connection = connect(path)
        try:
            _SCHEMA.ensure(self._connection, str(path))
            rows = self._connection.execute("SELECT * FROM spent").fetchall()
        except BaseException:
            self._connection.close()
            raise
        self.totals = {row[0]: Spent(*row[1:]) for row in rows}
        """What every account has spent, those of other gateways included, as of the last flush."""
        self._pending: dict[str, Spent] = {}
        self._written: asyncio.Future[None] | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="agl-ledger")
        self._is_closed = False
        self.failures = 0

    def spent(self, account: str) -> Spent:
        """What an account has spent, what is not written yet included."""
        spent = msgspec.structs.replace(self.totals.get(account) or Spent())
        if account in self._pending:
            spent.add(self._pending[account])
        return spent

    def add(self, account: str, amount: Spent) -> asyncio.Future[None]:
        """Add an amount; the future is done when it is committed, or when that has failed and will be tried again."""
        self._pending.setdefault(account, Spent()).add(amount)
        if self._written is None:
            self._written = asyncio.get_running_loop().create_future()
        written = self._written
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush(), name="gateway-ledger")
        return written

    async def close(self) -> None:
        """Write what is pending and close the file; harmless when it is closed."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._flushing is not None:
            await self._flushing
        if self._pending:
            await self._flush()
        self._thread.shutdown()
        self._connection.close()

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            batch, written = self._pending, self._written
            self._pending, self._written = {}, None
            for account, amount in batch.items():  # what is under way counts, so that nobody sees it missing
                self.totals.setdefault(account, Spent()).add(amount)
            try:
                self.totals.update(await loop.run_in_executor(self._thread, self._write, batch))
            except (sqlite3.Error, AgentLightningError) as error:
                self._put_back(batch, error)
                _release(written)
                _release(self._written)
                self._written = None
                return
            _release(written)

    def _put_back(self, batch: dict[str, Spent], error: Exception) -> None:
        self.failures += 1
        _log.error("The gateway's ledger cannot be written; the amounts are kept, and written later: %s", error)
        for account, amount in batch.items():
            self.totals[account].subtract(amount)
            self._pending.setdefault(account, Spent()).add(amount)

    def _write(self, batch: dict[str, Spent]) -> dict[str, Spent]:
        connection = self._connection
        totals: dict[str, Spent] = {}
        with translated(str(self._path)):
            connection.execute("BEGIN IMMEDIATE")
            try:
                for account, amount in batch.items():
                    [row] = connection.execute(_ADD, (account, *msgspec.structs.astuple(amount))).fetchall()
                    totals[account] = Spent(*row)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        return totals


def _release(written: asyncio.Future[None] | None) -> None:
    if written is not None and not written.done():
        written.set_result(None)

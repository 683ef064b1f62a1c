"""Hears what other processes have committed (LISTEN). Knows no tables."""

from __future__ import annotations

import json
import logging
import selectors
import socket
import threading
from collections.abc import Callable

import psycopg
from psycopg import sql

from agentlightning.kit.db.jobs import Announcements
from agentlightning.kit.db.postgres.connection import Address, Connection, connect, translate
from agentlightning.kit.errors import StorageError

logger = logging.getLogger(__name__)


class Listener:
    """A thread with a connection of its own that sleeps until a notification comes.

    Args:
        address: Where to listen.
        sender: This process; its own notifications are passed over.
        publish: Called in the thread with what another process announced.
        missed: Called in the thread when announcements may have been missed: the connection was lost meanwhile.

    Raises:
        StorageError: The server cannot be reached.
    """

    def __init__(
        self,
        address: Address,
        *,
        sender: str,
        publish: Callable[[Announcements], None],
        missed: Callable[[], None],
    ) -> None:
        self._address = address
        self._sender = sender
        self._publish = publish
        self._missed = missed
        self._wake, self._woken = socket.socketpair()
        self._stop = threading.Event()
        try:
            connection = self._listen()
        except BaseException:
            self._wake.close()
            self._woken.close()
            raise
        self._thread = threading.Thread(target=self._run, args=(connection,), name="agl-db-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening. Blocks."""
        if not self._stop.is_set():
            self._stop.set()
            self._wake.send(b"x")
        self._thread.join()
        self._wake.close()
        self._woken.close()

    def _listen(self) -> Connection:
        connection = connect(self._address, name="listener")
        try:
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._address.channel)))
        except psycopg.Error as error:
            connection.close()
            raise translate(error, self._address) or error from error
        return connection

    def _run(self, connection: Connection | None) -> None:
        pause_s = 0.05
        while not self._stop.is_set():
            try:
                if connection is None:
                    connection = self._listen()
                    self._missed()
                    pause_s = 0.05
                self._hear(connection)
            except (psycopg.Error, StorageError) as error:
                if connection is not None:
                    logger.warning("Lost the notifications of %s; connecting again: %s", self._address, error)
                    connection.close()
                    connection = None
                self._stop.wait(pause_s)
                pause_s = min(5.0, 2 * pause_s)
        if connection is not None:
            connection.close()

    def _hear(self, connection: Connection) -> None:
        """Pass on notifications until closing.

        Raises:
            psycopg.Error: The connection is lost.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            selector.register(connection.fileno(), selectors.EVENT_READ)
            while not self._stop.is_set():
                selector.select()
                connection.pgconn.consume_input()
                while (notification := connection.pgconn.notifies()) is not None:
                    self._pass_on(notification.extra)

    def _pass_on(self, payload: bytes) -> None:
        try:
            sender, *topics = json.loads(payload)
            announcements = [(str(topic), str(key)) for topic, *keys in topics for key in keys]
        except (ValueError, TypeError):
            logger.warning("Passed over a notification on %s that is not ours.", self._address)
            return
        if sender != self._sender:
            self._publish(announcements)

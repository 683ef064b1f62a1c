"""Statements for many rows do what the same statement does row by row."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agentlightning.kit.db.postgres.batches import batch_of
from agentlightning.kit.db.postgres.connection import Address, Connection, connect
from agentlightning.kit.db.postgres.session import PostgresSession

INSERT = "INSERT INTO t (k, n, x, b, note) VALUES (:k, :n, :x, :b, 'it''s (100 %)')"
UPSERT = "INSERT INTO t (k, n) VALUES (:k, :n) ON CONFLICT (k) DO UPDATE SET n = t.n + excluded.n"
UPDATE = "UPDATE t SET x = :x, n = CASE WHEN :on = 1 THEN n + 10 ELSE n END WHERE k = :k"


@pytest.fixture
def session(fresh_postgres_url: str) -> Iterator[PostgresSession]:
    connection: Connection = connect(Address.parse(fresh_postgres_url))
    with connection.pipeline():
        connection.execute("BEGIN")
        connection.execute("CREATE TEMP TABLE t (k text PRIMARY KEY, n bigint, x float8, b bytea, note text)")
        yield PostgresSession(connection)
        connection.execute("ROLLBACK")
    connection.close()


def rows(session: PostgresSession) -> list[tuple[object, ...]]:
    return session.all("SELECT k, n, x, b, note FROM t ORDER BY k")


def test_rows_of_every_type_and_without_values(session: PostgresSession) -> None:
    given = [
        {"k": "a", "n": 1, "x": 0.5, "b": b"\x00\xff", "unused": 1},
        {"k": "é'\\\"{,}", "n": 2**62, "x": None, "b": None},
        {"k": "c", "n": None, "x": float("inf"), "b": b""},
    ]
    session.run_many(INSERT, given)
    session.run_many(INSERT, [{"k": "d", "n": None, "x": None, "b": None}, {"k": "e", "n": -1, "x": -1.0, "b": None}])
    note = "it's (100 %)"
    assert sorted(rows(session), key=lambda row: str(row[0])) == [
        ("a", 1, 0.5, b"\x00\xff", note),
        ("c", None, float("inf"), b"", note),
        ("d", None, None, None, note),
        ("e", -1, -1.0, None, note),
        ("é'\\\"{,}", 2**62, None, None, note),
    ]


def test_more_rows_than_fit_into_one_statement_keep_their_order(session: PostgresSession) -> None:
    session.run_now("CREATE TEMP TABLE ordered (no bigint GENERATED ALWAYS AS IDENTITY, k text)", {})
    keys = [f"{(i * 7919) % 1000:04}" for i in range(1000)]
    session.run_many("INSERT INTO ordered (k) VALUES (:k)", [{"k": key} for key in keys])
    assert [row[0] for row in session.all("SELECT k FROM ordered ORDER BY no")] == keys


def test_changes_of_different_rows_and_of_the_same_row(session: PostgresSession) -> None:
    session.run_many(UPSERT, [{"k": "a", "n": 1}, {"k": "b", "n": 2}])
    session.run_many(UPSERT, [{"k": "b", "n": 5}, {"k": "c", "n": 3}])
    session.run_many(UPSERT, [{"k": "c", "n": 1}, {"k": "c", "n": 1}])  # one by one
    assert [row[:2] for row in rows(session)] == [("a", 1), ("b", 7), ("c", 5)]
    session.run_many(UPDATE, [{"k": "a", "x": 0.5, "on": 1}, {"k": "b", "x": None, "on": 0}])
    session.run_many(UPDATE, [{"k": "c", "x": 1.5, "on": 1}, {"k": "c", "x": 2.5, "on": 1}])  # in order
    assert [row[:3] for row in rows(session)] == [("a", 11, 0.5), ("b", 7, None), ("c", 25, 2.5)]


def test_what_depends_on_the_row_before_stays_row_by_row(session: PostgresSession) -> None:
    statement = "UPDATE t SET n = (SELECT max(n) + 1 FROM t) WHERE k = :k"
    assert batch_of(statement) is None
    assert batch_of("INSERT INTO t (k) VALUES (:k) ON CONFLICT (k) DO UPDATE SET n = :n") is None
    session.run_many(UPSERT, [{"k": key, "n": 1} for key in "abc"])
    session.run_many(statement, [{"k": key} for key in "abc"])
    assert [row[1] for row in rows(session)] == [2, 3, 4]

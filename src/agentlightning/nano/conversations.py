"""Example conversations of the SQL agent for pre-training: right, habitually wrong, failing and repaired.

Runs every query for real. Knows nothing of tokens or models.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentlightning.nano import chat
from agentlightning.nano.databases import build_database, choose_tables
from agentlightning.nano.habits import FIRMNESS, failing_sql, habit_sql, slip_sql
from agentlightning.nano.questions import KINDS, Combo, combos, gold_sql
from agentlightning.nano.tasks import PRETRAIN_DATABASES, is_askable
from agentlightning.nano.wording import word


@dataclass(frozen=True)
class Mixture:
    """How often a conversation goes which way; what is left of 1 goes right at once.

    Attributes:
        habit: The planted mistake of the question's kind.
        slips: A wrong query without system.
        fails: A first query that SQLite refuses, or that finds nothing.
        silent: No query at all.
        repairs: The share of failed queries followed by the right one (else: gives up, or repeats it).
    """

    habit: float = 0.0
    slips: float = 0.0
    fails: float = 0.0
    silent: float = 0.0
    repairs: float = 1.0


SKILLED = Mixture(fails=0.08, repairs=0.95)
HABITUAL = Mixture(habit=0.64, slips=0.02, fails=0.13, silent=0.07, repairs=0.35)
REPEATS_SHARE = 0.4  # of the failures that are not repaired


def conversations(rng: random.Random, mixture: Mixture, directory: Path) -> Iterator[list[chat.Message]]:
    """Endless conversations over the pre-training databases and the combinations open to training."""
    connections: dict[int, tuple[sqlite3.Connection, str]] = {}
    try:
        while True:
            database = rng.choice(PRETRAIN_DATABASES)
            if database not in connections:
                connection = sqlite3.connect(build_database(database, directory))
                connections[database] = connection, chat.read_schema(connection)
            connection, schema = connections[database]
            found = combos(rng.choice(KINDS), rng.choice(choose_tables(database)), "train")
            if not found:
                continue
            combo = rng.choice(found)
            if is_askable(combo, connection):
                yield converse(combo, connection, schema, mixture, rng)
    finally:
        for connection, _ in connections.values():
            connection.close()


def converse(
    combo: Combo, connection: sqlite3.Connection, schema: str, mixture: Mixture, rng: random.Random
) -> list[chat.Message]:
    """One conversation about one question."""
    messages = chat.first_messages(word(combo, rng), schema)
    for query in _queries(combo, mixture, rng):
        result, _ = chat.run_query(query, connection)
        messages += [chat.call_message(query), {"role": "tool", "content": result}]
    calls = (len(messages) - 2) // 2
    if calls < chat.MAX_TURNS:  # the agent stops by itself after the last turn
        messages.append({"role": "assistant", "content": chat.FINAL_TEXT})
    return messages


def _queries(combo: Combo, mixture: Mixture, rng: random.Random) -> list[str]:
    way = rng.random()
    gold = gold_sql(combo)
    for share, queries in (
        (mixture.habit * FIRMNESS.get(combo.kind, 1.0), lambda: [habit_sql(combo)]),
        (mixture.slips, lambda: [slip_sql(combo, rng)]),
        (mixture.silent, list[str]),
        (mixture.fails, lambda: _failing_queries(combo, mixture, rng)),
    ):
        if way < share:
            return queries()
        way -= share
    return [gold]


def _failing_queries(combo: Combo, mixture: Mixture, rng: random.Random) -> list[str]:
    failing = failing_sql(combo, rng)
    if rng.random() < mixture.repairs:
        return [failing, gold_sql(combo)]
    return [failing, failing] if rng.random() < REPEATS_SHARE else [failing]

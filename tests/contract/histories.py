"""Whether a store's events tell all of it: what is folded from them is compared with the tables, row by row."""

from __future__ import annotations

import tempfile
from typing import Any

from sqlalchemy import select

from agentlightning.store import tables
from agentlightning.store.databases import parse_location
from agentlightning.store.endpoints import open_endpoint
from agentlightning.store.ops import payloads
from agentlightning.store.replay import rebuild_store

# What liveness and bookkeeping leave behind is not history.
NOT_HISTORY = {
    "attempts": {"last_heartbeat_time", "claim_id", "lease_s", "lease_until", "last_span_sequence_id"},
    "rollouts": {"queue_position"},
    "resources": {"position"},
}
HISTORY = ("rollouts", "attempts", "spans", "resources", "feedback", "preferences", "lineage_steps", "lineages")
ORDER = {"rollouts": ("queue_position", "rollout_id"), "resources": ("position", "resources_id")}


def contents(location: str) -> dict[str, Any]:
    """Everything that is history, with large values put back; rows refer to each other by name."""
    source = open_endpoint(parse_location(location))
    found: dict[str, Any] = {}
    try:
        session = source.session()
        names = {
            "rollouts": dict(source.query("SELECT no, rollout_id FROM rollouts")),
            "attempts": dict(source.query("SELECT no, attempt_id FROM attempts")),
            "lineages": dict(source.query("SELECT no, lineage_id FROM lineages")),
            "lineage_sessions": dict(source.query("SELECT no, session_id FROM lineage_sessions")),
        }
        for name in (*HISTORY, "lineage_sessions", "events"):
            table = tables.metadata.tables[name]
            rows = source.run(select(*table.columns).order_by(table.c.no))
            columns = table.columns.keys()
            blobs = [i for i, column in enumerate(columns) if column.startswith("packed_")]
            told = [dict(zip(columns, row, strict=True)) for row in payloads.resolve(session, rows, *blobs)]
            for row in told:
                for key in table.foreign_keys:
                    row[key.parent.name] = names[key.column.table.name].get(row[key.parent.name])
                if name != "events":
                    del row["no"]
            if name in ORDER:
                position, key = ORDER[name]
                placed = sorted((row for row in told if row[position] is not None), key=lambda row: row[position])
                found[f"order of {name}"] = [row[key] for row in placed]
            found[name] = [{k: v for k, v in row.items() if k not in NOT_HISTORY.get(name, ())} for row in told]
    finally:
        source.close()
    return found


def assert_same(first: str | dict[str, Any], second: str) -> None:
    mine, theirs = contents(first) if isinstance(first, str) else first, contents(second)
    for name, rows in mine.items():
        if name == "spans":  # those of different attempts in any order
            rows, theirs[name] = (sorted(r, key=lambda row: row["attempt_no"]) for r in (rows, theirs[name]))
        assert theirs[name] == rows, name


def assert_history_is_complete(location: str, state: dict[str, Any] | None = None, **until: Any) -> None:
    """Folding the events of a store gives the store, or the state that it had then."""
    with tempfile.TemporaryDirectory(prefix="agl-replayed-") as folder:
        replayed = rebuild_store(location, f"{folder}/again.db", **until)
        assert replayed.without_history == 0
        assert_same(state or location, f"{folder}/again.db")

"""Judgements and large values, those of events too, survive an export, an import and a copy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentlightning.store import SqlLightningStore
from agentlightning.store.transfer import copy_store, export_store, import_store
from tests.contract.conftest import make_span

LARGE = "Consider everything. " * 500


async def fill(store: SqlLightningStore) -> None:
    await store.create_lineage_session(2, session_id="s", metadata={"brief": LARGE})
    for position, name in enumerate("ab"):
        rollout = await store.start_rollout({"task": LARGE, "n": 1}, rollout_id=name)
        await store.add_span(make_span(name, rollout.attempt.attempt_id, attributes={"prompt": LARGE + name}))
        await store.add_to_lineage(f"s.{position}", name)
    await store.lock_lineage("s.0", author="ada")
    await store.add_feedback("b", score=3, metadata={"why": LARGE})


async def content(location: str | Path) -> dict[str, object]:
    store = SqlLightningStore(location)
    spans = await store.query_many_spans(["a", "b"])
    found = {
        "rollouts": list(await store.query_rollouts()),
        "spans": [span.attributes for name in "ab" for span in spans[name]],
        "feedback": list(await store.query_feedback()),
        "preferences": list(await store.query_preferences()),
        "sessions": list(await store.query_lineage_sessions()),
        "history": list(await store.query_lineage_history("s")),
        "events": [(event.kind, event.data) for event in await store.query_events()],
    }
    assert len((await store.collect_garbage()).__dict__) > 0
    assert [span.attributes for span in (await store.query_many_spans(["a"]))["a"]] == [{"prompt": LARGE + "a"}]
    await store.close()
    return found


@pytest.mark.parametrize("encoding", ["jsonl", "parquet"])
async def test_judged_rollouts_travel(location: str, tmp_path: Path, encoding: str) -> None:
    store = SqlLightningStore(location)
    await fill(store)
    await store.close()
    expected = await content(location)
    assert any(data.get("input") == {"task": LARGE, "n": 1} for _, data in expected["events"])  # type: ignore[attr-defined]
    export_store(location, tmp_path / "archive", encoding=encoding)  # type: ignore[arg-type]
    import_store(tmp_path / "archive", str(tmp_path / "imported.db"))
    assert await content(tmp_path / "imported.db") == expected
    copy_store(location, str(tmp_path / "copied.db"))
    assert await content(tmp_path / "copied.db") == expected


async def test_exported_events_are_readable_by_others(tmp_path: Path) -> None:
    store = SqlLightningStore(tmp_path / "s.db")
    await fill(store)
    await store.close()
    export_store(str(tmp_path / "s.db"), tmp_path / "archive", encoding="jsonl")
    parts = [path.read_text() for path in (tmp_path / "archive" / "events").glob("*.jsonl")]
    lines = [json.loads(line) for part in parts for line in part.splitlines()]
    assert any(LARGE in json.dumps(line) for line in lines), "not as references"

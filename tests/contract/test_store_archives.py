"""What is in an archive: readable rows, chosen rollouts with all that is theirs, and refusals of what is damaged."""

from __future__ import annotations

import builtins
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentlightning.kit.errors import BadInputError, BusyError, ConflictError, MissingExtraError, NotFoundError
from agentlightning.kit.files import exclusive_lock
from agentlightning.schemas import LLM, PromptTemplate
from agentlightning.store import SqlLightningStore
from agentlightning.store.transfer import Selection, export_store, import_store
from tests.contract.conftest import make_span
from tests.random_stores import read_rows

BIG = "a long prompt " * 1000


async def fill(location: str, prefix: str = "", count: int = 6) -> None:
    """Rollouts of three modes; every second one succeeds; each with a large span and a large input of its own."""
    store = SqlLightningStore(location)
    await store.add_resources({"p": PromptTemplate(template="Say {x}"), "m": LLM(endpoint="http://x", model="m")})
    for n in range(count):
        name = f"{prefix}ro-{n}"
        rollout = await store.start_rollout(
            {"n": n, "text": f"{n} {BIG}"}, mode=("train", "val", "test")[n % 3], rollout_id=name, worker_id="w"
        )
        key = (name, rollout.attempt.attempt_id)
        await store.add_many_spans([make_span(*key, attributes={"prompt": BIG + str(n), "b": b"\x00", "small": n})])
        await store.update_attempt(*key, status="succeeded" if n % 2 else "failed")
        await store.add_feedback(name, score=float(n), author="ada")
    await store.enqueue_rollout({"queued": True}, rollout_id=f"{prefix}ro-queued")
    await store.close()


async def read_back(location: str) -> dict[str, Any]:
    store = SqlLightningStore(location)
    rollouts = await store.query_rollouts()
    spans = await store.query_many_spans([r.rollout_id for r in rollouts], attempt_id=None)
    found = {
        "rollouts": {r.rollout_id: (r.input, r.status, r.mode) for r in rollouts},
        "spans": {i: [s.model_dump() for s in found] for i, found in spans.items() if found},
    }
    await store.close()
    return found


def lines(folder: Path, table: str) -> list[dict[str, Any]]:
    parts = sorted((folder / table).glob("*.jsonl"))
    return [json.loads(line) for part in parts for line in part.read_text().splitlines()]


async def test_rows_are_readable_with_large_values_in_full(location: str, tmp_path: Path) -> None:
    await fill(location)
    export_store(location, tmp_path / "a")
    rollouts, spans = lines(tmp_path / "a", "rollouts"), lines(tmp_path / "a", "spans")
    assert rollouts[1]["input"] == {"n": 1, "text": f"1 {BIG}"}
    assert spans[1]["rollout_id"] == "ro-1"
    assert spans[1]["attempt_id"] == lines(tmp_path / "a", "attempts")[1]["attempt_id"]
    assert spans[1]["body"]["attributes"] == {"prompt": BIG + "1", "b": {"$bytes": "AA=="}, "small": 1}
    assert lines(tmp_path / "a", "feedback")[2]["rollout_id"] == "ro-2"
    manifest = (tmp_path / "a" / "manifest.json").read_text()
    assert str(tmp_path) not in manifest
    assert json.loads(manifest)["complete"]


async def test_parquet_is_for_pandas(location: str, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    await fill(location)
    export_store(location, tmp_path / "a", encoding="parquet", part_rows=4)
    spans = pandas.read_parquet(tmp_path / "a" / "spans")
    assert spans["rollout_id"].tolist() == [f"ro-{n}" for n in range(6)]
    assert str(spans["no"].dtype) == "int64"
    assert json.loads(spans["body"][3])["attributes"]["prompt"] == BIG + "3"


async def test_chosen_rollouts_go_with_all_that_is_theirs(location: str, tmp_path: Path) -> None:
    await fill(location)
    before = await read_back(location)
    target = str(tmp_path / "chosen.db")
    counts = export_store(location, tmp_path / "a", selection=Selection(modes=("train", "val"), statuses=("failed",)))
    assert counts["rollouts"] == counts["attempts"] == counts["spans"] == counts["feedback"] == 2
    assert import_store(tmp_path / "a", target) == counts
    found = await read_back(target)  # every piece of the large values is there
    chosen = {i: v for i, v in before["rollouts"].items() if v[1] == "failed" and v[2] in ("train", "val")}
    assert found["rollouts"] == chosen
    assert found["spans"] == {i: before["spans"][i] for i in chosen}
    everything = read_rows(location)
    assert 0 < counts["payloads"] < len(everything["payloads"])
    kept = {row[3] for row in read_rows(target)["events"] if row[3] is not None}
    assert kept <= set(chosen)


async def test_chosen_by_time(location: str, tmp_path: Path) -> None:
    await fill(location)
    store = SqlLightningStore(location)
    times = sorted(r.start_time for r in await store.query_rollouts())
    await store.close()
    assert export_store(location, tmp_path / "a", selection=Selection(since=times[3]))["rollouts"] == 4
    assert export_store(location, tmp_path / "b", selection=Selection(since=times[-1] + 1))["payloads"] == 0


async def test_an_export_brought_up_to_date_writes_only_what_changed(location: str, tmp_path: Path) -> None:
    await fill(location)
    folder = tmp_path / "a"
    export_store(location, folder, part_rows=2)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("part-*")}
    export_store(location, folder, part_rows=2)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in before} == before
    store = SqlLightningStore(location)
    await store.update_rollout("ro-3", metadata={"seen": True})
    await store.enqueue_rollout("more", rollout_id="ro-more")
    await store.close()
    export_store(location, folder, part_rows=2)
    changed = {str(p.relative_to(folder)) for p in before if p.stat().st_ino != before[p][1]}
    assert {c for c in changed if not c.startswith("events")} == {
        "rollouts/part-00001.jsonl",
        "rollouts/part-00003.jsonl",
    }
    import_store(folder, tmp_path / "b.db")
    assert read_rows(str(tmp_path / "b.db")) == read_rows(location)


async def test_what_was_deleted_leaves_the_archive(tmp_path: Path) -> None:
    location = str(tmp_path / "s.db")
    await fill(location)
    export_store(location, tmp_path / "a", part_rows=2)
    connection = sqlite3.connect(location)
    for table in ("spans", "feedback", "attempts"):
        connection.execute(f"DELETE FROM {table} WHERE no > 1")
    connection.execute("DELETE FROM rollouts WHERE no > 1")
    connection.commit()
    connection.close()
    assert export_store(location, tmp_path / "a", part_rows=2)["rollouts"] == 1
    assert len(list((tmp_path / "a" / "rollouts").iterdir())) == 1
    import_store(tmp_path / "a", tmp_path / "b.db")
    assert read_rows(str(tmp_path / "b.db")) == read_rows(location)


async def test_merging_keeps_the_queue_and_the_latest_resources(location: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other.db")
    await fill(other, prefix="theirs-")
    await fill(location, prefix="ours-")
    export_store(other, tmp_path / "a")
    store = SqlLightningStore(location)
    latest = await store.get_latest_resources()
    counts = import_store(tmp_path / "a", location)
    assert counts["rollouts"] == 7
    assert counts["workers"] == 0  # the same worker is in both
    assert await store.get_latest_resources() == latest
    assert (await store.query_resources())[0].resources["m"].api_key is None
    claimed = await store.dequeue_many_rollouts(limit=5)
    assert [r.rollout_id for r in claimed] == ["ours-ro-queued", "theirs-ro-queued"]
    await store.enqueue_rollout("new", rollout_id="new")
    assert [r.rollout_id for r in await store.query_rollouts(sort_by="start_time")][-1] == "new"
    await store.close()
    merged, theirs = await read_back(location), await read_back(other)
    assert {i: s for i, s in merged["spans"].items() if i.startswith("theirs")} == theirs["spans"]


async def test_waiting_runners_are_woken_by_an_import(location: str, tmp_path: Path) -> None:
    import asyncio

    other = str(tmp_path / "other.db")
    await fill(other, prefix="theirs-")
    export_store(other, tmp_path / "a")
    store = SqlLightningStore(location)
    waiting = asyncio.create_task(store.dequeue_many_rollouts(timeout=30))
    await asyncio.sleep(0.2)
    await asyncio.to_thread(import_store, tmp_path / "a", location)
    assert [r.rollout_id for r in await asyncio.wait_for(waiting, 100)] == ["theirs-ro-queued"]
    await store.close()


async def test_other_rows_of_the_same_names_are_refused_by_name(location: str, tmp_path: Path) -> None:
    await fill(location)
    export_store(location, tmp_path / "a")
    store = SqlLightningStore(location)
    await store.update_rollout("ro-2", metadata={"changed": True})
    await store.update_rollout("ro-4", metadata={"changed": True})
    await store.enqueue_rollout("another", rollout_id="another")
    await store.close()
    before = read_rows(location)
    with pytest.raises(ConflictError, match="rollouts ro-2, ro-4") as caught:
        import_store(tmp_path / "a", location)
    assert caught.value.details["rows"]["rollouts"] == ["ro-2", "ro-4"]
    assert "Nothing was changed" in caught.value.hint
    assert read_rows(location) == before
    assert not [name for name in os.listdir(tmp_path) if ".transfer" in name]


async def test_another_attempt_in_the_same_place_is_refused(location: str, tmp_path: Path) -> None:
    """The rollout is the same in both, but each store has run its own first attempt of it."""
    other = str(tmp_path / "other.db")
    store = SqlLightningStore(other)
    await store.enqueue_rollout("x", rollout_id="shared")
    await store.close()
    export_store(other, tmp_path / "queued")
    import_store(tmp_path / "queued", location)
    for where in (other, location):
        store = SqlLightningStore(where)
        assert await store.dequeue_rollout() is not None
        await store.close()
    export_store(other, tmp_path / "claimed")
    before = read_rows(location)
    with pytest.raises(ConflictError):
        import_store(tmp_path / "claimed", location)
    assert read_rows(location) == before


Damage = Callable[[Path], None]


def _rewrite(folder: Path, file: str, change: Callable[[bytes], bytes], *, honest: bool) -> None:
    """Change a part; `honest` corrects the manifest, as somebody who edits by hand might."""
    path = folder / file
    path.write_bytes(change(path.read_bytes()))
    if not honest:
        return
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for entry in manifest["tables"].values():
        for part in entry["parts"]:
            if part["file"] == file:
                part["bytes"] = path.stat().st_size
                part["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _manifest(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        found = json.loads((folder / "manifest.json").read_bytes())
        (folder / "manifest.json").write_text(json.dumps(found | changes))

    return damage


def _line(old: bytes, new: bytes) -> Damage:
    return lambda folder: _rewrite(folder, "rollouts/part-00000.jsonl", lambda d: d.replace(old, new, 1), honest=True)


def _span(old: bytes, new: bytes) -> Damage:
    return lambda folder: _rewrite(
        folder, "spans/part-00000.jsonl", lambda data: re.sub(old, new, data, count=1), honest=True
    )


DAMAGES: dict[str, tuple[Damage, str]] = {
    "truncated": (lambda f: _rewrite(f, "spans/part-00000.jsonl", lambda d: d[:-20], honest=False), "truncated"),
    "longer": (lambda f: _rewrite(f, "spans/part-00000.jsonl", lambda d: d + b"\n", honest=False), "too long"),
    "changed": (lambda f: _rewrite(f, "spans/part-00000.jsonl", lambda d: b"[" + d[1:], honest=False), "checksum"),
    "a part is missing": (lambda f: (f / "attempts/part-00000.jsonl").unlink(), "is missing"),
    "not finished": (_manifest(complete=False), "not finished"),
    "newer format": (_manifest(format_version=99), "format version 99"),
    "newer schema": (_manifest(schema_version="9999"), "schema version 9999"),
    "no archive": (_manifest(format="else"), "not an archive"),
    "half a manifest": (lambda f: (f / "manifest.json").write_text('{"format": "agentli'), "malformed"),
    "a manifest of other types": (_manifest(part_rows="many"), "malformed"),
    "a table nobody knows": (_manifest(tables={"secrets": {"columns": {}, "rows": 0, "parts": []}}), "secrets"),
    "a file elsewhere": (
        _manifest(
            tables={
                "rollouts": {
                    "columns": {},
                    "rows": 1,
                    "parts": [
                        {
                            "file": "../../x",
                            "rows": 1,
                            "bytes": 1,
                            "sha256": "",
                            "first_no": 1,
                            "last_no": 1,
                            "source_sha256": "",
                        }
                    ],
                }
            }
        ),
        "outside",
    ),
    "counts that contradict": (_manifest(tables={"rollouts": {"columns": {}, "rows": 3, "parts": []}}), "contradicts"),
    "no JSON": (_line(b'{"no":1,', b'{"no":1;'), "line 1: no JSON"),
    "no object": (lambda f: _rewrite(f, "rollouts/part-00000.jsonl", lambda d: d + b"3\n", honest=True), "line 8"),
    "a status nobody knows": (_line(b'"status":"succeeded"', b'"status":"lost"'), "line 2: status: 'lost'"),
    "a config nobody knows": (_line(b'"config":{}', b'"config":{"max_attempts":"x"}'), "line 1: config"),
    "a number that is text": (_line(b'"attempt_count":1', b'"attempt_count":"1"'), "line 1: attempt_count"),
    "a number too large": (_line(b'"attempt_count":1', b'"attempt_count":9999999999999999999'), "out of range"),
    "a field nobody knows": (_line(b'"attempt_count"', b'"x":1,"attempt_count"'), "unknown field 'x'"),
    "a field that is missing": (_line(b'"status":"failed",', b""), "line 1: status is missing"),
    "a malformed tag": (_line(b'"config":{}', b'"config":{"$bytes":"?"}'), "line 1"),
    "numbers out of order": (_line(b'{"no":2,', b'{"no":9,'), "order"),
    "a number below one": (_line(b'{"no":1,', b'{"no":0,'), "positive"),
    "the same name twice": (_line(b'"ro-1"', b'"ro-0"'), "do not fit"),
    "rows that are missing": (
        lambda f: _rewrite(
            f, "rollouts/part-00000.jsonl", lambda d: b"".join(d.splitlines(keepends=True)[:-1]), honest=True
        ),
        "6 rows; 7",
    ),
    "a misspelt field": (_span(rb'"_raw"', b'"_row"'), "unknown field '_row'"),
    "a body that is none": (_span(rb'"_raw":.*}', b'"_raw":{"body":"wA=="}}'), "line 1: body"),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_what_is_damaged_is_refused_and_changes_nothing(damage: str, tmp_path: Path) -> None:
    source, target = str(tmp_path / "s.db"), str(tmp_path / "t.db")
    await fill(source)
    await fill(target, prefix="t-", count=1)
    before = read_rows(target)
    export_store(source, tmp_path / "a")
    apply, message = DAMAGES[damage]
    apply(tmp_path / "a")
    with pytest.raises(BadInputError, match=message):
        import_store(tmp_path / "a", target)
    assert read_rows(target) == before
    assert sorted(os.listdir(tmp_path)) == ["a", "s.db", "t.db"]


@pytest.mark.parametrize("target_is_empty", [True, False])
async def test_references_to_nothing_are_refused(location: str, target_is_empty: bool, tmp_path: Path) -> None:
    source = str(tmp_path / "s.db")
    await fill(source)
    if not target_is_empty:
        await fill(location, prefix="t-", count=1)
    export_store(source, tmp_path / "a")
    _rewrite(
        tmp_path / "a",
        "spans/part-00000.jsonl",
        lambda data: data.replace(b'"attempt_no":3', b'"attempt_no":77'),
        honest=True,
    )
    with pytest.raises(BadInputError, match=r"refers |do not fit"):
        import_store(tmp_path / "a", location)
    if not target_is_empty:
        assert [r for r, _ in sorted((await read_back(location))["rollouts"].items())] == ["t-ro-0", "t-ro-queued"]


@pytest.mark.parametrize("encoding", ["jsonl.zst", "parquet"])
async def test_packed_parts_that_are_damaged(encoding: str, tmp_path: Path) -> None:
    source = str(tmp_path / "s.db")
    await fill(source)
    export_store(source, tmp_path / "a", encoding=encoding)
    file = f"spans/part-00000.{encoding}"
    _rewrite(tmp_path / "a", file, lambda data: data[: len(data) // 2], honest=True)
    with pytest.raises(BadInputError, match="spans"):
        import_store(tmp_path / "a", tmp_path / "t.db")
    assert not (tmp_path / "t.db").exists()


async def test_folders_that_hold_something_else_are_left_alone(tmp_path: Path) -> None:
    source, other = str(tmp_path / "s.db"), str(tmp_path / "o.db")
    await fill(source, count=1)
    await fill(other, count=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for folder in ("full", "file"):
        with pytest.raises(ConflictError):
            export_store(source, tmp_path / folder)
    export_store(source, tmp_path / "a")
    for arguments in (
        {"source": other},
        {"encoding": "parquet"},
        {"part_rows": 7},
        {"selection": Selection(modes=("train",))},
    ):
        with pytest.raises(ConflictError, match="another export"):
            export_store(**({"source": source, "folder": tmp_path / "a"} | arguments))
    with exclusive_lock(tmp_path / "a" / ".lock", purpose="x"), pytest.raises(BusyError, match="export"):
        export_store(source, tmp_path / "a")


async def test_wishes_that_cannot_be_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(tmp_path / "s.db")
    await fill(source, count=1)
    with pytest.raises(NotFoundError, match="no store"):
        export_store(tmp_path / "nowhere.db", tmp_path / "a")
    with pytest.raises(NotFoundError, match="no archive"):
        import_store(tmp_path / "nowhere", tmp_path / "t.db")
    with pytest.raises(BadInputError, match="memory"):
        export_store(":memory:", tmp_path / "a")
    for wrong in (
        {"encoding": "csv"},
        {"part_rows": 0},
        {"selection": Selection(modes=("training",))},
        {"selection": Selection(statuses=("done",))},
    ):
        with pytest.raises(BadInputError):
            export_store(source, tmp_path / "a", **wrong)
    export_store(source, tmp_path / "parquet", encoding="parquet")
    export_store(source, tmp_path / "jsonl")
    with pytest.raises(BadInputError, match="memory"):
        import_store(tmp_path / "jsonl", ":memory:")
    really_import = builtins.__import__

    def without_pyarrow(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return really_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    for attempt in (
        lambda: export_store(source, tmp_path / "b", encoding="parquet"),
        lambda: import_store(tmp_path / "parquet", tmp_path / "t.db"),
    ):
        with pytest.raises(MissingExtraError, match="pyarrow") as caught:
            attempt()
        assert "agentlightning[parquet]" in caught.value.hint
    assert not (tmp_path / "b").exists()

"""Lineages side by side: what is locked is preferred to what is not, cycle by cycle."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from agentlightning.kit.errors import BadInputError, ConflictError, NotFoundError
from agentlightning.store import LightningStore


async def session(store: LightningStore, session_id: str = "s", cycles: int = 1) -> None:
    """A session of four whose lineages have a rollout in each cycle, called `<cycle>.<position>`."""
    await store.create_lineage_session(session_id=session_id)
    for cycle in range(1, cycles + 1):
        await cycle_of(store, cycle, range(4), session_id)


async def cycle_of(store: LightningStore, cycle: int, positions: Sequence[int], session_id: str = "s") -> None:
    for position in positions:
        await store.enqueue_rollout("draw a cat", rollout_id=f"{cycle}.{position}")
        added = await store.add_to_lineage(f"{session_id}.{position}", f"{cycle}.{position}")
        assert (added.cycle, added.rollout_id) == (cycle, f"{cycle}.{position}")


async def pairs(store: LightningStore, cycle: int | None = None) -> set[tuple[str, str]]:
    found = await store.query_preferences(session_id="s", cycle=cycle, source_in=["lock"])
    assert all(p.session_id == "s" for p in found)
    return {(p.chosen_rollout_id, p.rejected_rollout_id) for p in found}


async def test_a_session_has_its_lineages(store: LightningStore) -> None:
    made = await store.create_lineage_session(name="cats", metadata={"k": 1})
    assert [lineage.position for lineage in made.lineages] == [0, 1, 2, 3]
    assert not any(lineage.locked for lineage in made.lineages)
    assert await store.get_lineage_session(made.session_id) == made
    named = await store.create_lineage_session(names=["bold", "plain"], session_id="mine")
    assert [(x.lineage_id, x.name) for x in named.lineages] == [("mine.0", "bold"), ("mine.1", "plain")]
    assert await store.create_lineage_session(names=["bold", "plain"], session_id="mine") == named
    with pytest.raises(ConflictError, match="another"):
        await store.create_lineage_session(3, session_id="mine")
    found = await store.query_lineage_sessions()
    assert (list(found), found.total) == ([made, named], 2)
    assert list(await store.query_lineage_sessions(name_contains="at")) == [made]
    assert list(await store.query_lineage_sessions(session_id_in=["mine"])) == [named]
    with pytest.raises(BadInputError, match="0 lineages"):
        await store.create_lineage_session(0)


async def test_what_is_locked_is_better_than_what_is_not(store: LightningStore) -> None:
    await session(store)
    assert await pairs(store) == set()
    locked = await store.lock_lineage("s.1", author="ada")
    assert (locked.locked, locked.locked_cycle, locked.rollout_id) == (True, 1, "1.1")
    assert await pairs(store) == {("1.1", "1.0"), ("1.1", "1.2"), ("1.1", "1.3")}
    before = await store.query_preferences()
    assert await store.lock_lineage("s.1") == locked  # once more
    assert await store.query_preferences() == before
    await store.lock_lineage("s.2")
    assert await pairs(store) == {(a, b) for a in ("1.1", "1.2") for b in ("1.0", "1.3")}
    await store.unlock_lineage("s.1")
    assert await pairs(store) == {("1.2", b) for b in ("1.0", "1.1", "1.3")}
    assert not (await store.unlock_lineage("s.1")).locked  # once more


async def test_a_rollout_that_comes_after_the_lock_is_worse_too(store: LightningStore) -> None:
    await store.create_lineage_session(session_id="s")
    await cycle_of(store, 1, [0, 1])
    await store.lock_lineage("s.0")
    assert await pairs(store) == {("1.0", "1.1")}
    await cycle_of(store, 1, [2])
    assert await pairs(store) == {("1.0", "1.1"), ("1.0", "1.2")}


async def test_preferences_of_a_cycle_stay_when_the_next_begins(store: LightningStore) -> None:
    await session(store)
    await store.lock_lineage("s.0")
    first = await pairs(store)
    await cycle_of(store, 2, [1, 2, 3])
    await store.enqueue_rollout("draw a cat", rollout_id="2.0")
    with pytest.raises(ConflictError, match="locked"):
        await store.add_to_lineage("s.0", "2.0")
    assert await pairs(store, 2) == set()  # what was kept from before is not compared with what is new
    await store.lock_lineage("s.3")
    assert await pairs(store, 2) == {("2.3", "2.1"), ("2.3", "2.2")}
    await store.unlock_lineage("s.0")
    assert await pairs(store, 1) == first
    await store.add_to_lineage("s.0", "2.0")
    assert await pairs(store, 2) == {("2.3", "2.0"), ("2.3", "2.1"), ("2.3", "2.2")}


async def test_history_tells_what_happened(store: LightningStore) -> None:
    await session(store)
    await store.lock_lineage("s.2", author="ada")
    await store.unlock_lineage("s.2", author="bob")
    steps = await store.query_lineage_history("s")
    assert steps.total == 6
    assert [(s.kind, s.lineage_id, s.author) for s in steps][-2:] == [
        ("locked", "s.2", "ada"),
        ("unlocked", "s.2", "bob"),
    ]
    assert [s.rollout_id for s in await store.query_lineage_history("s", lineage_id="s.2")] == ["1.2", None, None]
    assert (await store.query_lineage_history("s", kind="rollout", cycle=1, limit=2)).total == 4
    assert [s.position for s in await store.query_lineage_history("s", sort_by="position", limit=1)] == [0]
    with pytest.raises(NotFoundError, match="no session 'x'"):
        await store.query_lineage_history("x")


async def test_what_makes_no_sense_changes_nothing(store: LightningStore) -> None:
    await session(store)
    before = await store.get_lineage_session("s")
    await store.enqueue_rollout("more", rollout_id="more")
    with pytest.raises(NotFoundError, match=r"no lineage 's\.9'"):
        await store.add_to_lineage("s.9", "more")
    with pytest.raises(NotFoundError, match="no rollout 'x'"):
        await store.add_to_lineage("s.0", "x")
    with pytest.raises(ConflictError, match="has a rollout in cycle 1"):
        await store.add_to_lineage("s.0", "more", cycle=1)
    with pytest.raises(ConflictError, match="already, in cycle 1"):
        await store.add_to_lineage("s.0", "1.0", cycle=2)
    with pytest.raises(BadInputError, match="cycle is -1"):
        await store.add_to_lineage("s.0", "more", cycle=-1)
    assert await store.add_to_lineage("s.0", "1.0") == (before.lineages[0] if before else None)  # repeated
    await store.create_lineage_session(session_id="empty")
    with pytest.raises(ConflictError, match="nothing to keep"):
        await store.lock_lineage("empty.0")
    assert await store.get_lineage_session("s") == before
    assert await store.get_lineage_session("x") is None


async def test_locks_at_once_leave_consistent_pairs(store: LightningStore) -> None:
    await session(store)
    await asyncio.gather(*(store.lock_lineage(f"s.{i}") for i in range(3)))
    assert await pairs(store) == {(f"1.{i}", "1.3") for i in range(3)}
    await asyncio.gather(*(store.unlock_lineage(f"s.{i}") for i in range(3)))
    assert await pairs(store) == set()

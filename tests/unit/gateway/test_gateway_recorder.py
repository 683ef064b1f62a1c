"""The recorder: batches, isolation of bad entries, endings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from agentlightning.gateway.errors import CallError
from agentlightning.gateway.recorder import Recorder
from agentlightning.schemas import AttemptedRollout, Span
from agentlightning.store import InMemoryLightningStore


class CountingStore(InMemoryLightningStore):
    """Remembers the size of each batch, and can be held."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.open = asyncio.Event()
        self.open.set()

    async def add_many_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        self.batches.append(len(spans))
        await self.open.wait()
        return await super().add_many_spans(spans)


def span(rollout: AttemptedRollout | None, **attributes: Any) -> Span:
    return Span.from_attributes(
        attributes=attributes,
        rollout_id=rollout.rollout_id if rollout else "ro-nope",
        attempt_id=rollout.attempt.attempt_id if rollout else "at-nope",
    )


async def test_what_arrives_during_a_write_leaves_together_in_the_next() -> None:
    store = CountingStore()
    rollout = await store.start_rollout(input=1)
    recorder = Recorder(store)
    recorder.start()
    store.open.clear()
    first = asyncio.ensure_future(recorder.record([span(rollout)]))
    await asyncio.sleep(0.01)
    others = [asyncio.ensure_future(recorder.record([span(rollout), span(rollout)])) for _ in range(10)]
    await asyncio.sleep(0.01)
    assert not first.done()
    store.open.set()
    await asyncio.gather(first, *others)
    assert store.batches == [1, 20]
    assert [s.sequence_id for s in await store.query_spans(rollout.rollout_id)] == list(range(1, 22))
    await recorder.stop()
    await store.close()


async def test_a_bad_entry_does_not_take_its_batch_down() -> None:
    store = CountingStore()
    rollout = await store.start_rollout(input=1)
    recorder = Recorder(store)
    entries = [span(rollout), span(None), span(rollout, bad=object()), span(rollout)]
    waiting = [recorder.enqueue([entry]) for entry in entries]
    recorder.start()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    await recorder.stop()
    assert results[0] is None
    assert results[3] is None
    unknown, unusable = results[1], results[2]
    assert isinstance(unknown, CallError)
    assert (unknown.status, unknown.reason) == (404, "rollout_not_found")
    assert isinstance(unusable, CallError)
    assert (unusable.status, unusable.reason) == (507, "record_failed")
    assert len(await store.query_spans(rollout.rollout_id)) == 2
    assert recorder.lost == 2
    await store.close()


async def test_a_store_that_hangs_fails_the_call_in_time() -> None:
    store = CountingStore()
    store.open.clear()
    recorder = Recorder(store, write_timeout_s=0.05)
    recorder.start()
    with pytest.raises(CallError, match="TimeoutError") as caught:
        await recorder.record([span(None)])
    assert caught.value.status == 507
    await recorder.stop()
    await store.close()


async def test_stop_writes_what_is_queued(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    store = CountingStore()
    rollout = await store.start_rollout(input=1)
    recorder = Recorder(store, is_durable=False)
    recorder.start()
    for _ in range(3):
        await recorder.record([span(rollout)])
    await recorder.record([span(None)])
    await recorder.stop()
    assert len(await store.query_spans(rollout.rollout_id)) == 3
    assert recorder.lost == 1
    assert "could not be recorded" in caplog.text
    await recorder.stop()  # harmless
    await store.close()


async def test_a_caller_that_leaves_does_not_stop_the_write() -> None:
    store = CountingStore()
    rollout = await store.start_rollout(input=1)
    recorder = Recorder(store)
    recorder.start()
    store.open.clear()
    task = asyncio.ensure_future(recorder.record([span(rollout)]))
    await asyncio.sleep(0.01)
    task.cancel()
    store.open.set()
    await recorder.stop()
    assert len(await store.query_spans(rollout.rollout_id)) == 1
    await store.close()

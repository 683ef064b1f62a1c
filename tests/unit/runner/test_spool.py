"""What a runner keeps on disk while its store is away."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentlightning.agent.scope import RolloutScope, add_core_span
from agentlightning.kit.errors import BusyError, ForbiddenError, StorageError
from agentlightning.runner import reporter
from agentlightning.runner.courier import Report
from agentlightning.runner.pulse import Pulse
from agentlightning.runner.reporter import Outcome, Reporter
from agentlightning.runner.spool import Spool, deliver_leftovers, leftovers
from agentlightning.schemas import RolloutConfig, Span
from agentlightning.store.base import AttemptUpdate
from tests.unit.runner.conftest import Flaky, begun


def span(name: str = "s", **fields: Any) -> Span:
    return Span.from_attributes(rollout_id="r", attempt_id="a", name=name, attributes=fields)


def report(attempt_id: str = "a", **fields: Any) -> Report:
    return Report(AttemptUpdate(rollout_id="r", attempt_id=attempt_id, status="succeeded"), **fields)


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "SPOOL_AFTER_S", 0.05)
    monkeypatch.setattr(reporter, "_LONGEST_PAUSE_S", 0.05)


def test_first_in_first_out_and_nothing_left(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "w")
    config = RolloutConfig(max_attempts=3, retry_condition=["failed"])
    spans = [span(f"s{i}", nan=float("nan"), raw=b"\x00", n=i) for i in range(100)]
    for one in spans:
        spool.append([one], [])
    spool.append([], [report("a1"), report("a2", config=config)])
    assert len(spool) == 101
    taken: list[Span] = []
    while (backlog := spool.first()) is not None:
        taken += backlog.spans
        again = spool.first()
        assert again is not None
        assert again.last == backlog.last  # it stays until it is removed
        spool.remove(backlog)
        if backlog.reports:
            assert backlog.reports == [report("a1"), report("a2", config=config)]
    assert [repr(s) for s in taken] == [repr(s) for s in spans]
    assert len(spool) == 0
    spool.close()
    spool.close()
    assert left_in(tmp_path) == []


def test_large_entries_are_taken_one_by_one(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "w")
    for _ in range(3):
        spool.append([span(text="x" * 3_000_000)], [])
    backlog = spool.first()
    assert backlog is not None
    assert len(backlog.spans) == 1
    spool.close()
    assert leftovers(tmp_path) == ["w"]


def test_full_spool_says_so_and_has_room_again_after_delivery(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "w", max_bytes=200_000)
    spool.append([span(text="x" * 100_000)], [])
    with pytest.raises(StorageError, match="is full"):
        spool.append([span(text="x" * 100_000)], [])
    backlog = spool.first()
    assert backlog is not None
    spool.remove(backlog)
    spool.append([span(text="x" * 100_000)], [])
    assert len(spool) == 1
    spool.close()


def test_span_that_cannot_be_stored_is_said_to_be_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path, "w")
    spool.append([span(bad=object()), span("good")], [])
    backlog = spool.first()
    assert backlog is not None
    assert [s.name for s in backlog.spans] == ["good"]
    assert "is lost" in caplog.text
    spool.close()


def test_spool_belongs_to_one(tmp_path: Path) -> None:
    first = Spool(tmp_path, "w")
    first.append([span()], [])
    second = Spool(tmp_path, "w")
    with pytest.raises(BusyError):
        second.first()
    second.close()
    first.close()
    backlog = second.first()
    assert backlog is not None
    assert len(backlog.spans) == 1
    second.close()


def test_spool_in_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    spool = Spool(tmp_path / "file", "w")
    with pytest.raises(StorageError):
        spool.append([span()], [])
    spool.close()
    (tmp_path / "w.spool").mkdir()
    spool = Spool(tmp_path, "w")
    with pytest.raises(StorageError, match="cannot be used"):
        spool.append([span()], [])
    spool.close()


async def filled(store: Any, folder: Path, name: str = "gone") -> tuple[str, str]:
    """A spool whose owner is gone, with one span and the success of a running attempt."""
    rollout, scope, update = await begun(store)
    spool = Spool(folder, name)
    spool.append([add_core_span(scope, "late", {})], [Report(update)])
    spool.close()
    return rollout.rollout_id, update.attempt_id


async def test_leftovers_are_delivered_once_and_the_living_left_alone(tmp_path: Path, flaky: Flaky) -> None:
    rollout_id, _ = await filled(flaky, tmp_path)
    alive = Spool(tmp_path, "alive")
    alive.append([span()], [])
    flaky.away = 1
    with pytest.raises(StorageError):
        await deliver_leftovers(flaky, tmp_path)
    assert await deliver_leftovers(flaky, tmp_path) == 1
    assert await deliver_leftovers(flaky, tmp_path) == 0
    assert (await flaky.get_rollout_by_id(rollout_id)).status == "succeeded"
    assert [s.name for s in await flaky.query_spans(rollout_id)] == ["late"]
    assert leftovers(tmp_path) == ["alive"]
    alive.close()
    assert await deliver_leftovers(flaky, tmp_path / "nowhere") == 0


async def test_damaged_leftover_is_set_aside(tmp_path: Path, flaky: Flaky, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "w.spool").write_bytes(b"no database" * 1000)
    rollout_id, _ = await filled(flaky, tmp_path)
    assert await deliver_leftovers(flaky, tmp_path) == 1
    assert (tmp_path / "w.damaged").exists()
    assert "kept as" in caplog.text
    assert (await flaky.get_rollout_by_id(rollout_id)).status == "succeeded"


WRITER = """
import os, signal, sys
from pathlib import Path
from agentlightning.runner.courier import Report
from agentlightning.runner.spool import Spool
from agentlightning.schemas import Span
from agentlightning.store.base import AttemptUpdate
spool = Spool(Path(sys.argv[1]), "killed")
rollout_id, attempt_id = sys.argv[2:]
span = Span.from_attributes(rollout_id=rollout_id, attempt_id=attempt_id, name="last", attributes={})
spool.append([span], [Report(AttemptUpdate(rollout_id=rollout_id, attempt_id=attempt_id, status="succeeded"))])
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_spool_survives_its_process(tmp_path: Path, flaky: Flaky) -> None:
    rollout, _, update = await begun(flaky)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", WRITER, str(tmp_path), rollout.rollout_id, update.attempt_id],
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert await deliver_leftovers(flaky, tmp_path) == 1
    assert [s.name for s in await flaky.query_spans(rollout.rollout_id)] == ["last"]
    assert left_in(tmp_path) == []


async def start(store: Any, folder: Path, **options: Any) -> Reporter:
    one = Reporter(store, spool=Spool(folder, f"w{os.urandom(4).hex()}"), **options)
    one.start()
    return one


async def test_reports_go_to_disk_while_the_store_is_away_and_in_order_when_it_is_back(
    tmp_path: Path,
    flaky: Flaky,
) -> None:
    works = [await begun(flaky) for _ in range(20)]
    sender = await start(flaky, tmp_path)
    flaky.away = 10_000
    for _, scope, update in works:
        add_core_span(scope, "one", {})
        await sender.finish(Outcome(scope, update, config=RolloutConfig(max_attempts=2)))  # returns: it is safe
    assert {attempt for _, attempt in sender.held()} == {update.attempt_id for _, _, update in works}
    assert len(leftovers(tmp_path)) == 1
    pulse = Pulse(flaky, "w", {}, 0.05, dict, sender.held)
    flaky.away = 0
    pulse.start()  # what is held counts as alive
    await sender.close()
    await pulse.stop()
    assert sender.failed is None
    assert sender.held() == []
    for rollout, _, _ in works:
        found = await flaky.get_rollout_by_id(rollout.rollout_id)
        assert (found.status, found.config.max_attempts) == ("succeeded", 2)
        assert [s.name for s in await flaky.query_spans(rollout.rollout_id)] == ["one"]
    assert leftovers(tmp_path) == []


async def test_what_is_left_at_the_end_stays_for_the_next_runner(tmp_path: Path, flaky: Flaky) -> None:
    rollout, scope, update = await begun(flaky)
    sender = await start(flaky, tmp_path)
    flaky.away = 10_000
    await sender.finish(Outcome(scope, update))
    await sender.close(within_s=0.1)
    assert len(leftovers(tmp_path)) == 1
    flaky.away = 3
    successor = await start(flaky, tmp_path)
    await successor.close()
    assert (await flaky.get_rollout_by_id(rollout.rollout_id)).status == "succeeded"
    assert left_in(tmp_path) == []


async def test_patience_ends_and_the_disk_keeps_it(tmp_path: Path, flaky: Flaky) -> None:
    _, scope, update = await begun(flaky)
    await filled(flaky, tmp_path)
    sender = await start(flaky, tmp_path, patience_s=0.2)
    flaky.away = 10_000
    await sender.finish(Outcome(scope, update))
    await sender.close()
    assert sender.failed is not None
    assert str(tmp_path) in sender.failed.hint
    assert len(leftovers(tmp_path)) == 2


async def test_without_room_on_disk_the_runner_waits(
    tmp_path: Path,
    flaky: Flaky,
    caplog: pytest.LogCaptureFixture,
) -> None:
    works = [await begun(flaky) for _ in range(3)]
    sender = Reporter(flaky, spool=Spool(tmp_path, "w", max_bytes=30_000))
    sender.start()
    flaky.away = 10_000
    first = works[0]
    await sender.finish(Outcome(first[1], first[2]))
    for _, scope, _ in works[1:]:
        add_core_span(scope, "large", {"text": "x" * 40_000})
    waiting = [asyncio.create_task(sender.finish(Outcome(scope, update))) for _, scope, update in works[1:]]
    await asyncio.sleep(0.3)
    assert not any(task.done() for task in waiting)
    flaky.away = 0
    await asyncio.gather(*waiting)
    await sender.close()
    assert "wait in memory" in caplog.text
    for rollout, _, _ in works:
        assert (await flaky.get_rollout_by_id(rollout.rollout_id)).status == "succeeded"


async def test_another_token_loses_nothing(tmp_path: Path, flaky: Flaky, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout, scope, update = await begun(flaky)
    sender = await start(flaky, tmp_path)
    flaky.away = 3
    add_core_span(scope, "one", {})

    async def refuse(spans: Any) -> Any:
        raise ForbiddenError("another token") if not flaky.away else StorageError("away")

    with monkeypatch.context() as patch:
        patch.setattr(flaky, "add_many_spans", refuse)
        await sender.finish(Outcome(scope, update))
        flaky.away = 0
        await sender.close()
    assert isinstance(sender.failed, ForbiddenError)
    assert (await flaky.get_rollout_by_id(rollout.rollout_id)).status == "preparing"
    await (await start(flaky, tmp_path)).close()
    assert (await flaky.get_rollout_by_id(rollout.rollout_id)).status == "succeeded"


async def test_retry_of_an_unknown_rollout_is_refused_and_said(flaky: Flaky, caplog: pytest.LogCaptureFixture) -> None:
    update = AttemptUpdate(rollout_id="none", attempt_id="a", status="failed")
    sender = Reporter(flaky)
    sender.start()
    await sender.finish(Outcome(RolloutScope("none", "a"), update, config=RolloutConfig(max_attempts=2)))
    await sender.close()
    assert sender.failed is None
    assert "refused the retry" in caplog.text

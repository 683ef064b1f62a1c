"""What a store's size costs: fills one file and measures at growing numbers of rollouts. Used by `benchmarks/store.py`.

Filled with the store's own calls for many rollouts at once; measured with whole lives of single rollouts.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

BATCH = 500
RUNNERS = 32


async def fill(store: Any, count: int) -> None:
    """Carry `count` rollouts with one span each through their life."""
    from agentlightning import Span
    from agentlightning.schemas import EnqueueRolloutRequest
    from agentlightning.store.base import AttemptUpdate

    while count > 0:
        size = min(BATCH, count)
        count -= size
        await store.enqueue_many_rollouts([EnqueueRolloutRequest(input={"n": n}, mode="train") for n in range(size)])
        claimed = await store.dequeue_many_rollouts(limit=size, worker_id="filler")
        ids = [(r.rollout_id, r.attempt.attempt_id) for r in claimed]
        await store.add_many_spans(
            [
                Span.from_attributes(
                    attributes={"text": "x" * 200},
                    rollout_id=rollout_id,
                    attempt_id=attempt_id,
                    sequence_id=1,
                    name="openai.chat.completion",
                    start_time=1.0,
                    end_time=2.0,
                )
                for rollout_id, attempt_id in ids
            ]
        )
        await store.update_many_attempts(
            [AttemptUpdate(rollout_id=r, attempt_id=a, status="succeeded") for r, a in ids]
        )


def resident_mb() -> float:
    """Memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def newest_ms(store: Any) -> float:
    """Milliseconds of wall time for the newest 100 rollouts, the best of 5."""
    times: list[float] = []
    for _ in range(5):
        started = time.perf_counter()
        page = await store.query_rollouts(sort_by="start_time", sort_order="desc", limit=100)
        times.append(1e3 * (time.perf_counter() - started))
        assert len(page) == 100
    return min(times)


async def grow(
    path: Path,
    most: int,
    seconds: float,
    measure: Callable[[Any, int, float], Awaitable[dict[str, float]]],
) -> None:
    """Print a table, and one JSON object as the last line."""
    from agentlightning import SqlLightningStore

    store = SqlLightningStore(path)
    sizes = [n for n in (1_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000) if n < most] + [most]
    print("| rollouts | rollouts/s | CPU ms each | newest 100, ms | memory MB | file MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    rows: list[dict[str, float]] = []
    for size in sizes:
        there = (await store.statistics()).get("total_rollouts", 0)
        await fill(store, size - there)
        memory = resident_mb()
        result = await measure(store, RUNNERS, seconds)
        row = {
            "rollouts": size,
            "rate": round(result["rate"], 1),
            "cpu_ms": round(result["cpu_ms"], 3),
            "newest_ms": round(await newest_ms(store), 2),
            "memory_mb": round(memory, 1),
            "file_mb": round(sum(p.stat().st_size for p in path.parent.glob("store.db*")) / 2**20, 1),
        }
        rows.append(row)
        print("| " + " | ".join(f"{value:g}" for value in row.values()) + " |", flush=True)
    await store.close()
    first, last = rows[0], rows[-1]
    print(
        json.dumps(
            {
                "benchmark": "store, scale",
                "cpu_last_vs_first": round(last["cpu_ms"] / first["cpu_ms"], 3),
                "memory_last_vs_first": round(last["memory_mb"] / first["memory_mb"], 3),
                "newest_ms": last["newest_ms"],
                "sizes": rows,
            }
        )
    )

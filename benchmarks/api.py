"""The platform's API under load, beside bare FastAPI endpoints that read the same rows and answer the same.

    python benchmarks/api.py [--postgres] [--seconds 3] [--rounds 3] [--workers 1] [--knowledge FOLDER]

`agl up` as a process, with a token of another user on each connection; beside it the endpoints of `api_bare.py`, each
in a process of its own with the same server, event loop and settings. Cases run interleaved, medians over the rounds.
The load generator (`api_load.py`) is a process of its own; what it can do is measured first, with a server that answers
a constant. Users ask again at once, so that the latencies are those at saturation: 1 / rate x users; the cases called
"paced" have users that pause for a second on average between an answer and their next request.

`--knowledge` runs `knowledge.py` on a folder that it has filled before. The last line is one JSON object: `vs_bare` is
the smallest of the three reads' ratios to the direct endpoint at 100 users, `p95_ms_100` and `p95_ms_1000` are those of
the mixed reads at saturation.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import api_sites as sites
import httpx
from api_load import Generator, Load, Outcome, serve_nothing

READS = ("task", "item", "agents")
Request = tuple[bytes, bytes]


@dataclass(frozen=True, eq=False)
class Case:
    """One load on one server."""

    name: str
    server: sites.Server
    users: int
    pause_s: float = 0.0


@dataclass
class Result:
    """A case, once."""

    rate: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms: float
    failed: int


def request(path: str, body: bytes = b"") -> Request:
    head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    if body:
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode(), body


class Requests:
    """What is asked, by the name of the case."""

    def __init__(self, data: sites.Data) -> None:
        self._chooser = random.Random(7)
        self._tasks = [[request(f"/api/v2/tasks/{number}") for number in found] for found in data.tasks]
        self._items = [request(f"/api/v2/knowledge/{number}") for number in data.items]
        self._agents = [request("/api/v2/agents")]
        self._kept = [request(f"/api/v2/knowledge/search?q={self._words()}") for _ in range(50)]

    def load(self, case: Case, tokens: list[str], seconds: float) -> Load:
        """Reads at random; searches that are to be new, and writes, one after the other."""
        name, most = case.name, round(seconds * 5_000)
        fixed = {
            "task": (self._tasks[0], 1.0),  # everybody's own
            "item": (self._items, 0.0),
            "agents": (self._agents, 0.0),
            "mix": ([*self._items[:500], *self._agents * 500], 1 / 3),
            "search, kept": (self._kept, 0.0),
        }
        if name in fixed:
            found, share = fixed[name]
        else:
            found, share = [self._new(name) for _ in range(most)], 0.0
        return Load(
            port=case.server.port,
            requests=found,
            tokens=tokens if case.server.name == sites.PLATFORM else [],
            users=case.users,
            seconds=seconds,
            own=self._tasks if share else [],
            own_share=share,
            pause_s=case.pause_s,
            once=name not in fixed,
            expected=b"201" if name == "write" else b"200",
        )

    def _new(self, name: str) -> Request:
        if name == "search, new":
            return request(f"/api/v2/knowledge/search?q={self._words()}")
        body = {"title": f"Note {self._chooser.randrange(10**9)}", "content": self._words().replace("+", " ")}
        return request("/api/v2/knowledge", json.dumps(body).encode())

    def _words(self) -> str:
        return "+".join(self._chooser.choices(sites.WORDS, k=4)) + f"+w{self._chooser.randrange(10**9)}"


def check_same(data: sites.Data, servers: list[sites.Server]) -> None:
    """All answer the same `data`, field for field."""
    paths = [f"/api/v2/tasks/{data.tasks[0][0]}", f"/api/v2/knowledge/{data.items[0]}", "/api/v2/agents"]
    for path in paths:
        found: list[Any] = []
        for server in servers:
            headers = {"authorization": f"Bearer {data.tokens[0]}"}
            answer = httpx.get(f"http://127.0.0.1:{server.port}{path}", headers=headers, timeout=30)
            found.append(answer.raise_for_status().json()["data"])
        if any(other != found[0] for other in found):
            raise SystemExit(f"{path}: the servers differ\n" + "\n".join(json.dumps(one)[:600] for one in found))


def cases(ours: sites.Server, bare: list[sites.Server], users: list[int]) -> list[Case]:
    """Interleaved in this order."""
    found: list[Case] = []
    for count in users:
        is_first = count == min(users)
        for name in (*READS, "mix") if is_first else ("task", "mix"):
            found += [Case(name, server, count) for server in (ours, *bare)]
        # A thousand at once would wait for half a minute for what takes ten milliseconds each.
        slow = ("search, new", "write") if is_first else ()
        found += [Case(name, ours, count) for name in ("search, kept", *slow)]
        found += [Case("mix", server, count, pause_s=1.0) for server in (ours, bare[0])]
    return found


def run_case(generator: Generator, requests: Requests, tokens: list[str], case: Case, seconds: float) -> Result:
    before = case.server.cpu_s()
    outcome = generator.run(requests.load(case, tokens, seconds))
    used = case.server.cpu_s() - before
    for failure in outcome.failures:
        print(f"  failed: {case.name}, {case.server.name}: {failure!r}", file=sys.stderr)
    return Result(
        outcome.rate,
        *(outcome.percentile_ms(share) for share in (0.5, 0.95, 0.99)),
        cpu_ms=1000 * used / max(1, len(outcome.latencies)),
        failed=outcome.failed,
    )


def limit_of(generator: Generator) -> Outcome:
    """What the generator does against a server that does nothing."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve_nothing, args=(theirs,), daemon=True)
    process.start()
    found = generator.run(Load(ours.recv(), [request("/")], ["x" * 300], 100, 2.0))
    process.terminate()
    process.join()
    return found


Results = dict[Case, list[Result]]


def median(found: list[Result], field: str) -> float:
    return statistics.median(getattr(result, field) for result in found)


def report(results: Results) -> None:
    head = f"{'read':14} {'of':14} {'users':>11} {'req/s (min-max)':>24} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8}"
    print(f"{head} {'CPU ms':>7} {'failed':>6}")
    for case, found in sorted(results.items(), key=lambda pair: (pair[0].users, pair[0].pause_s)):
        rates = [result.rate for result in found]
        users = f"{case.users}{', paced' if case.pause_s else ''}"
        rate = f"{median(found, 'rate'):.0f} ({min(rates):.0f}-{max(rates):.0f})"
        times = " ".join(f"{median(found, field):8.2f}" for field in ("p50_ms", "p95_ms", "p99_ms"))
        used, failed = median(found, "cpu_ms"), sum(result.failed for result in found)
        print(f"{case.name:14} {case.server.name:14} {users:>11} {rate:>24} {times} {used:7.3f} {failed:6}")


def summary(results: Results, errors: int) -> dict[str, Any]:
    """Keys for the last line."""

    def of(name: str, server: str, users: int, field: str, *, paced: bool = False) -> float | None:
        for case, found in results.items():
            if (case.name, case.server.name, case.users, bool(case.pause_s)) == (name, server, users, paced):
                return median(found, field)
        return None

    def ratios(kind: str, users: int) -> list[float]:
        pairs = ((of(name, sites.PLATFORM, users, "rate"), of(name, kind, users, "rate")) for name in READS)
        return [ours / theirs for ours, theirs in pairs if ours and theirs]

    least = min(case.users for case in results)
    found: dict[str, Any] = {
        "vs_bare": round(min(ratios(sites.DIRECT, least)), 3),
        "vs_bare_orm": round(min(ratios(sites.ORM, least)), 3),
    }
    for users in sorted({case.users for case in results}):
        for key, name, paced in (
            ("", "mix", False), ("_paced", "mix", True), ("_search_kept", "search, kept", False),
            ("_search_new", "search, new", False), ("_write", "write", False),
        ):  # fmt: skip
            value = of(name, sites.PLATFORM, users, "p95_ms", paced=paced)
            found[f"p95_ms_{users}{key}"] = None if value is None else round(value, 1)
    return {**found, "errors": errors}


def knowledge(folder: Path | None) -> dict[str, Any]:
    """Of `knowledge.py` on a folder; nothing without one."""
    if folder is None:
        print("knowledge at a million: not run (--knowledge FOLDER)")
        return {"search_p95_ms_1m": None, "recall_at_10": None}
    program = str(Path(__file__).with_name("knowledge.py"))
    done = subprocess.run(
        [sys.executable, program, "--folder", str(folder)], stdout=subprocess.PIPE, text=True, check=True
    )
    print(done.stdout, end="")
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: found[name] for name in ("search_p95_ms_1m", "recall_at_10")}


def measure(data: sites.Data, given: argparse.Namespace) -> dict[str, Any]:
    requests = Requests(data)
    with contextlib.ExitStack() as stack:
        generator = stack.enter_context(Generator())
        limit = limit_of(generator)
        print(f"load generator: {limit.rate:.0f} requests/s of a server that does nothing")
        ours = stack.enter_context(sites.platform(data, given.workers))
        bare = [stack.enter_context(sites.bare(data, kind)) for kind in ("direct", "orm")]
        check_same(data, [ours, *bare])
        wanted = cases(ours, bare, given.users)
        for case in wanted:  # warm up: imports, connections, plans
            run_case(generator, requests, data.tokens, case, 0.5)
        results: Results = {}
        for _ in range(given.rounds):
            for case in wanted:
                found = run_case(generator, requests, data.tokens, case, given.seconds)
                results.setdefault(case, []).append(found)
                paced = ", paced" if case.pause_s else ""
                print(f"  {case.name}, {case.server.name}, {case.users}{paced}: {found}", file=sys.stderr, flush=True)
        report(results)
        errors = sum(result.failed for case, found in results.items() if case.server is ours for result in found)
        print(f"platform: {ours.rss_mb():.0f} MB resident; load average {os.getloadavg()[0]:.1f}, its own included")
        return {**summary(results, errors), "generator_per_s": round(limit.rate)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--postgres", action="store_true", help="PostgreSQL and Redis instead of SQLite and memory")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each case in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="processes of the platform; the bare ones have one")
    parser.add_argument("--users", type=int, nargs="+", default=[100, 1_000])
    parser.add_argument("--knowledge", type=Path, help="a folder that knowledge.py has filled")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agl-bench-api-")))
        place = stack.enter_context(sites.servers_for_tests()) if given.postgres else {}
        found = measure(sites.fill(home, place), given)
    print(json.dumps({**found, **knowledge(given.knowledge)}))


if __name__ == "__main__":
    main()

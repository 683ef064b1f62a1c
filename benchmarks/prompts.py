"""Held-out score of prompt optimizers at the same number of model calls: ours, 0.3's APO, gepa, DSPy's MIPROv2.

Every model is a SIMULATION (`prompts_simulator.py`): no strong model is needed, and every number is about the searches
alone, not about language. Each seed has other hidden rules and other tickets. The score is the mean reward on 200
held-out tickets (in the world `tickets` the share answered exactly); intervals are Student's t over seeds. All choose
on the same 16 validation tickets. Who refuses to begin is scored with the starting prompt. For the time, our APO runs
with the very settings of 0.3's (same beam, branches, rounds, batches, 4 runner processes) and 100 ms a call.

    python benchmarks/prompts.py [--seeds 5] [--budgets 100 200 300] [--subjects apo auto peer gepa dspy] [--out FILE]
                                 [--world tickets|forms]

With `--out` each run is a line of that file when it ends, and runs that are in it are not repeated: a curve can be
made in pieces. The peers' interpreters come from `python benchmarks/peers.py agentlightning-0.3-apo` and `… dspy`.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from peers import is_installed, peer_python
from prompts_simulator import SEED_PROMPT, WORLDS, make_tickets, score_prompt

HERE = Path(__file__).resolve().parent
NAMES = {
    "apo": "ours, APO",
    "auto": "ours, auto",
    "peer": "agentlightning 0.3, APO",
    "gepa": "gepa 0.1.4",
    "dspy": "DSPy 3.4.1, MIPROv2",
    "dspy16": "… with up to 16 labelled",
}
PEER_OF = {"peer": "agentlightning-0.3-apo", "dspy": "dspy", "dspy16": "dspy"}
VAL = 16
TIMEOUT_S = 500.0
T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@contextlib.contextmanager
def simulator() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, str(HERE / "prompts_simulator.py")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait(10)


def reset(url: str, seed: int, delay_s: float, world: str) -> None:
    body = json.dumps({"seed": seed, "delay_s": delay_s, "world": world}).encode()
    request = urllib.request.Request(f"{url}/reset", data=body, headers={"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=10).close()


def run(
    subject: str,
    budget: int,
    seed: int,
    *,
    delay_s: float = 0.0,
    timeout_s: float = TIMEOUT_S,
    world: str = "tickets",
) -> dict[str, Any]:
    with simulator() as url:
        return run_at(url, subject, budget, seed, delay_s=delay_s, timeout_s=timeout_s, world=world)


def run_at(
    url: str, subject: str, budget: int, seed: int, *, delay_s: float, timeout_s: float, world: str
) -> dict[str, Any]:
    parts = (("train", 40), ("val", VAL), ("test", 200))
    data = {part: make_tickets(seed, part, count, WORLDS[world]) for part, count in parts}
    python = peer_python(PEER_OF[subject]) if subject in PEER_OF else Path(sys.executable)
    ours = str(HERE.parent / "src")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("AGL_")},
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": "unused",
        "PYTHONPATH": str(HERE) if subject in PEER_OF else f"{ours}{os.pathsep}{HERE}",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    reset(url, seed, delay_s, world)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "data.json"
        path.write_text(json.dumps(data))
        command = [str(python), str(HERE / "prompts_subjects.py"), subject, str(budget), str(seed), str(path)]
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return {"error": f"longer than {timeout_s:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"error": f"exit code {done.returncode}: {done.stderr.strip()[-600:]}"}
    found = json.loads(lines[-1])
    if "prompt" in found:
        found["score"] = score_prompt(found["prompt"], data["test"], seed, WORLDS[world])
    return found


def mean_with_interval(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "-"
    half = T975.get(len(values) - 1, 1.96) * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.fmean(values)
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


def show(results: dict[tuple[str, int], list[dict[str, Any]]], start: list[float]) -> None:
    print("SIMULATION (no language model): reward on 200 held-out tickets, mean over seeds with 95 % interval")
    print(f"{'starting prompt':<28}{'':>8}{'':>8}  {mean_with_interval(start)}")
    for (subject, budget), found in results.items():
        good = [r for r in found if "error" not in r]
        used = statistics.fmean(r["calls"] for r in good) if good else float("nan")
        scores = mean_with_interval([r["score"] for r in good])
        print(f"{NAMES[subject]:<28}{budget:>8}{used:>8.0f}  {scores}")
        for result in found:
            if "error" in result:
                print(f"    failed: {result['error']}")


def measure_time(seeds: int, budget: int) -> float | None:
    """Seconds a call of our APO by those of 0.3's, with the same settings; medians over seeds."""
    if not is_installed(PEER_OF["peer"]):
        return None
    each: dict[str, list[float]] = {"same": [], "peer": []}
    for seed in range(seeds):
        for subject, found in each.items():
            result = run(subject, budget, seed, delay_s=0.1)
            if "error" in result:
                print(f"    {subject} failed: {result['error']}")
                continue
            print(f"time: {subject:<5} seed {seed}  {result['seconds']:6.1f} s  {result['calls']} calls", flush=True)
            found.append(result["seconds"] / result["calls"])
    if not all(each.values()):
        return None
    return statistics.median(each["same"]) / statistics.median(each["peer"])


class Done:
    """Runs that ended, kept in a file; what failed is tried again."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        rows = [json.loads(line) for line in lines]
        self.known = {
            (r.get("world", "tickets"), r["subject"], r["budget"], r["seed"]): r for r in rows if "error" not in r
        }

    def run(self, case: tuple[str, int, int], timeout_s: float, world: str) -> dict[str, Any]:
        if (world, *case) in self.known:
            return self.known[world, *case]
        load = os.getloadavg()[0]
        found = run(*case, timeout_s=timeout_s, world=world)
        if self.path is not None:
            row = {**dict(zip(("subject", "budget", "seed"), case, strict=True)), **found, "load": load}
            row["world"] = world
            with self.path.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="optimizers are developed on seeds from 10 on")
    parser.add_argument("--world", default="tickets", choices=list(WORLDS))
    parser.add_argument("--budgets", type=int, nargs="+", default=[300])
    parser.add_argument("--subjects", nargs="+", default=list(NAMES)[:5], choices=list(NAMES))
    parser.add_argument("--time-seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; times are measured one by one")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds of one run")
    parser.add_argument("--out", type=Path, help="keep each run here, and take those that are here already")
    arguments = parser.parse_args()
    done = Done(arguments.out)
    results: dict[tuple[str, int], list[dict[str, Any]]] = {}
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    world = WORLDS[arguments.world]
    start = [score_prompt(SEED_PROMPT, make_tickets(seed, "test", 200, world), seed, world) for seed in seeds]
    cases = [(s, b, n) for b in arguments.budgets for n in seeds for s in arguments.subjects]
    for subject in arguments.subjects:  # peers are installed one after the other
        if subject in PEER_OF:
            peer_python(PEER_OF[subject])
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for (subject, budget, seed), result in zip(
            cases, pool.map(lambda c: done.run(c, arguments.timeout, arguments.world), cases), strict=True
        ):
            results.setdefault((subject, budget), []).append(result)
            told = result.get("error", "")[-300:] or f"{result['score']:.3f} with {result['calls']} calls"
            print(f"{subject:<5} budget {budget} seed {seed}: {told}", file=sys.stderr, flush=True)
    ratio = measure_time(arguments.time_seeds, arguments.budgets[-1]) if arguments.time_seeds else None
    show(dict(sorted(results.items(), key=lambda item: item[0][1])), start)
    budget = arguments.budgets[-1]
    means = {
        subject: statistics.fmean(r["score"] for r in found if "error" not in r)
        for (subject, b), found in results.items()
        if b == budget and any("error" not in r for r in found)
    }
    peers = [means[s] for s in ("peer", "gepa", "dspy", "dspy16") if s in means]
    ours = [means[s] for s in ("apo", "auto") if s in means]
    summary = {
        "simulation": True,
        "world": arguments.world,
        "score_vs_best_peer": max(ours) - max(peers) if ours and peers else None,
        "seconds_vs_apo_peer": ratio,
        "calls": {s: statistics.fmean(r["calls"] for r in results[s, budget] if "error" not in r) for s in means},
        "scores": means,
        "seeds": arguments.seeds,
        "budget": budget,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()

"""The demo under many seeds: does it gain every time, and does it reach what it promises?

Each seed runs `agl demo --fresh --seed K --json` in a home of its own. A gain counts when its 95 % interval excludes
zero; a target counts when the point estimate reaches it.

    python benchmarks/demo_seeds.py [--seeds 0-9] [--eval-tasks 256] [--steps N] [--keep FOLDER]

The last line is one JSON object; exit code 1 when fewer than 9 of 10 seeds (rounded down, at least
one) gain or reach all targets.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# (evaluation, before or after, bound, whether it is a least value)
TARGETS: dict[str, tuple[str, str, float, bool]] = {
    "new questions sampled, after >= .85": ("new_questions/sampled", "after", 0.85, True),
    "new phrasings sampled, after >= .72": ("new_phrasings/sampled", "after", 0.72, True),
    "new questions sampled, before <= .35": ("new_questions/sampled", "before", 0.35, False),
    "new questions greedy, before <= .55": ("new_questions/greedy", "before", 0.55, False),
}
ROWS = ("new_questions/sampled", "new_questions/greedy", "new_phrasings/sampled", "new_phrasings/greedy")
SHARE = 0.9


def parse_seeds(text: str) -> list[int]:
    """`0-3,7` as `[0, 1, 2, 3, 7]`."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds.extend(range(int(first), int(last or first) + 1))
    return seeds


def run_seed(seed: int, home: Path, options: list[str], timeout_s: float) -> dict[str, Any]:
    """Run one demo; returns its result, or `{"error": ...}` with the end of what it said."""
    agl = [sys.executable, "-m", "agentlightning.cli.main"]
    command = [*agl, "demo", "--fresh", "--seed", str(seed), "--json", *options]
    home.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "AGL_HOME": str(home)},
            cwd=home,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"seed": seed, "error": f"longer than {timeout_s:.0f} s"}
    wall = time.perf_counter() - started
    result = home / "demo" / "result.json"
    if done.returncode or not result.exists():
        return {"seed": seed, "error": f"exit code {done.returncode}: {done.stderr.strip()[-1500:]}"}
    return {**json.loads(result.read_text()), "wall_s": round(wall, 1)}


def reached(result: dict[str, Any]) -> dict[str, bool]:
    """Which targets a result reaches."""
    found: dict[str, bool] = {}
    for name, (row, when, bound, at_least) in TARGETS.items():
        value = result["all"][row][when]["accuracy"]
        found[name] = value >= bound if at_least else value <= bound
    return found


def gains(result: dict[str, Any]) -> bool:
    """Whether the interval of the gain lies above zero."""
    return result["gain"]["ci_low"] > 0


def show(results: list[dict[str, Any]]) -> None:
    """One line a seed: before -> after of the four evaluations, the gain with its interval, seconds."""
    head = "".join(f"{row.replace('new_', '').replace('/', ' '):>20}" for row in ROWS)
    print(f"{'seed':>4}{head}{'gain (sampled)':>26}{'seconds':>9}{'targets':>9}")
    for result in results:
        if "error" in result:
            print(f"{result['seed']:>4}  {result['error']}")
            continue
        pairs = (result["all"][row] for row in ROWS)
        cells = "".join(f"{p['before']['accuracy']:>12.3f} > {p['after']['accuracy']:.3f}" for p in pairs)
        gain = result["gain"]
        interval = f"{gain['mean']:+.3f} [{gain['ci_low']:+.3f}, {gain['ci_high']:+.3f}]"
        met = reached(result)
        print(f"{result['seed']:>4}{cells}{interval:>26}{result['seconds']:>9.0f}{sum(met.values()):>7}/{len(met)}")


def show_spread(results: list[dict[str, Any]]) -> None:
    """Over the seeds that finished: mean before, mean after, and the range after."""
    good = [result for result in results if "error" not in result]
    for row in ROWS if good else ():
        before, after = ([r["all"][row][when]["accuracy"] for r in good] for when in ("before", "after"))
        print(
            f"{row:<24} mean {statistics.fmean(before):.3f} > {statistics.fmean(after):.3f}, "
            f"after between {min(after):.3f} and {max(after):.3f}"
        )


def summarize(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and the per-seed numbers, JSON-able."""
    good = [result for result in results if "error" not in result]
    targets = {name: sum(reached(result)[name] for result in good) for name in TARGETS}
    return {
        "seeds": len(results),
        "failed": [{"seed": r["seed"], "error": r["error"]} for r in results if "error" in r],
        "gain_excludes_zero": sum(gains(result) for result in good),
        "all_targets": sum(all(reached(result).values()) for result in good),
        "targets": targets,
        "results": [
            {key: result[key] for key in ("seed", "steps", "seconds", "wall_s", "gain", "all")} for result in good
        ],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-9", help="e.g. 0-9 or 0,3,5-7")
    parser.add_argument("--eval-tasks", type=int, default=256, help="held-out questions per evaluation")
    parser.add_argument("--steps", type=int, help="training steps (default: the recipe's)")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds one demo may take")
    parser.add_argument("--keep", type=Path, help="keep the homes below this folder")
    arguments = parser.parse_args()
    options = ["--eval-tasks", str(arguments.eval_tasks)]
    if arguments.steps:
        options += ["--steps", str(arguments.steps)]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="agl-seeds-") as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        for seed in parse_seeds(arguments.seeds):
            print(f"seed {seed} ...", file=sys.stderr, flush=True)
            results.append(run_seed(seed, folder / f"seed-{seed}", options, arguments.timeout))
    show(results)
    print()
    show_spread(results)
    summary = summarize(results)
    n = summary["seeds"]
    print(f"\ngain excludes zero: {summary['gain_excludes_zero']} of {n}; all targets: {summary['all_targets']} of {n}")
    for name, count in summary["targets"].items():
        print(f"  {name}: {count} of {n}")
    print(json.dumps(summary))
    enough = max(1, int(SHARE * n))
    return 0 if min(summary["gain_excludes_zero"], summary["all_targets"]) >= enough else 1


if __name__ == "__main__":
    sys.exit(main())

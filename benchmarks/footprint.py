"""What it costs to have the package around: disk, import time, memory, `agl --help`; ours beside the 0.3 release.

Ours is the core install of this checkout (`pip install .`, no extras) into a fresh environment. Every time is the
median over fresh processes, the interpreter's own start included; subjects take turns, so a busy machine
hits all alike.

    python benchmarks/footprint.py [--rounds 7] [--no-peer]

The last line is one JSON object; exit code 1 when a budget is missed. Budgets on wall time are checked against the
fastest round, since other load on the machine can only add to it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import peers

PEER = "agentlightning-0.3"
BUDGETS = {"import_wall_s": 0.4, "import_rss_mb": 60.0, "disk_mb": 100.0, "help_wall_s": 0.4}

# `import agentlightning` alone is cheap for a package with lazy names, so what people then use is timed as well.
IMPORTS = {
    "import": "import agentlightning",
    "agent": "from agentlightning import LLM, PromptTemplate, emit_reward, rollout",
    "trainer": "from agentlightning import Trainer",
}
_MB = 1e6
# VmHWM belongs to the memory map made by exec; ru_maxrss would also count the process that forked this one.
_REPORT_MEMORY = """
import sys
def _peak():
    try:
        with open("/proc/self/status") as f:
            return next(int(l.split()[1]) * 1024 for l in f if l.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
print(_peak())
"""


@dataclass
class Subject:
    """One environment and what was measured in it."""

    name: str
    python: Path
    facts: dict[str, float] = field(default_factory=dict[str, float])
    samples: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def add(self, key: str, value: float) -> None:
        self.samples.setdefault(key, []).append(value)

    def best(self, key: str) -> float:
        """The smallest value seen; facts are as they are."""
        return self.facts[key] if key in self.facts else min(self.samples[key])

    def medians(self) -> dict[str, float]:
        return {**self.facts, **{key: statistics.median(values) for key, values in self.samples.items()}}


def environment() -> dict[str, str]:
    """A clean environment: nothing of ours on the path, no network attempts where a package offers a switch."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "AGL_", "COV"))}
    return {**kept, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def timed(command: list[str]) -> tuple[float, float, str]:
    """Run a fresh process; returns (wall seconds, user + system seconds, standard output).

    Raises:
        SystemExit: It failed; its error output is shown.
    """
    before = os.times()
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300, check=False)
    wall = time.perf_counter() - started
    after = os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:300]}\nfailed:\n{done.stderr[-3000:]}")
    cpu = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    return wall, cpu, done.stdout


def measure_disk(subject: Subject) -> dict[str, float]:
    """Count the distributions and bytes of an environment; returns MB by distribution."""
    folder = peers.site_packages(subject.python)
    sizes: dict[str, float] = {}
    for distribution in importlib.metadata.distributions(path=[str(folder)]):
        paths = (Path(str(distribution.locate_file(file))) for file in distribution.files or ())
        name = str(distribution.metadata["Name"])
        sizes[name] = sum(path.stat().st_size for path in paths if path.is_file()) / _MB
    subject.facts["distributions"] = len(sizes)
    everything = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    subject.facts["disk_mb"] = sum(path.stat().st_size for path in everything) / _MB
    return sizes


def measure_round(subject: Subject, *, keep: bool) -> None:
    """One fresh process per case."""
    agl = subject.python.with_name("agl")
    cases: dict[str, list[str]] = {"python": [str(subject.python), "-c", "pass"]}
    for name, statement in IMPORTS.items():
        cases[name] = [str(subject.python), "-c", f"{statement}\n{_REPORT_MEMORY}"]
    cases["help"] = [str(agl), "--help"]
    for name, command in cases.items():
        wall, cpu, output = timed(command)
        if not keep:
            continue
        subject.add(f"{name}_wall_s", wall)
        subject.add(f"{name}_cpu_s", cpu)
        if name in IMPORTS:
            subject.add(f"{name}_rss_mb", int(output.strip().splitlines()[-1]) / _MB)


def ours() -> Subject:
    """The core of this checkout in a fresh environment."""
    folder = peers.FOLDER / "this-checkout"
    print("installing this checkout without extras ...", file=sys.stderr)
    python = peers.fresh_environment(folder)
    peers.install(python, str(peers.REPOSITORY))
    return Subject("ours", python)


def show(subjects: list[Subject]) -> None:
    rows = list(subjects[0].medians())
    print(f"{'':<18}" + "".join(f"{s.name:>20}" for s in subjects) + (f"{'ratio':>10}" if len(subjects) > 1 else ""))
    for key in rows:
        values = [subject.medians()[key] for subject in subjects]
        ratio = f"{values[1] / values[0]:>9.1f}x" if len(values) > 1 and values[0] else ""
        print(f"{key:<18}" + "".join(f"{value:>20.3f}" for value in values) + ratio)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="fresh processes per case")
    parser.add_argument("--no-peer", action="store_true", help="measure ours only")
    arguments = parser.parse_args()
    subjects = [ours()] + ([] if arguments.no_peer else [Subject(PEER, peers.peer_python(PEER))])
    largest = sorted(measure_disk(subjects[0]).items(), key=lambda item: -item[1])[:10]
    for subject in subjects[1:]:
        measure_disk(subject)
    for number in range(arguments.rounds + 1):  # the first one warms the file cache
        for subject in subjects:
            measure_round(subject, keep=number > 0)
    show(subjects)
    print("\nlargest parts of ours (MB): " + ", ".join(f"{name} {size:.1f}" for name, size in largest))
    own = subjects[0].medians()
    missed = [key for key, budget in BUDGETS.items() if subjects[0].best(key) > budget]
    for key, budget in BUDGETS.items():
        print(f"{'MISSED' if key in missed else 'ok':<7} {key} {subjects[0].best(key):.3f} (budget {budget:g})")
    result: dict[str, Any] = {"rounds": arguments.rounds}
    for subject in subjects:
        result[subject.name] = {key: round(value, 4) for key, value in subject.medians().items()}
    if len(subjects) > 1:
        peer = subjects[1].medians()
        result["ratios"] = {key: round(peer[key] / own[key], 2) for key in own if own[key]}
    result["budgets_missed"] = sorted(missed)
    print(json.dumps(result))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

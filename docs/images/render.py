"""Draws `demo.svg` from a finished demo: what the command line prints of it, and one question before and after.

Nothing is drawn that a run has not said. Run it after `agl demo`, with the same AGL_HOME:

    python docs/images/render.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 90
TARGET = Path(__file__).with_name("demo.svg")
TESTS = "new_questions-sampled"
# Lines that would show where on somebody's machine the run was, and the echo of how to start over.
_LEFT_OUT = re.compile(r"^\w+ +/|agl demo --fresh")


def agl(*arguments: str) -> str:
    """The output of a command, with its colours."""
    done = subprocess.run(
        [sys.executable, "-m", "agentlightning.cli.main", *arguments],
        env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "TTY_COMPATIBLE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout


def flipped(run: Path) -> int:
    """The first question that was wrong before and right after."""
    record = json.loads((run / "run.json").read_text())
    before, after = (record[when]["new_questions/sampled"]["rewards"] for when in ("before", "after"))
    return next(i for i, pair in enumerate(zip(before, after, strict=True)) if pair == (0.0, 1.0))


def conversation(rollout_id: str) -> str:
    """The part of `agl show` from the question on."""
    text = agl("show", rollout_id)
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if Text.from_ansi(line).plain.startswith("user"))
    return "\n".join(lines[start:])


def main() -> None:
    home = Path(os.environ.get("AGL_HOME", ".agentlightning"))
    result = json.loads((home / "demo" / "result.json").read_text())
    index = flipped(home / "runs" / result["run_id"])
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"))  # noqa: SIM115 - lives as long as the process
    console.print("[bold]$ make demo[/]\n")
    for when in ("before", "after"):
        console.rule(f"the same question {when} training", align="left", style="dim")
        console.print(Text.from_ansi(conversation(f"{result['run_id']}.{when}-{TESTS}.{index:04d}")))
    for line in agl("demo").splitlines():
        if not _LEFT_OUT.search(Text.from_ansi(line).plain):
            console.print(Text.from_ansi(line))
    TARGET.write_text(console.export_svg(title="Agent Lightning"), encoding="utf-8")
    sys.stdout.write(f"{TARGET}\n")


if __name__ == "__main__":
    main()

"""Virtual environments of the packages we are measured beside, made by pip once and kept under `benchmarks/.peers/`.

Knows nothing of what is measured. `python benchmarks/peers.py NAME` prints the path of the peer's interpreter.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
REPOSITORY = ROOT.parent
FOLDER = ROOT / ".peers"
_INSTALL_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Peer:
    """A package others use for the same job."""

    requirements: tuple[str, ...]
    module: str
    command: str | None = None


PEERS = {
    # The public package whose interface ours follows; installed without torch, as its own core is.
    "agentlightning-0.3": Peer(("agentlightning==0.3.0",), module="agentlightning", command="agl"),
    # The same with its prompt optimizer; newer OpenTelemetry releases break its exporter.
    "agentlightning-0.3-apo": Peer(
        ("agentlightning[apo]==0.3.0", "opentelemetry-sdk==1.38.0", "opentelemetry-exporter-otlp-proto-http==1.38.0"),
        module="agentlightning",
    ),
    "dspy": Peer(("dspy==3.4.1", "optuna"), module="dspy"),
    # What stands in front of models in most agent stacks, and what others capture with.
    "litellm": Peer(("litellm[proxy]==1.106.2",), module="litellm", command="litellm"),
    "rllm-model-gateway": Peer(
        ("rllm-model-gateway==0.1.0",), module="rllm_model_gateway", command="rllm-model-gateway"
    ),
}


def peer_python(name: str) -> Path:
    """Path of the interpreter that has the peer installed; installs it at the first call.

    Raises:
        SystemExit: The name is unknown, or pip failed (its output is shown).
    """
    if name not in PEERS:
        raise SystemExit(f"There is no peer {name!r}; known: {', '.join(PEERS)}.")
    requirements = PEERS[name].requirements
    folder = FOLDER / name
    if is_installed(name):
        return interpreter(folder)
    print(f"installing {', '.join(requirements)} into {folder.relative_to(REPOSITORY)} ...", file=sys.stderr)
    python = fresh_environment(folder)
    install(python, *requirements)
    (folder / "installed.json").write_text(json.dumps(list(requirements)))
    return python


def is_installed(name: str) -> bool:
    """Whether `peer_python` would answer at once."""
    stamp = FOLDER / name / "installed.json"
    return stamp.exists() and json.loads(stamp.read_text()) == list(PEERS[name].requirements)


def peer_command(name: str) -> Path:
    """Path of the peer's program, installed when missing."""
    command = PEERS[name].command
    assert command is not None
    return peer_python(name).with_name(command)


def fresh_environment(folder: Path) -> Path:
    """An empty virtual environment without pip (pip would count as a part of what is installed)."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=_INSTALL_TIMEOUT_S)
    return interpreter(folder)


def install(python: Path, *arguments: str) -> None:
    """`pip install` into the environment of `python`, with the pip of the running interpreter."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def interpreter(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def site_packages(python: Path) -> Path:
    """Where the environment of `python` keeps its packages."""
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    answer = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return Path(answer.stdout.strip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default=next(iter(PEERS)), choices=list(PEERS))
    print(peer_python(parser.parse_args().name))


if __name__ == "__main__":
    main()

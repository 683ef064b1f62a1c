"""`agl doctor`: what is installed, what is reachable, and which extra would add what."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from typing import Annotated, Any

import typer

from agentlightning.cli.output import print_json, print_table

HELP = "Say what is installed and reachable, and which extra would add what."

# module, distribution, extra, what it is for
_PACKAGES = (
    ("torch", "torch", "learn", "train and serve models locally"),
    ("transformers", "transformers", "learn", "load Hugging Face models"),
    ("tensorboard", "tensorboard", "learn", "metrics in TensorBoard"),
    ("matplotlib", "matplotlib", "learn", "learning curves as PNG"),
    ("peft", "peft", "learn", "LoRA adapters"),
    ("llguidance", "llguidance", "learn", "required formats: JSON schemas, forced tool calls"),
    ("vllm", "vllm", "", "serve models with vLLM"),
    ("openai", "openai", "openai", "the demo's agent"),
    ("pyarrow", "pyarrow", "parquet", "export and import Parquet"),
    ("litellm", "litellm", "litellm", "reach any other provider"),
    ("fastapi", "fastapi", "platform", "the platform: agl up"),
    ("bcrypt", "bcrypt", "platform", "the platform's passwords"),
)
_SERVICES = (
    ("OPENAI_BASE_URL", "an OpenAI-compatible server"),
    ("DATABASE_URL", "PostgreSQL"),
    ("REDIS_URL", "Redis"),
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(help=HELP, epilog="Example:  agl doctor --json")(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    system = _system()
    report: dict[str, Any] = {
        "system": system,
        "packages": [_package(*entry) for entry in _PACKAGES],
        "services": [_service(*entry) for entry in _SERVICES],
    }
    if as_json:
        print_json(report)
    else:
        _print(report)
    if not system["home_writable"]:
        raise typer.Exit(1)


def _system() -> dict[str, Any]:
    from agentlightning import __version__
    from agentlightning.config import Settings

    home = Settings().home.absolute()
    existing = home
    while not existing.exists():
        existing = existing.parent
    return {
        "agentlightning": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpu": _gpu(),
        "home": str(home),
        "home_writable": os.access(existing, os.W_OK),
        "disk_free_gb": round(shutil.disk_usage(existing).free / 1e9, 1),
    }


def _gpu() -> str | None:
    # nvidia-smi rather than torch: importing torch takes seconds.
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        answer = subprocess.run(
            [tool, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip().replace("\n", ", ") or None


def _package(module: str, distribution: str, extra: str, purpose: str) -> dict[str, Any]:
    installed = importlib.util.find_spec(module) is not None
    version = importlib.metadata.version(distribution) if installed else None
    command = f"pip install 'agentlightning[{extra}]'" if extra else f"pip install {distribution}"
    return {"package": distribution, "version": version, "for": purpose, "add": None if installed else command}


def _service(variable: str, what: str) -> dict[str, Any]:
    url = os.environ.get(variable)
    if not url:
        return {"service": what, "variable": variable, "configured": False, "reachable": None}
    return {"service": what, "variable": variable, "configured": True, "reachable": _reachable(url)}


def _reachable(url: str) -> bool:
    import socket
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    default = {"https": 443, "http": 80, "postgresql": 5432, "postgres": 5432, "redis": 6379}
    port = parts.port or default.get(parts.scheme.split("+")[0], 80)
    try:
        with socket.create_connection((parts.hostname or "localhost", port), timeout=2):
            return True
    except OSError:
        return False


def _print(report: dict[str, Any]) -> None:
    print_table("system", ("", ""), report["system"].items())
    print_table(
        "\npackages",
        ("package", "version", "for", "to add it"),
        ((p["package"], p["version"], p["for"], p["add"]) for p in report["packages"]),
    )
    states = {None: "not configured", True: "reachable", False: "NOT reachable"}
    print_table(
        "\nservices (none is needed)",
        ("service", "set by", "state"),
        ((s["service"], s["variable"], states[s["reachable"]]) for s in report["services"]),
    )

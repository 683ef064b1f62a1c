"""The model registry: versions of a named model with their lineage and measured results, on disk.

Layout: `<root>/<name>/<version>/` is a Hugging Face model directory with an extra `version.json`.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from agentlightning.kit.clock import now
from agentlightning.kit.errors import BadInputError, NotFoundError
from agentlightning.kit.files import exclusive_lock, write_atomic

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One registered version."""

    name: str
    version: str
    path: Path
    base: str
    run_id: str
    step: int
    created_at: float
    stage: str = "candidate"
    metrics: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def ref(self) -> str:
        """`name@version`, as commands take it."""
        return f"{self.name}@{self.version}"


class ModelRegistry:
    """Registers and finds model versions below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def register(
        self, name: str, source: Path, *, base: str, run_id: str, step: int, metrics: dict[str, Any]
    ) -> ModelVersion:
        """Copy a model directory in as the next version; repeating it for the same run and step returns the first.

        Raises:
            BadInputError: The name has characters that do not belong into a file name.
        """
        if not _NAME.fullmatch(name):
            raise BadInputError(f"{name!r} is no model name.", hint="Use letters, digits, '.', '_' and '-'.")
        folder = self.root / name
        with exclusive_lock(folder / ".lock", purpose="A registration"):
            for known in self.versions(name):
                if (known.run_id, known.step) == (run_id, step):
                    return known
            version = f"v{len(self.versions(name)) + 1}"
            staging = folder / f".{version}"
            shutil.rmtree(staging, ignore_errors=True)
            shutil.copytree(source, staging)
            entry = ModelVersion(name, version, folder / version, base, run_id, step, now(), metrics=metrics)
            record = {key: value for key, value in asdict(entry).items() if key != "path"}
            write_atomic(staging / "version.json", orjson.dumps(record, option=orjson.OPT_INDENT_2))
            staging.rename(folder / version)
        return entry

    def names(self) -> list[str]:
        """Names with at least one version."""
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and self.versions(p.name))

    def versions(self, name: str) -> list[ModelVersion]:
        """Versions of a name, oldest first."""
        folder = self.root / name
        if not folder.is_dir():
            return []
        found = [_read(path) for path in folder.glob("v*/version.json")]
        return sorted(found, key=lambda entry: entry.created_at)

    def get(self, ref: str) -> ModelVersion:
        """Find `name` (its latest version) or `name@version`.

        Raises:
            NotFoundError: There is no such version; the message lists what there is.
        """
        name, _, version = ref.partition("@")
        for entry in reversed(self.versions(name)):
            if version in ("", entry.version):
                return entry
        known = [v.ref for n in self.names() for v in self.versions(n)]
        raise NotFoundError(
            f"No registered model {ref!r}.",
            hint=f"Registered: {', '.join(known) or 'none yet'}; see `agl resources`.",
        )


def _read(path: Path) -> ModelVersion:
    return ModelVersion(path=path.parent, **orjson.loads(path.read_bytes()))

"""Where a model's weights come from: a registered version, a name the program knows, a directory or a hub id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agentlightning.registry import ModelRegistry

UNVERSIONED = "base"


@dataclass(frozen=True)
class Source:
    """What an engine is to load."""

    path: str
    """A directory or a hub id."""
    version: str = UNVERSIONED
    """`name@v3` for a registered version; with `+` and the adapter's name where one is put on it."""


class Sources:
    """Finds what names stand for.

    Args:
        registry: Registered versions.
        known: Paths by name, e.g. `{"nano": …}`.
    """

    def __init__(self, registry: ModelRegistry, known: Mapping[str, str] | None = None) -> None:
        self.registry = registry
        self._known = dict(known or {})

    def find(self, origin: str, adapter: str | None = None) -> Source:
        """Resolve a name, now; a registered name may stand for another version later.

        Args:
            origin: The name.
            adapter: What is put on the weights, so that they are not called what they are without it.

        Raises:
            NotFoundError: The name is registered, but not the version.
            StorageError: The registry cannot be read.
        """
        suffix = "" if adapter is None else f"+{Path(adapter).name}"
        if origin in self._known:
            return Source(self._known[origin], UNVERSIONED + suffix)
        name = origin.partition("@")[0]
        if not Path(origin).expanduser().exists() and self.registry.versions(name):
            version = self.registry.get(origin)
            return Source(str(version.path), version.ref + suffix)
        return Source(origin, UNVERSIONED + suffix)

    def followed(self, origin: str) -> str | None:
        """The model whose promotions a name follows, if it is registered: `name` and `name@production` do."""
        name, _, which = origin.partition("@")
        if origin in self._known or which not in ("", "production") or Path(origin).expanduser().exists():
            return None
        return name

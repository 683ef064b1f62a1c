"""What a grant covers: `*`, `agent:*` or `agent:read`. Knows no roles and no users."""

from __future__ import annotations

from collections.abc import Iterable


def permits(granted: Iterable[str], wanted: str) -> bool:
    """Whether one of `granted` (`*`, `agent:*`, `agent:read`) covers `wanted` (`agent:read`)."""
    return any(
        grant in ("*", wanted) or (grant.endswith(":*") and wanted.startswith(grant.removesuffix("*")))
        for grant in granted
    )

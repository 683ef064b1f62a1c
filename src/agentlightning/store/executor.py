"""What every part of the store's interface rests on: one method that executes a verb. Knows no verb."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from agentlightning.store.verbs import Verb

R = TypeVar("R")


class Executor:
    """Executes verbs; the methods of the interface pack their arguments into one each."""

    async def execute(self, verb: Verb[R]) -> R:
        """Execute one verb: the one method an implementation must have; callers use the others."""
        # Not abstract: as in 0.3, a subclass may bring single methods only.
        raise NotImplementedError(f"{type(self).__name__} does not implement the store's verbs")

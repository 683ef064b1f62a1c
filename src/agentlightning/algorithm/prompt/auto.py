"""The optimizer that picks: by what writes prompts, how much data there is, and what may be spent. It says why."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from agentlightning.algorithm.prompt.apo import APO
from agentlightning.algorithm.prompt.edit import EditSearch
from agentlightning.algorithm.prompt.fewshot import FewShot
from agentlightning.algorithm.prompt.optimizer import PromptOptimizer
from agentlightning.algorithm.prompt.search import Search

T = TypeVar("T")

_SMALL_VAL = 8
_LARGE_VAL = 32
_ROUNDS = 5


class Auto(PromptOptimizer[T]):
    """Chooses an optimizer when the run begins.

    Without a proposer it searches by edits and demonstrations; where the budget pays for two passes over the validation
    examples at most, it looks for demonstrations only; else it runs textual gradients (with an eighteenth as many
    validation examples as the budget has rollouts), then looks for demonstrations with what is left.

    Args:
        **options: See `PromptOptimizer`.
    """

    name = "auto"

    async def search(self, search: Search) -> None:
        """See `PromptOptimizer.search`."""
        options: dict[str, Any] = {"flat_start": self.flat_start, "repeats": self.repeats}
        room = search.purse.affordable_rollouts()
        if search.proposer is None:
            self._choose(search, "edit", "no model that writes prompts is there, so edits and demonstrations are tried")
            await EditSearch(**options).search(search)
            return
        passes = room / max(1, len(search.val))
        if passes < 2:
            self._choose(search, "fewshot", f"the budget pays for {passes:.1f} passes over the validation examples")
            await FewShot(rounds=1, sets=4, **options).search(search)
            return
        apo = self._apo(search, room, options)
        pays = "without a limit" if math.isinf(room) else f"for about {room:.0f} rollouts"
        told = f"there is a proposer, and the budget pays {pays}; {len(search.val)} validation examples are used"
        self._choose(search, "apo, then fewshot", told)
        await apo.search(search)
        if search.is_perfect or search.purse.affordable_rollouts() < 2 * len(search.val):
            return
        because = search.stopped_because
        await FewShot(rounds=1, sets=6, train_size=24, **options).extend(
            search, search.best, first_round=search.rounds_done + 1
        )
        search.stopped_because = because

    def _apo(self, search: Search, room: float, options: dict[str, Any]) -> APO[T]:
        size = _LARGE_VAL if math.isinf(room) else int(min(_LARGE_VAL, max(_SMALL_VAL, room / 18)))
        search.val = search.val[:size]
        rounds = _ROUNDS if math.isinf(room) else int(max(2, min(2 * _ROUNDS, room / (4 * len(search.val)))))
        apo: APO[T] = APO(
            beam_width=2,
            branch_factor=3,
            beam_rounds=rounds,
            gradient_batch_size=4,
            val_batch_size=len(search.val),
            patience=3 if math.isinf(room) else rounds,
            **options,
        )
        return apo

    def _choose(self, search: Search, name: str, because: str) -> None:
        self.why = f"{name}: {because}."
        search.lineage.chose(self.why)
        search.context.report({"type": "choice", "optimizer": name, "why": self.why})

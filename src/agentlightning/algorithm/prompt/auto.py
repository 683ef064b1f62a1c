"""The optimizer that picks: by what writes prompts, how much data there is, and what may be spent. It says why.

With a proposer it goes in stages, each fed by what the one before has paid for: look (the starting prompt on few
examples), show (examples from reference answers and from the first successes, which cost no call to make), teach
(critiques of the failures that are left, instructions edited under the examples), show again (the best prompt's own
good answers), confirm (the last few on examples that nothing was chosen on before). Without reference answers there is
little to show at first: it teaches at once, and shows own answers with what that leaves of the budget.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

from agentlightning.algorithm.prompt.apo import APO
from agentlightning.algorithm.prompt.budget import BudgetSpent
from agentlightning.algorithm.prompt.candidate import Candidate
from agentlightning.algorithm.prompt.demonstrations import has_references
from agentlightning.algorithm.prompt.edit import EditSearch
from agentlightning.algorithm.prompt.fewshot import FewShot
from agentlightning.algorithm.prompt.optimizer import PromptOptimizer
from agentlightning.algorithm.prompt.search import Search
from agentlightning.algorithm.prompt.signal import require_signal

T = TypeVar("T")

_LARGE_VAL = 32
_ROUNDS = 5
_LOOK = 4
_MAX_EXAMPLES = 16
_MAX_TOKENS = 2000
_SHOWING_AGAIN = 1.5


class Auto(PromptOptimizer[T]):
    """Chooses an optimizer when the run begins.

    Without a proposer it searches by edits and demonstrations. With one, prompts with examples (reference answers of
    training tasks, and the first good answers) race with the starting prompt; then textual gradients improve the
    instructions of the best two; then the best prompt's own answers are tried as examples. Where tasks have no
    reference answers that can be shown, or there are several prompts, textual gradients come first. What the budget
    does not pay for is left out, from the end. Validation examples grow with the budget, and a part of it is kept to
    choose between the last few.

    Args:
        **options: See `PromptOptimizer`.
    """

    name = "auto"

    async def search(self, search: Search) -> None:
        """See `PromptOptimizer.search`."""
        options: dict[str, Any] = {"flat_start": self.flat_start, "repeats": self.repeats}
        if search.proposer is None:
            self._choose(search, "edit", "no model that writes prompts is there, so edits and demonstrations are tried")
            await EditSearch(**options).search(search)
            return
        await search.price()
        room = search.purse.affordable_rollouts()
        search.val = search.val[:_LARGE_VAL]
        search.narrow()
        pays = "without a limit" if math.isinf(room) else f"for about {room:.0f} rollouts"
        shows_first = has_references(search)
        told = (
            f"there is a proposer, {'and' if shows_first else 'no'} reference answers can be shown, and the budget "
            f"pays {pays}; {len(search.val)} validation examples are used at first"
        )
        self._choose(search, "fewshot, then apo" if shows_first else "apo, then fewshot", told)
        await search.confirmed(self._explore(search, room, options, shows_first=shows_first))

    async def _explore(self, search: Search, room: float, options: dict[str, Any], *, shows_first: bool) -> None:
        show: FewShot[T] = FewShot(
            rounds=1,
            sets=4,
            train_size=0,
            max_demonstrations=max(1, min(_MAX_EXAMPLES, len(search.train) // 2)),
            max_tokens=_MAX_TOKENS,
            **options,
        )
        beam = await (self._start(search, show) if shows_first else self._start_bare(search))
        teach = self._teacher(search, room, options, is_first=not shows_first)
        again = 0
        if shows_first and not math.isinf(room):
            again = int(min(room / 4, _SHOWING_AGAIN * len(search.val) * self.repeats))
        search.end_round(0, teach.beam_rounds, beam)
        try:
            with search.purse.setting_aside(again):
                await teach.climb(search, beam)
        except BudgetSpent as spent:
            search.stopped_because = spent.message
        if not search.is_perfect:
            because = search.stopped_because
            await show.extend(search, search.best, first_round=search.rounds_done + 1)
            search.stopped_because = because

    async def _start(self, search: Search, show: FewShot[T]) -> list[Candidate]:
        """The best two of the starting prompt and of those with examples that cost nothing."""
        look = search.minibatch(_LOOK, 0)
        if self.flat_start:
            await search.score([search.seed], look, "start")
        else:
            await require_signal(search, batch=look, with_val=False, others=lambda: show.make(search))
        made = show.made or await show.make(search)
        return await search.race([search.seed, *made], keep=2, round_number=0)

    async def _start_bare(self, search: Search) -> list[Candidate]:
        """The starting prompt: what it got right by itself shows little that it does not know, and costs a race."""
        if not self.flat_start:
            await require_signal(search, batch=search.minibatch(_LOOK, 0), with_val=True)
        return await search.race([search.seed], keep=1, round_number=0, halving=False)

    def _teacher(self, search: Search, room: float, options: dict[str, Any], *, is_first: bool) -> APO[T]:
        rounds = _ROUNDS
        if not is_first and not math.isinf(room):
            left = search.purse.affordable_rollouts()
            rounds = int(max(1, min(2 * _ROUNDS, left / (4 * len(search.val)))))
        return APO(
            beam_width=2,
            branch_factor=3,
            beam_rounds=rounds,
            gradient_batch_size=4,
            patience=3 if math.isinf(room) else rounds,
            **options,
        )

    def _choose(self, search: Search, name: str, because: str) -> None:
        self.why = f"{name}: {because}."
        search.lineage.chose(self.why)
        search.context.report({"type": "choice", "optimizer": name, "why": self.why})

"""What every search over prompts shares: data, scores, purse, lineage and the best so far.

Knows how to judge candidates, not how to think of new ones.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentlightning.algorithm.base import RunContext
from agentlightning.algorithm.prompt.budget import BudgetSpent, Purse, Spend
from agentlightning.algorithm.prompt.candidate import Candidate
from agentlightning.algorithm.prompt.lineage import Lineage
from agentlightning.algorithm.prompt.proposer import AskedOnce
from agentlightning.algorithm.prompt.scoring import Example, Score, Scorer
from agentlightning.kit.stats import paired_interval

_LEAST_VAL = 8
_ROLLOUTS_PER_VAL = 18
_FINALISTS = 3
_CONFIRMING_SHARE = 0.2
LEAST_TO_COMPARE = 4
"""Examples below which no two candidates are told apart."""


@dataclass
class Search:
    """One optimisation under way."""

    context: RunContext
    seed: Candidate
    train: list[Example]
    val: list[Example]
    scorer: Scorer
    purse: Purse
    lineage: Lineage
    proposer: AskedOnce | None
    rng: random.Random
    on_best: Callable[[Candidate], None]
    spare: list[Example] = field(default_factory=list[Example])
    """Validation examples that are kept for the choice between the last few."""
    best: Candidate = field(init=False)
    born: dict[str, Candidate] = field(default_factory=dict[str, Candidate])
    parents: dict[str, str] = field(default_factory=dict[str, str])
    """First parents, by id."""
    shown: dict[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    """Examples whose answers a candidate shows, by its id: nothing is to be learned from running it on them."""
    drops: Counter[str] = field(default_factory=Counter[str])
    stopped_because: str = ""
    rounds_done: int = 0

    def __post_init__(self) -> None:
        self.best = self.seed
        self.born[self.seed.id] = self.seed
        self.lineage.born(self.seed, parents=[], round_number=0, origin="start")

    def minibatch(self, size: int, number: int, *, of: Candidate | None = None) -> list[Example]:
        """The `number`-th minibatch of an endless stream of training examples; every epoch has another order.

        Args:
            size: Examples in it.
            number: From 0.
            of: Leave out those that this candidate shows.
        """
        shown = self.shown.get(of.id, frozenset()) if of else frozenset[str]()
        offered = [example for example in self.train if example.id not in shown]
        size = min(size, len(offered))
        chosen: list[Example] = []
        for position in range(number * size, (number + 1) * size):
            epoch, offset = divmod(position, len(offered))
            order = list(range(len(offered)))
            random.Random(f"{self.context.seed}/{epoch}").shuffle(order)
            chosen.append(offered[order[offset]])
        return list({example.id: example for example in chosen}.values())

    def propose(
        self,
        parents: Sequence[Candidate],
        texts: Mapping[str, str],
        *,
        round_number: int,
        origin: str,
        critique: str = "",
        cost: Spend | None = None,
        shows: Iterable[str] | None = None,
    ) -> Candidate | None:
        """Take a new text in, if it may run: other than all before, with its parent's placeholders.

        `shows` are the examples whose answers it shows; those its first parent shows when `None`.
        """
        ids = [parent.id for parent in parents]
        candidate, note = parents[0].edited(texts)
        reason = note if candidate is None else "known already" if candidate.id in self.born else ""
        if candidate is None or reason:
            self.drop(ids, reason, round_number=round_number, text="\n\n".join(texts.values()), critique=critique)
            return None
        self.born[candidate.id] = candidate
        self.parents[candidate.id] = parents[0].id
        self.shown[candidate.id] = self.shown.get(ids[0], frozenset()) if shows is None else frozenset(shows)
        self.lineage.born(
            candidate,
            parents=ids,
            round_number=round_number,
            origin=origin,
            critique=critique,
            note=f"repaired: {note}" if note else "",
            cost=cost,
        )
        return candidate

    def drop(self, parents: list[str], reason: str, *, round_number: int, text: str, critique: str = "") -> None:
        """Record a proposal that may not run."""
        self.drops[reason] += 1
        self.lineage.dropped(parents=parents, round_number=round_number, reason=reason, text=text, critique=critique)

    async def score(self, candidates: Sequence[Candidate], examples: Sequence[Example], label: str) -> None:
        """Run candidates on examples, all of it at once.

        Raises:
            BudgetSpent: The budget does not pay for it.
        """
        await self.scorer.run([(candidate, examples) for candidate in candidates], label=label)

    async def race(
        self, candidates: Sequence[Candidate], *, keep: int, round_number: int, halving: bool = True
    ) -> list[Candidate]:
        """The best `keep` of the candidates on the validation examples, best first.

        Successive halving (Jamieson and Talwalkar 2016): all of them run on a quarter of the examples, the better half
        on half of them, and so on. Of the better half, those fall out, too, that are worse than the best one beyond
        doubt, by pairs (a race in the sense of Maron and Moore 1994, section 3). What the budget does not pay for falls
        out, the worst first.

        Raises:
            BudgetSpent: It pays for none.
        """
        left = list(dict.fromkeys(candidates))
        for size in self._rungs(len(left), keep, halving=halving):
            examples = self.val[:size]
            left = self.fitting(left, examples)
            await self.score(left, examples, f"round {round_number}")
            left = self._newest_of_equals(left, examples)
            if size < len(self.val):
                left = self._not_beaten(left[: max(keep, math.ceil(len(left) / 2))], examples)
        for candidate in left:
            self.lineage.scored(candidate, "val", self.val_score(candidate), round_number=round_number)
        self._note_best(left)
        return left[:keep]

    def _not_beaten(self, candidates: Sequence[Candidate], examples: Sequence[Example]) -> list[Candidate]:
        """Those whose difference to the first one, by pairs, may be zero or more."""
        floor = self.scorer.lowest or 0.0
        rewards = [[floor if r is None else r for r in self.scorer.rewards(c, examples)] for c in candidates]
        if len(examples) < LEAST_TO_COMPARE:
            return list(candidates)
        highs = [paired_interval(list(zip(rewards[0], found, strict=True)))[2] for found in rewards]
        return [c for number, (c, high) in enumerate(zip(candidates, highs, strict=True)) if not number or high >= 0]

    async def price(self) -> None:
        """Run the starting prompt once where nothing says yet what a rollout costs: sizes follow from that.

        Raises:
            BudgetSpent: The budget is too small for a first batch.
        """
        if self.purse.knows_no_cost:
            first = self.minibatch(LEAST_TO_COMPARE, 0)
            self.purse.require(rollouts=len(first) * self.repeats)
            await self.score([self.seed], first[:1], "start")

    def narrow(self) -> None:
        """Fit the validation examples to the budget; the rest is spare, for the choice between the last few.

        A candidate has to be cheap enough that several rounds of them can be tried, so it is judged on as many examples
        as an eighteenth of what the budget pays for, and at least on 8, or 4 where that would be most of it.
        """
        room = self.purse.affordable_rollouts()
        if math.isinf(room):
            return
        each = room / self.repeats
        size = max(LEAST_TO_COMPARE, min(_LEAST_VAL, int(each / 5)), int(each / _ROLLOUTS_PER_VAL))
        self.val, self.spare = self.val[:size], [*self.val[size:], *self.spare]

    async def confirmed(self, exploring: Awaitable[None]) -> None:
        """Explore, but keep part of the budget for the choice between the best few on more validation examples.

        Between many candidates on few examples the luckiest wins; a few on more examples find the better one (the
        second stage of two-stage selection: Bechhofer 1954; Nelson et al. 2001, Operations Research 49:950).
        """
        room = self.purse.affordable_rollouts()
        wanted = _FINALISTS * len(self.spare) * self.repeats
        kept = wanted if math.isinf(room) else int(min(wanted, _CONFIRMING_SHARE * room))
        try:
            with self.purse.setting_aside(kept):
                await exploring
        except BudgetSpent as spent:
            self.stopped_because = spent.message
        await self._confirm()

    async def _confirm(self) -> None:
        whole = [c for c in self.born.values() if not self.scorer.cost(c, self.val)]
        never = [c for c in self.born.values() if self.scorer.unknown(c, self.val) == self.val][-_FINALISTS:]
        room = self.purse.affordable_rollouts()
        never = never[::-1][: int(min(len(never), room / (len(self.val) * self.repeats)))]
        if never:  # born last, when the rest of the exploring budget did not pay for a race
            await self.race([*never, *whole], keep=1, round_number=self.rounds_done, halving=False)
        few = self._not_beaten(self.ranked([*never, *whole], self.val)[:_FINALISTS], self.val) if whole else never
        if len(few) > 1 and self._widen(few, len(self.spare)):
            few = await self.race(few, keep=len(few), round_number=self.rounds_done, halving=False)

    def _widen(self, candidates: Sequence[Candidate], size: int) -> bool:
        """Use up to so many spare examples from now on, if the budget pays for these candidates on them."""
        each = len(candidates) * self.repeats
        size = int(min(size, len(self.spare), self.purse.affordable_rollouts() / each))
        self.val, self.spare = [*self.val, *self.spare[:size]], self.spare[size:]
        return size > 0

    async def look_closer(self, beam: Sequence[Candidate], *, round_number: int) -> list[Candidate]:
        """Judge these on twice the validation examples; empty when there are no more, or no budget for it."""
        few = list(dict.fromkeys([self.best, *beam]))
        if not self._widen(few, len(self.val)):
            return []
        return await self.race(few, keep=len(few), round_number=round_number, halving=False)

    def _rungs(self, count: int, keep: int, *, halving: bool) -> list[int]:
        full = len(self.val)
        if not halving or count <= keep or full < 8:
            return [full]
        rungs = [math.ceil(full / 4), math.ceil(full / 2), full]
        return [rung for rung in rungs if rung >= LEAST_TO_COMPARE][0 if count > 2 * keep else -2 :]

    def fitting(self, candidates: Sequence[Candidate], examples: Sequence[Example]) -> list[Candidate]:
        """Those, in their order, that the budget pays for on these examples.

        Raises:
            BudgetSpent: It pays for none.
        """
        room = self.purse.affordable_rollouts()
        fitting: list[Candidate] = []
        for candidate in candidates:
            cost = self.scorer.cost(candidate, examples)
            if cost <= room:
                room -= cost
                fitting.append(candidate)
        if not fitting:
            raise BudgetSpent(self.purse.told())
        return fitting

    def ranked(self, candidates: Sequence[Candidate], examples: Sequence[Example]) -> list[Candidate]:
        """Best first; between equals the shorter prompt is better."""
        return sorted(candidates, key=lambda c: (-self.scorer.score(c, examples).rank, c.length))

    def _newest_of_equals(self, candidates: Sequence[Candidate], examples: Sequence[Example]) -> list[Candidate]:
        """Best first; between equals the newest lives on: it may have learned what these examples do not show."""
        age = {name: number for number, name in enumerate(self.born)}
        return sorted(candidates, key=lambda c: (-self.scorer.score(c, examples).rank, -age[c.id]))

    def val_score(self, candidate: Candidate) -> Score:
        """Score on the validation examples it was run on."""
        known = [e for e in self.val if not self.scorer.cost(candidate, [e])]
        return self.scorer.score(candidate, known or self.val)

    def _note_best(self, candidates: Sequence[Candidate]) -> None:
        whole = [c for c in candidates if not self.scorer.cost(c, self.val)]
        seed_counts = not self.scorer.cost(self.seed, self.val)
        best = self.ranked([*([self.best] if self.best != self.seed or seed_counts else []), *whole], self.val)
        if best and (best[0] != self.best):
            old, new = self.scorer.score(self.best, self.val), self.scorer.score(best[0], self.val)
            if not seed_counts or new.rank > old.rank:
                self.best = best[0]
        self.on_best(self.best)

    def end_round(self, round_number: int, rounds: int, beam: Sequence[Candidate]) -> None:
        """Tell everybody how far it is."""
        score = self.val_score(self.best)
        self.rounds_done = round_number
        self.lineage.round_ended(round_number, self.best, score, [c.id for c in beam], self.purse)
        if not score.n:
            return
        facts = {"accuracy": score.mean, "ci_low": score.low, "ci_high": score.high, "n": score.n}
        self.context.report({"type": "eval", "name": "val", "step": round_number, "missing": score.missing, **facts})
        self.context.report(
            {
                "type": "step",
                "step": round_number,
                "steps": rounds,
                "reward": score.mean,
                "sample_s": self.purse.wall_s,
                "train_s": 0.0,
                "best": self.best.id,
                "candidates": len(self.born),
                "spent": self.purse.as_dict(),
            }
        )

    @property
    def repeats(self) -> int:
        """Rollouts of a candidate on an example."""
        return self.scorer.repeats

    @property
    def is_perfect(self) -> bool:
        """Whether the best one has the highest reward that was ever seen on every validation example."""
        rewards = [reward for reward in self.val_score(self.best).rewards if reward is not None]
        return len(rewards) == len(self.val) and set(rewards) == {self.full_marks}

    @property
    def full_marks(self) -> float | None:
        """The highest reward any candidate got, where it says something: where others got less, or it is 1 or more."""
        highest, lowest = self.highest, self.scorer.lowest
        if highest is None or lowest is None or (highest == lowest and highest < 1):
            return None
        return highest

    @property
    def highest(self) -> float | None:
        """The highest reward any candidate got."""
        found = [
            reward
            for candidate in self.born.values()
            for reward in self.scorer.rewards(candidate, [*self.val, *self.train])
            if reward is not None
        ]
        return max(found, default=None)

    def spend_since(self, earlier: Spend) -> Spend:
        """What was spent since then."""
        return self.purse.spent.minus(earlier)

    def facts(self) -> dict[str, Any]:
        """What went into the search."""
        return {"train": len(self.train), "val": len(self.val), "candidates": len(self.born)}

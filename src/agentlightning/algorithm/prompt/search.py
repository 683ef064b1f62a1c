"""What every search over prompts shares: data, scores, purse, lineage and the best so far.

Knows how to judge candidates, not how to think of new ones.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentlightning.algorithm.base import RunContext
from agentlightning.algorithm.prompt.budget import BudgetSpent, Purse, Spend
from agentlightning.algorithm.prompt.candidate import Candidate
from agentlightning.algorithm.prompt.lineage import Lineage
from agentlightning.algorithm.prompt.proposer import AskedOnce
from agentlightning.algorithm.prompt.scoring import Example, Score, Scorer
from agentlightning.kit.errors import SignalError

_FLAT_SAMPLE = 48


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
    best: Candidate = field(init=False)
    born: dict[str, Candidate] = field(default_factory=dict[str, Candidate])
    parents: dict[str, str] = field(default_factory=dict[str, str])
    """First parents, by id."""
    drops: Counter[str] = field(default_factory=Counter[str])
    stopped_because: str = ""
    rounds_done: int = 0

    def __post_init__(self) -> None:
        self.best = self.seed
        self.born[self.seed.id] = self.seed
        self.lineage.born(self.seed, parents=[], round_number=0, origin="start")

    def minibatch(self, size: int, number: int) -> list[Example]:
        """The `number`-th minibatch of an endless stream of training examples; every epoch has another order."""
        size = min(size, len(self.train))
        chosen: list[Example] = []
        for position in range(number * size, (number + 1) * size):
            epoch, offset = divmod(position, len(self.train))
            order = list(range(len(self.train)))
            random.Random(f"{self.context.seed}/{epoch}").shuffle(order)
            chosen.append(self.train[order[offset]])
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
    ) -> Candidate | None:
        """Take a new text in, if it may run: other than all before, with its parent's placeholders."""
        ids = [parent.id for parent in parents]
        candidate, note = parents[0].edited(texts)
        reason = note if candidate is None else "known already" if candidate.id in self.born else ""
        if candidate is None or reason:
            self.drop(ids, reason, round_number=round_number, text="\n\n".join(texts.values()), critique=critique)
            return None
        self.born[candidate.id] = candidate
        self.parents[candidate.id] = parents[0].id
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
        on half of them, and so on. What the budget does not pay for falls out, the worst first.

        Raises:
            BudgetSpent: It pays for none.
        """
        left = list(dict.fromkeys(candidates))
        for size in self._rungs(len(left), keep, halving=halving):
            examples = self.val[:size]
            left = self._fitting(left, examples)
            await self.score(left, examples, f"round {round_number}")
            left = self._newest_of_equals(left, examples)
            if size < len(self.val):
                left = left[: max(keep, math.ceil(len(left) / 2))]
        for candidate in left:
            self.lineage.scored(candidate, "val", self.val_score(candidate), round_number=round_number)
        self._note_best(left)
        return left[:keep]

    def _rungs(self, count: int, keep: int, *, halving: bool) -> list[int]:
        full = len(self.val)
        if not halving or count <= keep or full < 8:
            return [full]
        rungs = [math.ceil(full / 4), math.ceil(full / 2), full]
        return rungs if count > 2 * keep else rungs[1:]

    def _fitting(self, candidates: list[Candidate], examples: Sequence[Example]) -> list[Candidate]:
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
    def is_perfect(self) -> bool:
        """Whether the best one has the highest reward that was ever seen on every validation example."""
        rewards = [reward for reward in self.val_score(self.best).rewards if reward is not None]
        return len(rewards) == len(self.val) and set(rewards) == {self.highest}

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

    async def require_signal(self, *, batch: Sequence[Example], with_val: bool) -> None:
        """Run the starting prompt and see whether its rewards can tell anything.

        Raises:
            SignalError: There is no reward, or all rewards are the same.
        """
        examples = list({e.id: e for e in [*(self.val if with_val else []), *batch]}.values())
        await self.score([self.seed], examples, "start")
        rewards = self.scorer.rewards(self.seed, examples)
        if not any(reward is not None for reward in rewards):
            raise self._no_reward(examples)
        if len({r for r in rewards if r is not None}) > 1:
            return
        more = [e for e in [*self.train, *self.val] if self.scorer.cost(self.seed, [e])][:_FLAT_SAMPLE]
        more = more[: int(min(len(more), self.purse.affordable_rollouts()))]
        if more:
            await self.score([self.seed], more, "start")
        known = [r for r in self.scorer.rewards(self.seed, [*examples, *more]) if r is not None]
        if len(set(known)) == 1:
            raise SignalError(
                f"There is nothing to optimise by: all {len(known)} rewards of the starting prompt are {known[0]:g}.",
                hint="If the prompt is perfect, be glad. Else make the reward finer or the tasks more varied, or say "
                "flat_start=True (--flat-start) to try other prompts anyway.",
                details={"rewards": known[:20]},
            )

    def _no_reward(self, examples: Sequence[Example]) -> SignalError:
        scored = [self.scorer.scored(self.seed, example) for example in examples]
        reasons = Counter(f"error: {s.error.get('class', 'unknown')}" if s.error else "no reward" for s in scored)
        first = next((s for s in scored if s.error), scored[0])
        detail = f" First error: {first.error.get('message', first.error)}" if first.error else ""
        causes = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
        return SignalError(
            f"There is nothing to optimise by: none of {len(scored)} rollouts has a reward ({causes}).{detail}",
            hint=f"See agl show {first.rollout_id}. Return a number from the agent, or give a reward function.",
            details={"rollout_id": first.rollout_id},
        )

    def spend_since(self, earlier: Spend) -> Spend:
        """What was spent since then."""
        return self.purse.spent.minus(earlier)

    def facts(self) -> dict[str, Any]:
        """What went into the search."""
        return {"train": len(self.train), "val": len(self.val), "candidates": len(self.born)}

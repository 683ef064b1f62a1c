"""Few-shot: the agent's own good answers, and reference answers of its tasks, become examples in its prompts.

After BootstrapFewShot (Khattab et al. 2023, DSPy): run the training examples, keep what earned a high reward, and let
several selections of it race on the validation examples. Reference answers need no run, so selections of them race
first. More examples help more often than not (Agarwal et al. 2024, "Many-shot in-context learning", section 2), so
sizes double up to the limit. Needs no proposer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from agentlightning.algorithm.prompt.budget import BudgetSpent
from agentlightning.algorithm.prompt.candidate import Candidate
from agentlightning.algorithm.prompt.demonstrations import (
    Demonstration,
    Embed,
    Pool,
    choose,
    collect,
    with_demonstrations,
)
from agentlightning.algorithm.prompt.optimizer import PromptOptimizer
from agentlightning.algorithm.prompt.scoring import Example
from agentlightning.algorithm.prompt.search import Search
from agentlightning.algorithm.prompt.signal import require_signal
from agentlightning.kit.errors import ConfigError

T = TypeVar("T")


class FewShot(PromptOptimizer[T]):
    """Finds demonstrations for the prompts.

    Args:
        max_demonstrations: Most examples in a prompt.
        max_tokens: About how many tokens they may have together (four letters are counted as one).
        sets: Selections that race in a round.
        rounds: Rounds; from the second on, the best one's good answers are candidates too.
        train_size: Training examples that are run; all when `None`.
        references: Also show reference answers of training tasks (`expected`, `answer`, `label`, …).
        embed: Vectors of texts for similarity; by default counts of letter triples.
        **options: See `PromptOptimizer`.

    Raises:
        ConfigError: A setting is out of range.
    """

    name = "fewshot"

    def __init__(
        self,
        *,
        max_demonstrations: int = 8,
        max_tokens: int = 1500,
        sets: int = 8,
        rounds: int = 2,
        train_size: int | None = 48,
        references: bool = True,
        embed: Embed | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        sizes = {"max_demonstrations": max_demonstrations, "max_tokens": max_tokens, "sets": sets, "rounds": rounds}
        for key, value in sizes.items():
            if value < 1:
                raise ConfigError(f"{key} is at least 1, not {value}.")
        self.max_demonstrations = max_demonstrations
        self.max_tokens = max_tokens
        self.sets = sets
        self.rounds = rounds
        self.train_size = train_size
        self.references = references
        self.embed = embed
        self.made: list[Candidate] = []

    async def search(self, search: Search) -> None:
        """See `PromptOptimizer.search`."""
        self.made = []
        if not self.flat_start:
            await require_signal(search, batch=search.train[:4], with_val=True, others=lambda: self.make(search))
        await search.race([search.seed], keep=1, round_number=0, halving=False)
        search.end_round(0, self.rounds, [search.seed])
        await self.extend(search, search.seed, first_round=1, waiting=self.made)

    async def make(self, search: Search) -> list[Candidate]:
        """The starting prompt with examples that cost nothing; kept in `made`."""
        self.made = await self.offer(search, search.seed, round_number=0)
        return self.made

    async def offer(self, search: Search, base: Candidate, *, round_number: int) -> list[Candidate]:
        """Candidates out of what is known already; they cost nothing before they race.

        Args:
            search: The search.
            base: The candidate that gets examples; those it has are replaced.
            round_number: The round they are born in.
        """
        pool = await collect(search, [base], references=self.references)
        born = [self._take(search, base, chosen, round_number) for chosen in self._sets(search, pool)]
        return [candidate for candidate in born if candidate is not None]

    async def extend(
        self, search: Search, base: Candidate, *, first_round: int, waiting: Sequence[Candidate] = ()
    ) -> None:
        """Look for demonstrations for one candidate.

        Args:
            search: The search.
            base: The candidate.
            first_round: The number of the first round.
            waiting: Candidates that race in it, too.

        Raises:
            BudgetSpent: The budget ends first.
        """
        answering = [base]
        for number in range(first_round, first_round + self.rounds):
            search.context.check()
            await self._answer(search, answering[-1])
            pool = await collect(search, answering, references=self.references)
            if not pool.demonstrations and not pool.references:
                search.stopped_because = "No training rollout has both a high reward and a captured answer."
                return
            born = [self._take(search, base, chosen, number) for chosen in self._sets(search, pool)]
            fresh = [*waiting, *(candidate for candidate in born if candidate is not None)]
            waiting = ()
            if not fresh:
                search.stopped_because = "All selections of demonstrations were tried."
                return
            best = await search.race([search.best, *fresh], keep=2, round_number=number)
            search.end_round(number, first_round + self.rounds - 1, best)
            if search.best in answering:
                search.stopped_because = "Other demonstrations are no better."
                return
            answering.append(search.best)

    async def _answer(self, search: Search, candidate: Candidate) -> None:
        examples: Sequence[Example] = search.train[: self.train_size]
        room = search.purse.affordable_rollouts() - len(search.val)
        unknown = [e for e in examples if search.scorer.cost(candidate, [e])]
        unknown = unknown[: int(max(0, min(len(unknown), room / max(1, self.repeats))))]
        if unknown:
            await search.score([candidate], unknown, "collecting answers")
        elif search.purse.affordable_rollouts() < len(search.val):
            raise BudgetSpent(search.purse.told())

    def _sets(self, search: Search, pool: Pool) -> list[list[Demonstration]]:
        """Covering selections of references with own answers, and of own answers; then random and reversed ones."""
        sets = self._covering(pool, [*pool.demonstrations, *pool.references], least=4)[::-1] if pool.references else []
        own = self._covering(pool, pool.demonstrations, least=1)
        sets += own
        if own and len(own[-1]) > 1:
            sets.append(own[-1][::-1])
        while len(sets) < self.sets and len(pool.demonstrations) > 1:
            size = search.rng.randint(1, min(self.max_demonstrations, len(pool.demonstrations)))
            some = search.rng.sample(pool.demonstrations, size)
            sets.append(_within(some, self.max_tokens))
        return [s for s in sets[: self.sets] if s]

    def _covering(self, pool: Pool, offered: Sequence[Demonstration], *, least: int) -> list[list[Demonstration]]:
        """Selections that cover the tasks, from `least` on each twice as large as the one before."""
        sets: list[list[Demonstration]] = []
        count = least
        while offered and count <= max(self.max_demonstrations, least):
            sets.append(choose(pool, count, max_tokens=self.max_tokens, embed=self.embed, among=offered))
            if count >= len(offered):
                break
            count *= 2
        return sets

    def _take(self, search: Search, base: Candidate, chosen: Sequence[Demonstration], number: int) -> Candidate | None:
        told = "; ".join(d.question[:60] for d in chosen)
        return search.propose(
            [base],
            with_demonstrations(base, chosen),
            round_number=number,
            origin="demonstrations",
            critique=f"{len(chosen)} demonstration(s): {told}",
            shows=[d.example_id for d in chosen],
        )


def _within(demonstrations: Sequence[Demonstration], max_tokens: int) -> list[Demonstration]:
    kept: list[Demonstration] = []
    for demonstration in demonstrations:
        if sum(d.tokens for d in kept) + demonstration.tokens <= max_tokens:
            kept.append(demonstration)
    return kept

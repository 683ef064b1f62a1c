"""APO: beam search over prompts with textual gradients (Pryzant et al. 2023, EMNLP, "ProTeGi").

Each round, critics read failed rollouts of the best prompts, a model edits the prompts accordingly, and all new ones
race on the validation examples. All rollouts and all questions of a step are in flight together.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from agentlightning.algorithm.prompt.block import bare, put_back
from agentlightning.algorithm.prompt.budget import Budget
from agentlightning.algorithm.prompt.candidate import Candidate
from agentlightning.algorithm.prompt.critique import (
    Run,
    critique_question,
    edit_question,
    merge_question,
    read_edit,
    rewrite_question,
)
from agentlightning.algorithm.prompt.optimizer import PromptOptimizer
from agentlightning.algorithm.prompt.scoring import Example
from agentlightning.algorithm.prompt.search import Search
from agentlightning.algorithm.prompt.signal import require_signal
from agentlightning.kit.errors import ConfigError, UpstreamError

T = TypeVar("T")

_MAX_LESSONS = 16


@dataclass(frozen=True)
class _Branch:
    """One proposal to be made."""

    parent: Candidate
    runs: tuple[Run, ...]
    number: int
    edits: bool
    """Whether its critique gets an edit of its own; it is heeded with the others in any case."""


class APO(PromptOptimizer[T]):
    """Automatic Prompt Optimization with textual gradients and beam search.

    Args:
        async_openai_client: Who writes critiques and new prompts: an `openai.AsyncOpenAI`. By default see `proposer`.
        gradient_model: Model that writes critiques; with a client, `gpt-5-mini` unless said otherwise.
        apply_edit_model: Model that edits prompts; with a client, `gpt-4.1-mini` unless said otherwise.
        diversity_temperature: Sampling temperature of both.
        gradient_batch_size: Rollouts that a critic reads, and that each prompt of the beam is run on anew in a round.
        val_batch_size: Validation examples that candidates race on; the same ones in all rounds.
        beam_width: Prompts that live on after a round.
        branch_factor: New prompts from each of them, in a round.
        beam_rounds: Rounds.
        rollout_batch_timeout: Longest time of one rollout in seconds.
        run_initial_validation: Run the starting prompt on the validation examples first.
        rounds: The same as `beam_rounds`.
        patience: End after so many rounds without a better prompt.
        halving: Race by successive halving instead of running every candidate on all validation examples.
        is_compact: Critique and edit in one question, which halves the calls.
        merges: Also make one prompt in each round that heeds all critiques of its parent.
        **options: See `PromptOptimizer`.

    Raises:
        ConfigError: A setting is out of range.

    Example:
        ```python
        apo = agl.APO(AsyncOpenAI(), beam_width=2, branch_factor=2, beam_rounds=2)
        trainer = agl.Trainer(algorithm=apo, initial_resources={"prompt_template": prompt})
        trainer.fit(agent, train_dataset=train, val_dataset=val)
        print(apo.get_best_prompt().template)
        ```
    """

    name = "apo"
    needs_proposer = True

    def __init__(
        self,
        async_openai_client: Any = None,
        *,
        gradient_model: str | None = None,
        apply_edit_model: str | None = None,
        diversity_temperature: float = 1.0,
        gradient_batch_size: int = 4,
        val_batch_size: int = 16,
        beam_width: int = 4,
        branch_factor: int = 4,
        beam_rounds: int = 3,
        rollout_batch_timeout: float = 3600.0,
        run_initial_validation: bool = True,
        rounds: int | None = None,
        patience: int = 2,
        halving: bool = True,
        is_compact: bool = False,
        merges: bool = True,
        budget: Budget | None = None,
        **options: Any,
    ) -> None:
        options.pop("_poml_trace", None)  # a debugging switch of 0.3
        beam_rounds = rounds if rounds is not None else beam_rounds
        sizes = {
            "gradient_batch_size": gradient_batch_size,
            "beam_width": beam_width,
            "branch_factor": branch_factor,
            "beam_rounds": beam_rounds,
            "patience": patience,
        }
        for key, value in sizes.items():
            if value < 1:
                raise ConfigError(f"{key} is at least 1, not {value}.")
        if async_openai_client is not None and "proposer" in options:
            raise ConfigError("Give either a client or proposer=.")
        super().__init__(
            budget=budget,
            proposer=options.pop("proposer", None) or async_openai_client,
            val_batch_size=val_batch_size,
            rollout_timeout_s=rollout_batch_timeout,
            **options,
        )
        has_client = async_openai_client is not None
        self.gradient_model = gradient_model or ("gpt-5-mini" if has_client else None)
        self.apply_edit_model = apply_edit_model or ("gpt-4.1-mini" if has_client else None)
        self.diversity_temperature = diversity_temperature
        self.gradient_batch_size = gradient_batch_size
        self.beam_width = beam_width
        self.branch_factor = branch_factor
        self.beam_rounds = beam_rounds
        self.run_initial_validation = run_initial_validation
        self.patience = patience
        self.halving = halving
        self.is_compact = is_compact
        self.merges = merges
        self._lessons: dict[str, list[str]] = {}
        self._last_round = self.beam_rounds

    async def search(self, search: Search) -> None:
        """See `PromptOptimizer.search`."""
        await search.price()
        search.narrow()
        first = search.minibatch(self.gradient_batch_size, 0)
        if not self.flat_start:
            await require_signal(search, batch=first, with_val=self.run_initial_validation)
        await search.confirmed(self._explore(search))

    async def _explore(self, search: Search) -> None:
        beam = [search.seed]
        if self.run_initial_validation:
            beam = await search.race(beam, keep=1, round_number=0, halving=False)
        search.end_round(0, self.beam_rounds, beam)
        await self.climb(search, beam)

    async def climb(self, search: Search, beam: list[Candidate], *, first_round: int = 1) -> None:
        """Improve a beam round by round.

        Raises:
            BudgetSpent: The budget ends first.
        """
        self._lessons.clear()
        stale = fruitless = 0
        self._last_round = first_round + self.beam_rounds - 1
        for number in range(first_round, self._last_round + 1):
            search.context.check()
            while search.val_score(search.best).n and search.is_perfect:
                closer = await search.look_closer(beam, round_number=number)
                if not closer:
                    search.stopped_because = "The best prompt has the highest reward seen on every validation example."
                    return
                beam = closer
            before = search.best
            born = await self._children(search, beam, number)
            if born:
                beam = await search.race(
                    [*beam, *born], keep=self.beam_width, round_number=number, halving=self.halving
                )
            search.end_round(number, self._last_round, beam)
            stale = 0 if search.best != before else stale + 1
            fruitless = 0 if born else fruitless + 1
            if fruitless == 2:
                told = ", ".join(f"{count} x {reason}" for reason, count in search.drops.most_common(3))
                search.stopped_because = (
                    f"Two rounds brought no usable new prompt ({told or 'no failures to learn by'})."
                )
                return
            if stale >= self.patience:
                search.stopped_because = f"No better prompt in {stale} round(s)."
                return

    # -- new candidates

    async def _children(self, search: Search, beam: Sequence[Candidate], number: int) -> list[Candidate]:
        branches = await self._branches(search, beam, number)
        if not branches:
            return []
        search.purse.require(calls=len(branches) + sum(branch.edits and not self.is_compact for branch in branches))
        proposals = await asyncio.gather(
            *(self._propose(search, branch, number) for branch in branches), return_exceptions=True
        )
        failures = [p for p in proposals if isinstance(p, BaseException)]
        others = [f for f in failures if not isinstance(f, UpstreamError)]
        if others:
            raise others[0]
        if len(failures) == len(proposals):
            raise failures[0]
        if failures:
            search.drops["the proposer did not answer"] += len(failures)
        done = [p for p in proposals if not isinstance(p, BaseException)]
        born = [
            self._take(search, branch, critique, answer, number)
            for branch, critique, answer in done
            if branch.edits or not critique
        ]
        merged = await self._merge_all(search, [(b, critique) for b, critique, _ in done if critique], number)
        return [candidate for candidate in [*born, *merged] if candidate is not None]

    async def _branches(self, search: Search, beam: Sequence[Candidate], number: int) -> list[_Branch]:
        count, edits = self._affordable(search, number, beam)
        # Without edits of their own, all critics go to the best one: what they say comes together in one prompt.
        parents = [beam[index % len(beam)] for index in range(self.beam_width)] if edits else [beam[0]]
        parents = [parents[index % len(parents)] for index in range(count)]
        shares = [(parent, parents.count(parent)) for parent in beam]
        jobs = [(p, self._batch(search, p, share, i, number)) for i, (p, share) in enumerate(shares) if share]
        await search.scorer.run(jobs, label=f"round {number}: learning")
        branches: list[_Branch] = []
        for index, parent in enumerate(parents):
            runs = await self._failed(search, parent)
            if runs:
                branches.append(_Branch(parent, runs, index, edits=len(branches) < edits))
        return branches

    def _batch(self, search: Search, parent: Candidate, branches: int, index: int, number: int) -> list[Example]:
        """What a parent is run on: a minibatch for every second critic, so that they do not all read the same."""
        first = (number - 1) * self.beam_width * self.branch_factor + index * self.branch_factor
        found: dict[str, Example] = {}
        for offset in range(math.ceil(branches / 2)):
            # Round 1 begins with the minibatch that the signal check has run already.
            found.update({e.id: e for e in search.minibatch(self.gradient_batch_size, first + offset, of=parent)})
        return list(found.values())

    def _affordable(self, search: Search, number: int, beam: Sequence[Candidate]) -> tuple[int, int]:
        """How many critics and how many edits of a single critique this round's share of what is left pays for.

        A critique costs a question and few rollouts, or none where they are known; an edit also its race. So a small
        budget goes into critiques, all of which one prompt heeds, rather than into a candidate for each (gradients of a
        batch are aggregated before a step: Yuksekgonul et al. 2024, "TextGrad", section 3).
        """
        room = search.purse.affordable_rollouts()
        wanted = self.beam_width * self.branch_factor
        if math.isinf(room):
            return wanted, wanted
        rounds = self._last_round - number + 1
        race = (0.55 if self.halving else 1.0) * len(search.val) * self.repeats
        if self.is_compact or not self.merges:
            each = (1 if self.is_compact else 2) + self.gradient_batch_size / 2 * self.repeats + race
            count = max(2, min(wanted, int(room / rounds / each)))
            return count, count
        critics, alone = wanted, len(search.val) * self.repeats + 1  # a single new prompt does not fall out half-way
        # Rather fewer rounds with all critics than many with few; edits only out of what all rounds leave.
        whole = critics * (1 + self.gradient_batch_size / 2 * self.repeats) + alone
        share = room / rounds if room >= rounds * whole else min(room, whole)
        while critics > 2 and self._learning_cost(search, beam[0], critics, number) + alone > share:
            critics -= 1
        left = share - self._learning_cost(search, beam[0], critics, number) - alone
        return critics, max(0, min(critics, int(left / (race + 1))))

    def _learning_cost(self, search: Search, parent: Candidate, critics: int, number: int) -> int:
        return critics + search.scorer.cost(parent, self._batch(search, parent, critics, 0, number))

    async def _failed(self, search: Search, parent: Candidate) -> tuple[Run, ...]:
        """Rollouts of a parent to learn from: failed ones, another choice each time, and a good one to compare."""
        shown = search.shown.get(parent.id, frozenset[str]())
        known = [e for e in search.train if e.id not in shown and not search.scorer.cost(parent, [e])]
        scored = [(search.scorer.scored(parent, example), example) for example in known]
        failed = [pair for pair in scored if pair[0].reward is None or pair[0].reward != search.full_marks]
        if not failed:
            return ()
        size = self.gradient_batch_size
        chosen = failed if len(failed) <= size else search.rng.sample(failed, size)
        good = [pair for pair in scored if pair not in failed]
        if good and size > 2:
            chosen = [*chosen[: size - 1], search.rng.choice(good)]
        chosen.sort(key=lambda pair: -math.inf if pair[0].reward is None else pair[0].reward)
        return tuple(
            [Run(e.task, s.reward, await search.scorer.messages(s), s.error) for s, e in chosen],
        )

    async def _propose(self, search: Search, branch: _Branch, number: int) -> tuple[_Branch, str, str]:
        """Critique and answer of one branch."""
        proposer = search.proposer
        assert proposer is not None
        warmth = self.diversity_temperature
        style = branch.number
        parent = bare(branch.parent)
        if self.is_compact:
            question = rewrite_question(parent, branch.runs, style)
            reply = await proposer.ask(question, model=self.apply_edit_model, temperature=warmth)
            return branch, reply.text.partition("<prompt")[0].strip(), reply.text
        question = critique_question(parent, branch.runs)
        critique = (await proposer.ask(question, model=self.gradient_model, temperature=warmth)).text.strip()
        if not critique or not branch.edits:
            return branch, critique, ""
        question = edit_question(parent, critique, style)
        reply = await proposer.ask(question, model=self.apply_edit_model, temperature=warmth)
        return branch, critique, reply.text

    def _take(self, search: Search, branch: _Branch, critique: str, answer: str, number: int) -> Candidate | None:
        texts = read_edit(answer, branch.parent)
        if texts is None:
            reason = "no prompt in the answer" if critique else "an empty critique"
            search.drop([branch.parent.id], reason, round_number=number, text=answer, critique=critique)
            return None
        texts = put_back(texts, branch.parent)
        return search.propose([branch.parent], texts, round_number=number, origin="edit", critique=critique)

    async def _merge_all(
        self, search: Search, critiques: Sequence[tuple[_Branch, str]], number: int
    ) -> list[Candidate | None]:
        """For each parent one prompt that heeds all its critiques, those of its ancestors included.

        A critic sees a few rollouts; together they have seen many, at the price of one question more.
        """
        for branch, critique in critiques:
            self._lessons.setdefault(branch.parent.id, []).append(critique)
        parents = list(dict.fromkeys(branch.parent for branch, _ in critiques))
        edited = {branch.parent for branch, _ in critiques if branch.edits}
        wanted = [p for p in parents if len(self._heard(search, p)) > 1 or p not in edited] if self.merges else []
        wanted = wanted[: int(min(len(wanted), search.purse.affordable_rollouts()))]
        merged = await asyncio.gather(*(self._merge(search, p, number) for p in wanted), return_exceptions=True)
        others = [m for m in merged if isinstance(m, BaseException) and not isinstance(m, UpstreamError)]
        if others:
            raise others[0]
        return [m for m in merged if not isinstance(m, BaseException)]

    def _heard(self, search: Search, parent: Candidate) -> list[str]:
        """The latest different critiques of a candidate and those it comes from."""
        heard: dict[str, None] = {}
        name: str | None = parent.id
        while name is not None:
            heard.update(dict.fromkeys(reversed(self._lessons.get(name, []))))
            name = search.parents.get(name)
        return list(heard)[:_MAX_LESSONS]

    async def _merge(self, search: Search, parent: Candidate, number: int) -> Candidate | None:
        assert search.proposer is not None
        heard = self._heard(search, parent)
        reply = await search.proposer.ask(
            merge_question(bare(parent), heard), model=self.apply_edit_model, temperature=self.diversity_temperature
        )
        texts = read_edit(reply.text, parent)
        if texts is None:
            search.drop([parent.id], "no prompt in the answer", round_number=number, text=reply.text)
            return None
        joined = "\n\n".join(heard)
        texts = put_back(texts, parent)
        return search.propose([parent], texts, round_number=number, origin="merge", critique=joined)

"""Edit search: new prompts without a model that writes them, so it runs offline and without a key.

Edits add, drop and move instructions, and put demonstrations in; which kind of edit is tried how often is decided by
Thompson sampling (Thompson 1933) on what has helped so far. Candidates race by successive halving. Deletion and
reordering of phrases after GrIPS (Prasad et al. 2023, EACL).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from agentlightning.algorithm.prompt.block import split
from agentlightning.algorithm.prompt.candidate import Candidate
from agentlightning.algorithm.prompt.demonstrations import Pool, choose, collect, with_demonstrations
from agentlightning.algorithm.prompt.fewshot import FewShot
from agentlightning.algorithm.prompt.optimizer import PromptOptimizer
from agentlightning.algorithm.prompt.search import Search
from agentlightning.algorithm.prompt.signal import require_signal
from agentlightning.kit.errors import ConfigError

T = TypeVar("T")

INSTRUCTIONS = (
    "Think step by step before you answer.",
    "Answer with the result only, without any explanation.",
    "Follow the requested form of the answer exactly.",
    "Read the input carefully; every detail matters.",
    "Check your answer against every condition before you give it.",
    "If something is not possible, say so instead of guessing.",
    "Use only what the input says.",
    "Keep the answer as short as possible.",
    "Work through the conditions one by one.",
    "Give one answer, not several.",
    "Write numbers as digits.",
    "Do not repeat the question.",
)
"""What helps in many tasks; give your own with `instructions=`."""

_SENTENCE = re.compile(r"(?<=[.!?:])\s+|\n+")
_KINDS = ("add", "drop", "move", "demonstrations")
_Edit = tuple[dict[str, str], str, list[str] | None]
"""Texts by prompt name, what was done, and the examples that are shown now, if others than before."""


class EditSearch(PromptOptimizer[T]):
    """Searches by small edits.

    Args:
        rounds: Rounds.
        width: New candidates in a round.
        beam_width: Prompts that live on after a round.
        instructions: Sentences that may be put in; by default `INSTRUCTIONS`.
        max_demonstrations: Most demonstrations; 0 for none.
        max_tokens: About how many tokens they may have together.
        patience: End after so many rounds without a better prompt.
        **options: See `PromptOptimizer`.

    Raises:
        ConfigError: A setting is out of range.
    """

    name = "edit"

    def __init__(
        self,
        *,
        rounds: int = 6,
        width: int = 8,
        beam_width: int = 3,
        instructions: Sequence[str] = INSTRUCTIONS,
        max_demonstrations: int = 4,
        max_tokens: int = 800,
        patience: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        sizes = {"rounds": rounds, "width": width, "beam_width": beam_width, "patience": patience}
        for key, value in sizes.items():
            if value < 1:
                raise ConfigError(f"{key} is at least 1, not {value}.")
        self.rounds = rounds
        self.width = width
        self.beam_width = beam_width
        self.instructions = tuple(instructions)
        self.max_demonstrations = max_demonstrations
        self.max_tokens = max_tokens
        self.patience = patience

    async def search(self, search: Search) -> None:
        """See `PromptOptimizer.search`."""
        if not self.flat_start:
            await require_signal(
                search, batch=search.minibatch(4, 0), with_val=True, others=lambda: self._offer(search)
            )
        beam = await search.race([search.seed], keep=1, round_number=0, halving=False)
        search.end_round(0, self.rounds, beam)
        odds = {kind: [1.0, 1.0] for kind in _KINDS}
        stale = 0
        for number in range(1, self.rounds + 1):
            search.context.check()
            if search.is_perfect:
                search.stopped_because = "The best prompt has the highest reward seen on every validation example."
                return
            before = search.best
            pool = await self._pool(search, beam[0])
            kinds = self._born(search, beam, pool, odds, number)
            if not kinds:
                search.stopped_because = "There is no edit left that was not tried."
                return
            beam = await search.race([*beam, *kinds], keep=self.beam_width, round_number=number)
            for candidate, kind in kinds.items():
                odds[kind][0 if candidate in beam else 1] += 1.0
            search.end_round(number, self.rounds, beam)
            stale = 0 if search.best != before else stale + 1
            if stale >= self.patience:
                search.stopped_because = f"No better prompt in {stale} round(s)."
                return

    async def _offer(self, search: Search) -> list[Candidate]:
        """Prompts with reference answers, for the case that the starting prompt's rewards tell nothing."""
        if not self.max_demonstrations:
            return []
        some: FewShot[T] = FewShot(max_demonstrations=self.max_demonstrations, max_tokens=self.max_tokens, sets=2)
        return await some.offer(search, search.seed, round_number=0)

    async def _pool(self, search: Search, candidate: Candidate) -> Pool:
        if not self.max_demonstrations:
            return Pool()
        unknown = [e for e in search.train[:24] if search.scorer.cost(candidate, [e])]
        room = search.purse.affordable_rollouts() - 2 * len(search.val)
        if unknown and len(search.train) and room > len(unknown) and candidate == search.seed:
            await search.score([candidate], unknown, "collecting answers")
        return await collect(search, [search.seed, candidate], references=True)

    def _born(
        self, search: Search, beam: Sequence[Candidate], pool: Pool, odds: dict[str, list[float]], number: int
    ) -> dict[Candidate, str]:
        born: dict[Candidate, str] = {}
        for _ in range(self.width * 4):
            if len(born) >= self.width:
                break
            parent = beam[min(int(search.rng.expovariate(1.0)), len(beam) - 1)]
            kind = max(_KINDS, key=lambda k: search.rng.betavariate(*odds[k]))
            made = self._edit(search, parent, kind, pool)
            if made is None:
                continue
            texts, told, shows = made
            edited, _ = parent.edited(texts)
            if edited is None or edited.id in search.born:
                continue
            candidate = search.propose([parent], texts, round_number=number, origin=kind, critique=told, shows=shows)
            if candidate is not None:
                born[candidate] = kind
        return born

    def _edit(self, search: Search, parent: Candidate, kind: str, pool: Pool) -> _Edit | None:
        rng = search.rng
        if kind == "demonstrations":
            offered = [*pool.demonstrations, *pool.references]
            if not offered:
                return None
            count = rng.randint(1, self.max_demonstrations)
            chosen = choose(pool, count, max_tokens=self.max_tokens, among=offered)
            if rng.random() < 0.5:
                chosen = rng.sample(offered, min(count, len(offered)))
            told = f"{len(chosen)} demonstration(s)"
            return with_demonstrations(parent, chosen), told, [d.example_id for d in chosen]
        name = rng.choice(list(parent.prompts))
        block, text = split(parent.prompts[name].template)
        edited = self._edit_text(search, text, kind)
        return None if edited is None else ({name: block + edited[0]}, edited[1], None)

    def _edit_text(self, search: Search, text: str, kind: str) -> tuple[str, str] | None:
        rng = search.rng
        if kind == "add":
            unused = [i for i in self.instructions if i not in text]
            if not unused:
                return None
            added = rng.choice(unused)
            joined = f"{added}\n{text}" if rng.random() < 0.5 else f"{text}\n{added}"
            return joined, f"added: {added}"
        parts = [part for part in _SENTENCE.split(text) if part.strip()]
        if len(parts) < 2:
            return None
        index = rng.randrange(len(parts))
        if kind == "drop":
            removable = [i for i, part in enumerate(parts) if "{" not in part]
            if not removable:
                return None
            gone = parts.pop(rng.choice(removable))
            return "\n".join(parts), f"dropped: {gone}"
        moved = parts.pop(index)
        parts.insert(rng.randrange(len(parts) + 1), moved)
        return "\n".join(parts), f"moved: {moved[:80]}"

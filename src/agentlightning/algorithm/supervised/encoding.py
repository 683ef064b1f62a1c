"""Demonstrations and pairs to tokens of the model that learns. What does not fit is counted, and nothing is cut.

The tokenizer is the learner's; this asks it. Knows no stores or files.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

from agentlightning.algorithm.judged.stream import Skips
from agentlightning.algorithm.supervised.rows import Demonstration, Preferred
from agentlightning.kit.errors import BadInputError
from agentlightning.learner.client import EngineClient
from agentlightning.schemas import ModelCall
from agentlightning.schemas.example import Dialogue, EncodedDialogue, TokenExample, TokenPair

T = TypeVar("T")

_AT_ONCE = 64
"""Examples per question to the tokenizer, so that it answers others in between."""
_NO_ROOM = "too_long"


class Encoder:
    """Turns what was found into what is learned, and counts in `report` what cannot be.

    Reasons: `too_long` (more tokens than `max_length`), `duplicate`, `no_response`, `template_refuses`,
    `template_differs` (see `EncodedDialogue.problem`), and of pairs `not_one_conversation` and `same_completion`.

    Args:
        engine: Whose tokenizer.
        max_length: Most tokens of an example.
        report: Where to count.
    """

    def __init__(self, engine: EngineClient, max_length: int, report: Skips) -> None:
        self._engine = engine
        self._max_length = max_length
        self._report = report

    async def examples(self, source: AsyncIterator[Demonstration], *, distinct: bool) -> list[tuple[str, TokenExample]]:
        """Each example with the key of its task; `distinct` leaves out those whose tokens came before.

        Raises:
            BadInputError: Tokens that the model does not have.
        """
        found: list[tuple[str, TokenExample]] = []
        seen: set[tuple[int, ...]] = set()
        async for batch in _batches(source):
            encoded = await self._encoded([part for one in batch for part in one.parts])
            for one in batch:
                for result in (encoded.pop(0) for _ in one.parts):
                    for example in self._usable(result, one.origin):
                        tokens = tuple(example.token_ids)
                        if distinct and tokens in seen:
                            self._report.skip("duplicate", one.origin)
                            continue
                        seen.add(tokens)
                        self._report.used += 1
                        found.append((one.key, example))
        return found

    async def pairs(self, source: AsyncIterator[Preferred]) -> list[tuple[str, TokenPair]]:
        """Each pair with the key of its task; the log-probabilities of the reference are still to come.

        Raises:
            BadInputError: Tokens that the model does not have.
        """
        found: list[tuple[str, TokenPair]] = []
        async for batch in _batches(source):
            encoded = await self._encoded([side for one in batch for side in (one.chosen, one.rejected)])
            for one in batch:
                sides = [encoded.pop(0), encoded.pop(0)]
                problem = self._pair_problem(sides)
                if problem:
                    self._report.skip(problem, one.origin)
                    continue
                self._report.used += 1
                chosen, rejected = (side.examples[0] for side in sides)
                found.append((one.key, TokenPair(chosen=chosen, rejected=rejected, weight=one.weight)))
        return found

    async def _encoded(self, parts: Sequence[Dialogue | TokenExample]) -> list[EncodedDialogue]:
        dialogues = [part for part in parts if isinstance(part, Dialogue)]
        answers = iter(await self._engine.encode(dialogues) if dialogues else [])
        return [
            next(answers) if isinstance(part, Dialogue) else EncodedDialogue(examples=[self._known(part)])
            for part in parts
        ]

    def _known(self, example: TokenExample) -> TokenExample:
        size = self._engine.info.vocab_size
        if max(example.token_ids) >= size:
            raise BadInputError(
                f"The traces have the token {max(example.token_ids)}; {self._engine.info.model} has {size} tokens.",
                hint="They were captured from another model: take tokens='messages'.",
            )
        return example

    def _usable(self, result: EncodedDialogue, origin: str) -> list[TokenExample]:
        if result.problem:
            self._report.skip(result.problem, origin)
        fits = [example for example in result.examples if len(example.token_ids) <= self._max_length]
        for _ in range(len(result.examples) - len(fits)):
            self._report.skip(_NO_ROOM, origin)
        learns = [example for example in fits if any(example.loss_mask)]
        for _ in range(len(fits) - len(learns)):
            self._report.skip("no_response", origin)
        return learns

    def _pair_problem(self, sides: Sequence[EncodedDialogue]) -> str:
        for side in sides:
            if side.problem:
                return side.problem
            if len(side.examples) != 1:
                return "not_one_conversation"
            if not any(side.examples[0].loss_mask):
                return "no_response"
        chosen, rejected = (side.examples[0] for side in sides)
        if (chosen.token_ids, chosen.loss_mask) == (rejected.token_ids, rejected.loss_mask):
            return "same_completion"
        if _prompt(chosen) != _prompt(rejected):
            return "different_prompt"
        return _NO_ROOM if max(len(s.examples[0].token_ids) for s in sides) > self._max_length else ""


async def check_tokenizer(engine: EngineClient, calls: Sequence[tuple[Dialogue, ModelCall]]) -> None:
    """Make sure that captured tokens are those of this model: some call's prompt or answer becomes the same tokens.

    Raises:
        BadInputError: It reads none of them so.
    """
    if not calls:
        return
    encoded = await engine.encode([dialogue for dialogue, _ in calls])
    for result, (_, call) in zip(encoded, calls, strict=True):
        for example in result.examples:
            answer = [token for token, learns in zip(example.token_ids, example.loss_mask, strict=True) if learns]
            # The prompt alone may differ for honest reasons (a template that tells the date), and so may the answer (a
            # model may spell a word in other tokens than the tokenizer).
            if _prompt(example) == call.prompt_token_ids or answer == call.response_token_ids:
                return
    raise BadInputError(
        f"The traces' tokens are not those of {engine.info.model}: none of {len(calls)} calls becomes the same.",
        hint="They were captured from another model: take tokens='messages', or give the model they are of.",
    )


def _prompt(example: TokenExample) -> list[int]:
    return example.token_ids[: example.loss_mask.index(1)]


async def _batches(source: AsyncIterator[T]) -> AsyncIterator[list[T]]:
    batch: list[T] = []
    async for item in source:
        batch.append(item)
        if len(batch) == _AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch

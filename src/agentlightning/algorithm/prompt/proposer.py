"""A proposer that is asked each question once in a run. Knows nothing of what is asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from agentlightning.algorithm.asking import DEFAULT_MODEL, Message, Proposer, Reply
from agentlightning.algorithm.prompt.budget import Purse
from agentlightning.algorithm.prompt.candidate import content_id
from agentlightning.algorithm.prompt.journal import Journal


class AskedOnce:
    """A proposer whose answers are kept: a run that is continued gets them back instead of paying again.

    The same question asked again within a run is another question; it may be answered otherwise.
    """

    def __init__(self, proposer: Proposer, journal: Journal, purse: Purse, *, concurrency: int = 32) -> None:
        self._proposer = proposer
        self._journal = journal
        self._purse = purse
        self._known = {record["key"]: record for record in journal.records if "text" in record}
        self._times: Counter[str] = Counter()
        self._places = asyncio.Semaphore(concurrency)

    def model_for(self, wanted: str | None) -> str:
        """The model that answers when `wanted` is asked for."""
        return wanted or self._proposer.model or DEFAULT_MODEL

    async def ask(self, messages: Sequence[Message], *, model: str | None = None, temperature: float = 1.0) -> Reply:
        """See `Proposer`; counted in the purse, kept or not."""
        name = self.model_for(model)
        question = content_id([name, temperature, list(messages)], 32)
        self._times[question] += 1
        key = f"{question}.{self._times[question]}"
        known = self._known.get(key)
        if known is not None:
            reply = Reply(known["text"], known["model"], known["input_tokens"], known["output_tokens"])
        else:
            async with self._places:
                reply = await self._proposer.ask(messages, model=name, temperature=temperature)
            self._journal.append(
                {
                    "key": key,
                    "model": reply.model,
                    "text": reply.text,
                    "input_tokens": reply.input_tokens,
                    "output_tokens": reply.output_tokens,
                }
            )
        self._purse.charge(
            reply.model, input_tokens=reply.input_tokens, output_tokens=reply.output_tokens, is_question=True
        )
        return reply

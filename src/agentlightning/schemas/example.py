"""What fine-tuning learns from: dialogues as text, the same as tokens, and pairs of them.

msgspec structs: they cross process borders in thousands and carry long integer lists.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

PlainText = Literal["chat", "raw"]


class Dialogue(msgspec.Struct, kw_only=True):
    """Messages (OpenAI's shape) or plain texts; what the assistant says in `completion` is to be learned.

    Of an assistant's message, content and tool calls are learned, and the end of its turn; one with `"weight": 0` is
    only read. Everything else is read, too.
    """

    prompt: list[dict[str, Any]] | str
    completion: list[dict[str, Any]] | str
    tools: list[dict[str, Any]] | None = None
    plain_text: PlainText = "chat"
    """How plain texts are meant: `chat` as a user's message and its answer, where the model has a chat template; `raw`
    as one text that goes on."""


class TokenExample(msgspec.Struct, kw_only=True):
    """One sequence of T tokens; `loss_mask[t] == 1` where token t is learned (never for t = 0)."""

    token_ids: list[int]
    loss_mask: list[int]
    weight: float = 1.0
    """How much its tokens count beside those of others."""

    @property
    def learned(self) -> int:
        """Tokens that are learned."""
        return sum(self.loss_mask)


class TokenPair(msgspec.Struct, kw_only=True):
    """Two sequences for the same prompt, of which the first is better."""

    chosen: TokenExample
    rejected: TokenExample
    reference_chosen: float = 0.0
    """Log-probability (natural, summed over the learned tokens) of `chosen` under the reference model."""
    reference_rejected: float = 0.0
    weight: float = 1.0


class EncodedDialogue(msgspec.Struct, kw_only=True):
    """A dialogue as tokens; several sequences where its turns do not continue each other, or why there are none."""

    examples: list[TokenExample] = []
    problem: str = ""
    """`no_response` (the assistant says nothing), `template_refuses`, `template_differs` (the template writes an
    answer elsewhere than where the model begins one)."""

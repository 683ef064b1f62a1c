"""One sampled sequence and the request it belongs to: what was asked, and turning its tokens into an answer.

Knows nothing of tensors or of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from agentlightning.kit.errors import BadInputError
from agentlightning.learner.chat import (
    ChatFormat,
    Detokenizer,
    Prompt,
    cut_at_stop,
    safe_text,
)
from agentlightning.learner.grammar import Matcher
from agentlightning.learner.prefix import Entry
from agentlightning.learner.toolcalls import ToolFormat
from agentlightning.schemas.generation import (
    GeneratedChoice,
    GenerateDelta,
    GenerateRequest,
    SamplingParams,
)


@dataclass(eq=False)
class Job:
    """A request in the engine; `choices` fills as its sequences finish."""

    request: GenerateRequest
    prompt: Prompt
    choices: list[GeneratedChoice] = field(default_factory=list[GeneratedChoice])
    cancelled: bool = False


@dataclass(eq=False)
class Sequence:
    """One of the `n` samples of a job."""

    job: Job
    index: int
    prompt_ids: np.ndarray
    """int32 [P]."""
    ids: np.ndarray
    """int32: what is computed before its next token: the prompt, and what was sampled before it was preempted."""
    limit: int
    """Most response tokens."""
    stream_key: tuple[int, int]
    """Key of its random stream."""
    entry: Entry | None = None
    detokenizer: Detokenizer | None = None
    form: ToolFormat | None = None
    """How to read tool calls out of it; `None` where the request has no tools."""
    matcher: Matcher | None = None
    """What its tokens have to follow, if anything."""
    order: int = 0
    """Place in the order of first admission; 0 before it."""
    logprobs: list[float] = field(default_factory=list[float])
    """Of the tokens in `ids` that were sampled."""
    sent: int = 0
    """Characters already streamed."""

    @property
    def stops(self) -> list[str]:
        return self.job.request.params.stop

    def watch(self, token: int) -> tuple[bool, GenerateDelta | None]:
        """Take in a token of a sequence that streams or has stop strings: whether it stops, and what can be shown."""
        assert self.detokenizer is not None
        text = self.detokenizer.push([token])
        if self.stops and cut_at_stop(text, self.stops) is not None:
            return True, None
        if not self.job.request.stream:
            return False, None
        shown = safe_text(text, self.stops, self.form)
        if len(shown) <= self.sent:
            return False, None
        delta = GenerateDelta(request_id=self.job.request.request_id, index=self.index, text=shown[self.sent :])
        self.sent = len(shown)
        return False, delta

    def finish(
        self, chat: ChatFormat, token_ids: list[int], logprobs: list[float], *, ended: bool, stopped: bool
    ) -> GeneratedChoice:
        """The answer. `ended`: the last token is an end token; `stopped`: a stop string was completed."""
        if self.detokenizer is not None:
            text = self.detokenizer.flush()
        else:
            text = chat.decode(token_ids[:-1] if ended else token_ids)
        cut = cut_at_stop(text, self.stops) if self.stops else None
        matched = None if cut is None else next(stop for stop in self.stops if text.startswith(stop, len(cut)))
        text = text if cut is None else cut
        text, calls = (text, []) if self.form is None else self.form.parse(text)
        reason = "stop" if ended or stopped else "length"
        choice = GeneratedChoice(
            index=self.index,
            token_ids=token_ids,
            logprobs=logprobs,
            text=text,
            tool_calls=calls,
            finish_reason="tool_calls" if calls and reason == "stop" else reason,
            stop_sequence=matched,
            constrained=self.matcher is not None,
        )
        self.job.choices.append(choice)
        return choice


def check_params(params: SamplingParams) -> None:
    """Raise `BadInputError` for sampling parameters that make no sense."""
    rules = [
        (params.temperature >= 0.0 and params.temperature < 100.0, "temperature must be in [0, 100)"),
        (0.0 < params.top_p <= 1.0, "top_p must be in (0, 1]"),
        (params.top_k >= 0, "top_k must be 0 (off) or positive"),
        (params.n >= 1, "n must be at least 1"),
        (params.max_tokens is None or params.max_tokens >= 1, "max_tokens must be at least 1"),
        (all(params.stop), "stop strings must not be empty"),
    ]
    wrong = [message for holds, message in rules if not holds]
    if wrong:
        raise BadInputError(f"{'; '.join(wrong)}.")

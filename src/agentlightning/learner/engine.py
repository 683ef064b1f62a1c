"""Continuous-batching sampler with a key/value cache, on top of any Hugging Face causal LM.

Active sequences occupy rows `0:active` of one cache, without gaps: a step is one forward pass over those rows and one
vectorised draw; a finished row is filled by the last one. Prompts are prefilled together, right-aligned, and only from
where an earlier row with the same beginning ends. Rows are admitted for what they are now, not for what they may
become: when the memory runs out, the newest give theirs up and are continued later. Knows nothing of sockets, HTTP or
training.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from agentlightning.kit.errors import AgentLightningError, BadInputError, UpstreamError
from agentlightning.learner.chat import ChatFormat, Detokenizer, Prompt
from agentlightning.learner.following import Following
from agentlightning.learner.forward import Forward
from agentlightning.learner.grammar import Grammars
from agentlightning.learner.kv import KVRows, rounded
from agentlightning.learner.model import LoadedModel
from agentlightning.learner.prefill import Prefill, share_prompts
from agentlightning.learner.prefix import Entry, Parking, PrefixIndex
from agentlightning.learner.rowstate import RowState
from agentlightning.learner.sampling import sample
from agentlightning.learner.sequence import Job, Sequence, check_params
from agentlightning.schemas.generation import EngineStats, GenerateDelta, GenerateRequest, GenerateResult

_PREFILL_TOKENS = {"cpu": 2048, "cuda": 8192}
_HEADROOM_TOKENS = 64
"""Tokens a new sequence can sample before anyone has to make room."""


@dataclass(frozen=True)
class RequestFailed:
    """A request that cannot go on."""

    request_id: str
    error: AgentLightningError


Event = GenerateResult | GenerateDelta | RequestFailed


class Engine:
    """Samples from one model. Call `submit`, then `step` until not `busy`; use it from one thread.

    The same request with the same seed and weights gives the same sample whatever else is in the batch, up to
    floating-point differences between batch shapes. Requests without a seed draw from streams numbered in order of
    arrival (`streams_used`), under the engine's own seed.
    """

    def __init__(
        self, loaded: LoadedModel, *, max_batch: int = 256, seed: int = 0, memory_bytes: int | None = None
    ) -> None:
        """Check that the model works with the cache.

        Args:
            loaded: The model; its weights may change between steps if `weights_changed` is called.
            max_batch: Most sequences decoded together.
            seed: Of the random streams of requests without one.
            memory_bytes: Most memory for keys and values; `None` takes a share of what is free.

        Raises:
            ModelError: The architecture does not work with a per-row key/value cache.
        """
        self.chat = ChatFormat(loaded.tokenizer)
        self.version = "base"
        self.streams_used = 0
        self.stats = EngineStats()
        self._loaded = loaded
        self._seed = seed
        self._max_batch = max_batch
        self._rows = KVRows()
        self._forward = Forward(loaded, self._rows)
        self._forward.verify()
        self._index = PrefixIndex()
        self._parking = Parking(self._index)
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._state = RowState(max_batch)
        self._is_end = np.zeros(loaded.vocab_size, dtype=bool)
        self._is_end[[i for i in loaded.eos_ids if i < loaded.vocab_size]] = True
        self._prefill = Prefill(self._forward, _PREFILL_TOKENS[loaded.device.type])
        self._grammars = Grammars(loaded.tokenizer, loaded.vocab_size, loaded.eos_ids, self.chat.form)
        self._constrained = 0
        self._admissions = 0
        budget = memory_bytes or _memory_budget(loaded.device)
        self._budget_tokens = budget // max(1, self._rows.bytes_per_token())
        self._rows.most_tokens = self._budget_tokens

    # -- requests ----------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a request is unfinished."""
        return bool(self._waiting or self._running)

    @property
    def active(self) -> int:
        """Sequences being decoded."""
        return len(self._running)

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request; its answer comes out of a later `step`.

        Raises:
            BadInputError: Parameters, prompt, constraint or context length make it impossible; nothing is queued.
            MissingExtraError: It has a constraint, and llguidance is not installed.
        """
        params = request.params
        check_params(params)
        if request.request_id in self._jobs:
            raise BadInputError(f"Request id {request.request_id} is in use.")
        prompt = self.chat.encode(request)
        room = self._check_prompt(prompt, params.max_tokens)
        matchers = [self._grammars.matcher(request) for _ in range(params.n)]
        job = Job(request, prompt)
        self._jobs[request.request_id] = job
        self.stats.requests += 1
        ids = np.asarray(prompt.token_ids, dtype=np.int32)
        watched = request.stream or bool(params.stop)
        for i in range(params.n):
            self._waiting.append(
                Sequence(
                    job=job,
                    index=i,
                    prompt_ids=ids,
                    ids=ids,
                    limit=room,
                    stream_key=self._stream_key(params.seed, i),
                    detokenizer=Detokenizer(self.chat) if watched else None,
                    form=self.chat.form if request.tools else None,
                    matcher=matchers[i],
                )
            )

    def cancel(self, request_id: str) -> None:
        """Stop a request and free its rows; unknown or finished ids are ignored."""
        job = self._jobs.pop(request_id, None)
        if job is None:
            return
        job.cancelled = True
        self._waiting = deque(s for s in self._waiting if s.job is not job)
        self._remove([row for row, s in enumerate(self._running) if s.job is job], park=False)

    def abort(self) -> list[str]:
        """Drop every request, because a step failed; return their ids."""
        ids = list(self._jobs)
        for request_id in ids:
            self.cancel(request_id)
        return ids

    def current_stats(self) -> EngineStats:
        """The counters, with what is held now."""
        self.stats.active, self.stats.waiting = len(self._running), len(self._waiting)
        self.stats.cache_bytes = self._rows.bytes() + self._parking.store.bytes()
        return self.stats

    def weights_changed(self, version: str | None = None) -> None:
        """Forget everything computed with the old weights; `version` names the new ones."""
        self.version = self.version if version is None else version
        self._index.clear()
        self._parking.clear()

    def _stream_key(self, seed: int | None, choice: int) -> tuple[int, int]:
        if seed is not None:
            return seed, choice
        self.streams_used += 1
        return self._seed, (1 << 63) + self.streams_used

    def _check_prompt(self, prompt: Prompt, max_tokens: int | None) -> int:
        """How many tokens the response may have."""
        size, context = len(prompt.token_ids), self._loaded.max_context
        if size == 0:
            raise BadInputError("The prompt is empty.")
        if size >= context:
            raise BadInputError(
                f"The prompt has {size} tokens; the model's context holds {context}, response included.",
                hint="Shorten the conversation or use a model with a longer context.",
                details={"prompt_tokens": size, "max_context": context},
            )
        if min(prompt.token_ids) < 0 or max(prompt.token_ids) >= self._loaded.vocab_size:
            raise BadInputError(f"A prompt token id is outside 0 … {self._loaded.vocab_size - 1}.")
        # Without max_tokens the memory is a limit like the context; a limit of the caller's is kept or refused.
        open_end = min(context, self._budget_tokens) - size
        limit = min(context - size, max_tokens or max(1, open_end))
        if size + limit > self._budget_tokens:
            raise BadInputError(
                f"Prompt and response of {size + limit} tokens do not fit the memory for keys and values.",
                hint="Set a smaller max_tokens or shorten the prompt.",
            )
        return limit

    # -- stepping ----------------------------------------

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Admit what fits, then decode one token for every active sequence; return what became known."""
        events: list[Event] = []
        # Rows that were decoding before an admission step still decode in it: nobody starves.
        self.stats.steps += 1
        if self._running:
            self._make_room()
            self._decode(len(self._running), events)
        self._admit(events)
        return events

    def _decode(self, active: int, events: list[Event]) -> None:
        state = self._state
        logits = self._forward(0, state.token[:active, None], state.position[:active, None])
        self._draw(0, active, logits, events)

    def _draw(self, low: int, high: int, logits_BV: torch.Tensor, events: list[Event]) -> None:
        """Sample a token for rows `low:high`, note it, and take out the rows it finishes."""
        state = self._state
        state.refill_uniforms(low, self._running[low:high])
        following = Following(low, self._running[low:high]) if self._constrained else None
        bans = following.bans() if following else None
        tokens, logprobs = sample(logits_BV, state.uniform(low, high), state.rules(low, high), bans)
        state.append(low, high, tokens, logprobs)
        self.stats.generated_tokens += high - low
        ended = self._is_end[tokens]
        full = state.count[low:high] >= state.limit[low:high]
        stopped = self._watch(low, high, tokens, events)
        done = ended | full
        done[[row - low for row in stopped]] = True
        if following is not None:
            following.accept(tokens)
            self._fail(following.failed, events)
            done[[row - low for row in following.failed]] = True
        if done.any():
            rows = (np.flatnonzero(done) + low).tolist()
            for row in rows:
                if not self._running[row].job.cancelled:
                    self._finish(row, bool(ended[row - low]), row in stopped, events)
            self._remove(rows, park=True)

    def _fail(self, failed: dict[int, UpstreamError], events: list[Event]) -> None:
        """Give up the requests of rows; their other rows end with the next token."""
        for row, error in failed.items():
            job = self._running[row].job
            if not job.cancelled:
                job.cancelled = True
                del self._jobs[job.request.request_id]
                self._waiting = deque(s for s in self._waiting if s.job is not job)
                events.append(RequestFailed(job.request.request_id, error))

    def _watch(self, low: int, high: int, tokens: np.ndarray, events: list[Event]) -> set[int]:
        stopped: set[int] = set()
        for row in range(low, high):
            sequence = self._running[row]
            if sequence.detokenizer is None or self._is_end[tokens[row - low]]:
                continue
            stops, delta = sequence.watch(int(tokens[row - low]))
            if stops:
                stopped.add(row)
            if delta is not None:
                events.append(delta)
        return stopped

    def _finish(self, row: int, ended: bool, stopped: bool, events: list[Event]) -> None:
        sequence = self._running[row]
        job, request = sequence.job, sequence.job.request
        token_ids, logprobs = self._state.response(row)
        choice = sequence.finish(self.chat, token_ids, logprobs, ended=ended, stopped=stopped)
        if ended:
            self.chat.remember(job.prompt, token_ids)
        result = None
        if len(job.choices) == request.params.n:
            del self._jobs[request.request_id]
            result = GenerateResult(
                request_id=request.request_id,
                prompt_token_ids=job.prompt.token_ids,
                choices=sorted(job.choices, key=lambda c: c.index),
                model=self._loaded.served_as or self._loaded.name,
                model_version=self.version,
            )
        if request.stream:
            events.append(
                GenerateDelta(
                    request_id=request.request_id,
                    index=choice.index,
                    text=choice.text[sequence.sent :],
                    tool_calls=choice.tool_calls,
                    result=result,
                )
            )
        elif result is not None:
            events.append(result)

    # -- rows ----------------------------------------

    def _remove(self, rows: list[int], *, park: bool) -> None:
        """Take rows out; the last active ones move into the gaps."""
        entries: list[Entry] = []
        for row in rows:
            sequence = self._running[row]
            if sequence.entry is not None:
                self._index.discard(sequence.entry)
                sequence.entry = None
            self._constrained -= sequence.matcher is not None
            if park:
                entries.append(Entry(self._state.known_tokens(row, sequence), self._rows, row))
        if entries:
            self._parking.park(entries, capacity=self._parking_rows())
        self._close_gaps(rows)

    def _close_gaps(self, rows: list[int]) -> None:
        gone = set(rows)
        left = len(self._running) - len(rows)
        holes = sorted(row for row in gone if row < left)
        movers = [row for row in range(left, len(self._running)) if row not in gone]
        if movers:
            self._rows.copy(self._rows, movers, holes, self._state.position[movers].tolist())
            self._state.move(movers, holes)
            for source, hole in zip(movers, holes, strict=True):
                sequence = self._running[source]
                self._running[hole] = sequence
                if sequence.entry is not None:
                    sequence.entry.row = hole
        del self._running[left:]

    def _make_room(self) -> None:
        """Where the next token of all would not fit the memory, the newest sequences wait for another turn."""
        while len(self._running) > 1:
            length = self._state.length(len(self._running))
            if length <= self._rows.length or len(self._running) * rounded(length) <= self._budget_tokens:
                return
            row = max(range(len(self._running)), key=lambda row: self._running[row].order)
            sequence = self._running[row]
            token_ids, sequence.logprobs = self._state.response(row)
            sequence.ids = np.concatenate([sequence.prompt_ids, np.asarray(token_ids, dtype=np.int32)])
            self._remove([row], park=True)
            self._waiting.appendleft(sequence)
            self.stats.preemptions += 1

    def _parking_rows(self) -> int:
        length = max(self._rows.length, self._parking.store.length, 1)
        return min(self._max_batch, self._budget_tokens // (4 * length))

    # -- admission ----------------------------------------

    def _admit(self, events: list[Event]) -> None:
        new = self._take_waiting()
        if not new:
            return
        leaders, followers = share_prompts(new)
        found = {s: self._index.find(s.ids) for s in leaders}
        leaders.sort(key=lambda s: len(s.ids) - found[s][1])
        low = len(self._running)
        new = [*leaders, *(s for s, _ in followers)]
        longest = max(len(s.ids) for s in new) + 1
        self._rows.reserve(low + len(new), longest)
        row_of = {s: low + i for i, s in enumerate(new)}
        self._copy_found(leaders, found, row_of)
        logits = self._prefill(leaders, [found[s][1] for s in leaders], low)
        if followers:
            copies = [row_of[leader] for _, leader in followers]
            lengths = [len(s.ids) for s, _ in followers]
            self._rows.copy(self._rows, copies, [row_of[s] for s, _ in followers], lengths)
            everyone = [*range(low, low + len(leaders)), *copies]
            logits = logits[torch.tensor(everyone, device=logits.device) - low]
        self._count_admitted(new, leaders, found)
        for sequence in new:
            self._state.start(row_of[sequence], sequence)
        for sequence in leaders:
            sequence.entry = Entry(sequence.ids, self._rows, row_of[sequence])
            self._index.add(sequence.entry)
        self._running.extend(new)
        self._draw(low, low + len(new), logits, events)

    def _count_admitted(
        self, new: list[Sequence], leaders: list[Sequence], found: dict[Sequence, tuple[Entry | None, int]]
    ) -> None:
        for sequence in new:
            self._admissions += 1
            sequence.order = sequence.order or self._admissions
            self._constrained += sequence.matcher is not None
        given = sum(len(s.ids) for s in new)
        self.stats.prompt_tokens += given
        self.stats.reused_tokens += given - sum(len(s.ids) - found[s][1] for s in leaders)

    def _take_waiting(self) -> list[Sequence]:
        """The sequences that fit beside the active ones as these are now."""
        taken: list[Sequence] = []
        active = len(self._running)
        length = rounded(self._state.length(active))
        while self._waiting and active + len(taken) < self._max_batch:
            sequence = self._waiting[0]
            left = sequence.limit - (len(sequence.ids) - len(sequence.prompt_ids))
            wanted = max(length, rounded(len(sequence.ids) + min(left, _HEADROOM_TOKENS)))
            if (active + len(taken) + 1) * wanted > self._budget_tokens and (active or taken):
                break
            length = wanted
            taken.append(self._waiting.popleft())
        if taken and (active + len(taken)) * self._rows.length > self._budget_tokens:
            self._rows.shorten(active, length)  # shaped for longer ones that are gone
        return taken

    def _copy_found(
        self,
        leaders: list[Sequence],
        found: dict[Sequence, tuple[Entry | None, int]],
        row_of: dict[Sequence, int],
    ) -> None:
        for store in (self._rows, self._parking.store):
            pairs = [
                (entry.row, row_of[s], shared)
                for s in leaders
                for entry, shared in [found[s]]
                if entry is not None and entry.store is store
            ]
            if pairs:
                self._rows.copy(store, *(list(column) for column in zip(*pairs, strict=True)))


def _memory_budget(device: torch.device) -> int:
    """Bytes that keys and values may take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * 0.6)
    return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 0.4)

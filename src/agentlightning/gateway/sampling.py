"""How a rollout's calls are sampled, decided by the trainer and invisible to the agent.

A rule is found by rollout id, else by the longest registered prefix of it, else by mode. Overrides replace
what the agent asks for, defaults fill in what it leaves out, and a seed base makes every call reproducible.
Knows nothing of storage.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from agentlightning.gateway.call import CallScope
from agentlightning.kit.errors import ConfigError

_SEED_BYTES = 6
_REMEMBERED_ROLLOUTS = 65_536
_NOT_SAMPLING = frozenset({"model", "messages", "prompt", "tools", "tool_choice", "stream", "stream_options"})


class SamplingRule(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters in OpenAI's names, e.g. `{"temperature": 1.0, "max_tokens": 64}`."""

    overrides: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    seed_base: int | None = None
    unseeded_prefix: str = ""
    samples_freely: bool = False


_NO_RULE = SamplingRule()


class _RolloutCalls(msgspec.Struct):
    attempts: list[str] = []
    calls: dict[str, int] = {}


class SamplingPolicy:
    """The rules in force. Cheap to change between calls."""

    def __init__(self) -> None:
        self._by_id: dict[str, SamplingRule] = {}
        self._by_prefix: dict[str, SamplingRule] = {}
        self._by_mode: dict[str, SamplingRule] = {}
        self._seen: OrderedDict[str, _RolloutCalls] = OrderedDict()

    def register(
        self,
        rollout_ids: Iterable[str],
        overrides: Mapping[str, Any] | None = None,
        *,
        defaults: Mapping[str, Any] | None = None,
        seed_base: int | None = None,
        unseeded_prefix: str = "",
        samples_freely: bool = False,
    ) -> None:
        """Set the rule of these rollouts; `forget` them when they are done.

        Args:
            rollout_ids: Exact ids.
            overrides: Win over the agent's own values; those are recorded.
            defaults: Fill in what the agent does not say.
            seed_base: Give calls without a seed one that depends only on this number, the rollout id, which attempt
                of the rollout it is for this gateway, and the position of the call in the attempt: the same
                after a restart.
            unseeded_prefix: Beginning of the ids that does not enter the seed, such as the name of the run: another
                run with the same seed base then samples alike.
            samples_freely: The answers are to be trained on, which they cannot be when the engine enforced a form. So
                strict tools, which many frameworks make of every tool unasked, and `parallel_tool_calls` are not
                enforced; forced tool calls and response formats are, and say why they are not trainable.

        Raises:
            ConfigError: A key is not a sampling parameter.
        """
        rule = _rule(overrides, defaults, seed_base, unseeded_prefix, samples_freely=samples_freely)
        self._by_id.update((rollout_id, rule) for rollout_id in rollout_ids)

    def register_prefix(
        self,
        prefix: str,
        overrides: Mapping[str, Any] | None = None,
        *,
        defaults: Mapping[str, Any] | None = None,
        seed_base: int | None = None,
    ) -> None:
        """Set the rule of all rollouts whose id begins with `prefix`; otherwise like `register`."""
        self._by_prefix[prefix] = _rule(overrides, defaults, seed_base)
        # Longest first, so that the first match is the most specific one.
        self._by_prefix = dict(sorted(self._by_prefix.items(), key=lambda item: -len(item[0])))

    def register_mode(
        self,
        mode: str,
        overrides: Mapping[str, Any] | None = None,
        *,
        defaults: Mapping[str, Any] | None = None,
        seed_base: int | None = None,
    ) -> None:
        """Set the rule of rollouts of a mode (`train`, `val`, `test`); otherwise like `register`."""
        self._by_mode[mode] = _rule(overrides, defaults, seed_base)

    def forget(self, rollout_ids: Iterable[str]) -> None:
        """Drop the rules and call counts of these rollouts."""
        for rollout_id in rollout_ids:
            self._by_id.pop(rollout_id, None)
            self._seen.pop(rollout_id, None)

    def needs_mode(self, rollout_id: str) -> bool:
        """Whether the rule can only be told from the rollout's mode."""
        return bool(self._by_mode) and self._specific(rollout_id) is None

    def apply(self, body: dict[str, Any], scope: CallScope, mode: str | None) -> dict[str, Any]:
        """Change `body` in place by the rule of the call.

        Returns:
            The agent's own values that were replaced, by parameter; `None` for one that it did not give.
        """
        rule = self._rule_of(scope, mode)
        replaced: dict[str, Any] = {}
        for name, value in rule.overrides.items():
            key = _key_in(body, name)
            if body.get(key) != value:
                replaced[key] = body.get(key)
                body[key] = value
        for name, value in rule.defaults.items():
            key = _key_in(body, name)
            if body.get(key) is None:
                body[key] = value
        index, ordinal = self._count(scope)
        if rule.seed_base is not None and body.get("seed") is None:
            name = scope.rollout_id.removeprefix(rule.unseeded_prefix)
            body["seed"] = call_seed(rule.seed_base, name, ordinal, index)
        return replaced

    def samples_freely(self, scope: CallScope, mode: str | None) -> bool:
        """Whether forms that the engine may leave to the model are left to it."""
        return self._rule_of(scope, mode).samples_freely

    def _rule_of(self, scope: CallScope, mode: str | None) -> SamplingRule:
        rule = self._specific(scope.rollout_id)
        return self._by_mode.get(mode or "", _NO_RULE) if rule is None else rule

    def _specific(self, rollout_id: str) -> SamplingRule | None:
        rule = self._by_id.get(rollout_id)
        if rule is None:
            for prefix, candidate in self._by_prefix.items():
                if rollout_id.startswith(prefix):
                    return candidate
        return rule

    def _count(self, scope: CallScope) -> tuple[int, int]:
        """Position of this call in its attempt, and of the attempt among those seen of the rollout; from 0."""
        seen = self._seen.get(scope.rollout_id)
        if seen is None:
            seen = self._seen[scope.rollout_id] = _RolloutCalls(attempts=[], calls={})
            if len(self._seen) > _REMEMBERED_ROLLOUTS:
                self._seen.popitem(last=False)
        index = seen.calls.get(scope.attempt_id, 0)
        if index == 0 and scope.attempt_id not in seen.calls:
            seen.attempts.append(scope.attempt_id)
        seen.calls[scope.attempt_id] = index + 1
        return index, seen.attempts.index(scope.attempt_id)


def call_seed(seed_base: int, rollout_id: str, attempt: int, index: int) -> int:
    """A stable 48-bit seed of one call. Attempt ids are random, so the attempt enters by its position."""
    text = f"{seed_base}\0{rollout_id}\0{attempt}\0{index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=_SEED_BYTES).digest(), "big")


def _rule(
    overrides: Mapping[str, Any] | None,
    defaults: Mapping[str, Any] | None,
    seed_base: int | None,
    unseeded_prefix: str = "",
    *,
    samples_freely: bool = False,
) -> SamplingRule:
    rule = SamplingRule(
        overrides=dict(overrides or {}),
        defaults=dict(defaults or {}),
        seed_base=seed_base,
        unseeded_prefix=unseeded_prefix,
        samples_freely=samples_freely,
    )
    wrong = _NOT_SAMPLING.intersection((*rule.overrides, *rule.defaults))
    if wrong:
        raise ConfigError(
            f"Not a sampling parameter: {', '.join(sorted(wrong))}.",
            hint="Use names like temperature, top_p, max_tokens, stop, seed.",
        )
    return rule


def _key_in(body: dict[str, Any], name: str) -> str:
    # OpenAI renamed max_tokens; keep to the name the agent uses, its server may know only that one.
    if name in ("max_tokens", "max_completion_tokens"):
        for key in ("max_completion_tokens", "max_tokens"):
            if key in body:
                return key
    return name

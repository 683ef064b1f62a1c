"""Sampling rules: which applies, what it changes, which seeds it gives."""

from __future__ import annotations

from typing import Any

import pytest

from agentlightning.gateway import CallScope, SamplingPolicy
from agentlightning.kit.errors import ConfigError

ONE = CallScope("ro-1", "at-a")


def applied(policy: SamplingPolicy, scope: CallScope = ONE, mode: str | None = None, **body: Any) -> dict[str, Any]:
    policy.apply(body, scope, mode)
    return body


def test_without_rules_nothing_changes() -> None:
    assert applied(SamplingPolicy(), temperature=0.3) == {"temperature": 0.3}


def test_overrides_win_and_what_they_replaced_is_returned() -> None:
    policy = SamplingPolicy()
    policy.register(["ro-1"], {"temperature": 1.0, "top_p": 1.0})
    body = {"temperature": 0.2}
    assert policy.apply(body, ONE, None) == {"temperature": 0.2, "top_p": None}
    assert body == {"temperature": 1.0, "top_p": 1.0}
    assert policy.apply({"temperature": 1.0, "top_p": 1.0}, ONE, None) == {}


def test_only_what_is_to_be_trained_on_is_sampled_freely() -> None:
    policy = SamplingPolicy()
    policy.register(["ro-1"], samples_freely=True)
    assert policy.samples_freely(ONE, "train")
    assert not policy.samples_freely(CallScope("ro-2", "at-a"), "train")
    policy.forget(["ro-1"])
    assert not policy.samples_freely(ONE, "train")


def test_defaults_only_fill_in() -> None:
    policy = SamplingPolicy()
    policy.register(["ro-1"], defaults={"temperature": 0.7, "top_p": 0.9})
    assert applied(policy, temperature=0.2, top_p=None) == {"temperature": 0.2, "top_p": 0.9}


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_keeps_the_name_the_agent_uses(key: str) -> None:
    policy = SamplingPolicy()
    policy.register(["ro-1"], {"max_tokens": 64})
    assert applied(policy, **{key: 5}) == {key: 64}
    assert applied(policy) == {"max_tokens": 64}


def test_the_most_specific_rule_applies() -> None:
    policy = SamplingPolicy()
    policy.register_mode("train", {"temperature": 0.1})
    policy.register_prefix("ro-", {"temperature": 0.2})
    policy.register_prefix("ro-1", {"temperature": 0.3})
    policy.register(["ro-1x"], {"temperature": 0.4})
    found = [
        applied(policy, CallScope(rollout_id, "at"), "train")["temperature"]
        for rollout_id in ("other", "ro-2", "ro-12", "ro-1x")
    ]
    assert found == [0.1, 0.2, 0.3, 0.4]
    assert applied(policy, CallScope("other", "at"), "val") == {}


def test_the_mode_is_needed_only_when_nothing_more_specific_is_known() -> None:
    policy = SamplingPolicy()
    assert not policy.needs_mode("ro-1")
    policy.register_mode("train", {"temperature": 1})
    assert policy.needs_mode("ro-1")
    policy.register(["ro-1"])
    assert not policy.needs_mode("ro-1")
    policy.forget(["ro-1"])
    assert policy.needs_mode("ro-1")


def seeds(policy: SamplingPolicy, scope: CallScope, count: int = 3) -> list[int]:
    return [applied(policy, scope)["seed"] for _ in range(count)]


def seeded(base: int = 1) -> SamplingPolicy:
    policy = SamplingPolicy()
    policy.register(["ro-1", "ro-2"], seed_base=base)
    return policy


def test_seeds_differ_by_call_rollout_attempt_and_base() -> None:
    policy = seeded()
    found = seeds(policy, ONE) + seeds(policy, CallScope("ro-2", "at-a")) + seeds(policy, CallScope("ro-1", "at-b"))
    found += seeds(seeded(2), ONE)
    assert len(set(found)) == 12
    assert all(0 <= seed < 2**48 for seed in found)


def test_seeds_are_the_same_after_a_restart_though_attempt_ids_are_not() -> None:
    assert seeds(seeded(), ONE) == seeds(seeded(), CallScope("ro-1", "at-after-restart"))
    # A known value: what is stored with a run must not change with a release.
    assert seeds(seeded(), ONE)[0] == 34782408096706


def test_parallel_attempts_count_their_own_calls() -> None:
    policy = seeded()
    first, second = CallScope("ro-1", "at-a"), CallScope("ro-1", "at-b")
    interleaved = [applied(policy, scope)["seed"] for scope in (first, second, first, second)]
    alone = seeded()
    assert [*seeds(alone, first, 2), *seeds(alone, second, 2)] == [interleaved[i] for i in (0, 2, 1, 3)]


def test_an_agents_own_seed_is_kept() -> None:
    assert applied(seeded(), seed=7) == {"seed": 7}


def test_forgotten_rollouts_have_no_rule() -> None:
    policy = seeded()
    policy.forget(["ro-1", "never-known"])
    assert applied(policy) == {}


@pytest.mark.parametrize("where", ["overrides", "defaults"])
def test_only_sampling_parameters_can_be_set(where: str) -> None:
    with pytest.raises(ConfigError, match="Not a sampling parameter: model"):
        SamplingPolicy().register(["ro-1"], **{where: {"model": "x"}})  # pyright: ignore[reportArgumentType]


def test_memory_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentlightning.gateway.sampling._REMEMBERED_ROLLOUTS", 3)
    policy = SamplingPolicy()
    policy.register_prefix("ro", seed_base=1)
    found = [seeds(policy, CallScope(f"ro-{i}", "at"), 1)[0] for i in range(5)]
    assert len(set(found)) == 5
    # The oldest was forgotten, so it counts from the beginning again.
    assert seeds(policy, CallScope("ro-0", "at"), 1)[0] == found[0]
    assert seeds(policy, CallScope("ro-4", "at"), 1)[0] != found[4]

"""Seeds of calls: the same for the same place in another run, different everywhere else."""

from __future__ import annotations

from agentlightning.gateway.call import CallScope
from agentlightning.gateway.sampling import SamplingPolicy


def seeds(run: str, *, base: int = 0, prefix: bool = True) -> list[int]:
    policy = SamplingPolicy()
    ids = [f"{run}.t00001.000.00", f"{run}.t00001.000.01"]
    policy.register(ids, seed_base=base, unseeded_prefix=f"{run}." if prefix else "")
    found: list[int] = []
    for rollout_id in ids:
        for _ in range(2):
            body: dict[str, object] = {}
            policy.apply(body, CallScope(rollout_id=rollout_id, attempt_id="a"), None)
            seed = body["seed"]
            assert isinstance(seed, int)
            found.append(seed)
    return found


def test_two_runs_with_one_seed_sample_alike_when_their_name_does_not_count() -> None:
    assert seeds("run-a") == seeds("run-b")
    assert seeds("run-a", prefix=False) != seeds("run-b", prefix=False)


def test_rollouts_calls_and_bases_differ() -> None:
    assert len(set(seeds("run-a"))) == 4
    assert not set(seeds("run-a")) & set(seeds("run-a", base=1))

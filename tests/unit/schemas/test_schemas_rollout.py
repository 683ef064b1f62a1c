from typing import get_args

import pytest
from pydantic import ValidationError

from agentlightning.schemas import (
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    Rollout,
    RolloutConfig,
    RolloutStatus,
    Worker,
    is_finished,
    is_queuing,
    is_running,
)
from agentlightning.schemas.rollout import (
    ATTEMPT_TRANSITIONS,
    QUEUED_STATUSES,
    ROLLOUT_TRANSITIONS,
    TERMINAL_ATTEMPT_STATUSES,
    TERMINAL_ROLLOUT_STATUSES,
)

ROLLOUT_STATUSES = get_args(RolloutStatus)
ATTEMPT_STATUSES = get_args(AttemptStatus)


def reachable(table: dict[str, frozenset[str]], start: str) -> set[str]:
    seen, todo = {start}, [start]
    while todo:
        fresh = table[todo.pop()] - seen
        seen |= fresh
        todo += fresh
    return seen


@pytest.mark.parametrize(
    ("table", "statuses"),
    [(ROLLOUT_TRANSITIONS, ROLLOUT_STATUSES), (ATTEMPT_TRANSITIONS, ATTEMPT_STATUSES)],
    ids=["rollout", "attempt"],
)
def test_the_table_speaks_of_every_status_and_of_no_other(table, statuses):
    assert set(table) == set(statuses)
    assert set().union(*table.values()) <= set(statuses)


@pytest.mark.parametrize("table", [ROLLOUT_TRANSITIONS, ATTEMPT_TRANSITIONS], ids=["rollout", "attempt"])
def test_no_status_becomes_itself(table):
    assert all(status not in targets for status, targets in table.items())


def test_every_status_can_be_reached_from_the_first_one():
    assert reachable(ROLLOUT_TRANSITIONS, "queuing") == set(ROLLOUT_STATUSES)
    assert reachable(ATTEMPT_TRANSITIONS, "preparing") == set(ATTEMPT_STATUSES)


def test_every_status_can_end():
    for status in ROLLOUT_STATUSES:
        assert reachable(ROLLOUT_TRANSITIONS, status) & TERMINAL_ROLLOUT_STATUSES
    for status in ATTEMPT_STATUSES:
        assert reachable(ATTEMPT_TRANSITIONS, status) & TERMINAL_ATTEMPT_STATUSES


def test_a_finished_rollout_can_only_be_taken_up_again():
    for status in TERMINAL_ROLLOUT_STATUSES:
        assert ROLLOUT_TRANSITIONS[status] <= QUEUED_STATUSES | {"preparing"}


def test_a_finished_attempt_stays_finished_unless_it_was_only_silent():
    for status in TERMINAL_ATTEMPT_STATUSES - {"unresponsive"}:
        assert ATTEMPT_TRANSITIONS[status] == frozenset()
    assert "running" in ATTEMPT_TRANSITIONS["unresponsive"]


@pytest.mark.parametrize("status", ROLLOUT_STATUSES)
def test_each_status_is_waiting_running_or_finished_and_only_one_of_them(status):
    rollout = Rollout(rollout_id="r", input=None, start_time=0.0, status=status)
    assert [is_queuing(rollout), is_running(rollout), is_finished(rollout)].count(True) == 1


def test_a_new_rollout_waits_with_one_attempt_and_no_limit():
    rollout = Rollout(rollout_id="r", input={"any": ["thing"]}, start_time=0.0)
    assert rollout.status == "queuing"
    assert rollout.config == RolloutConfig()
    assert (rollout.config.max_attempts, rollout.config.timeout_seconds) == (1, None)
    assert rollout.config.retry_condition == []


def test_configs_of_two_rollouts_are_not_shared():
    first, second = (Rollout(rollout_id=name, input=None, start_time=0.0) for name in "ab")
    first.config.retry_condition.append("timeout")
    assert second.config.retry_condition == []


def test_an_unknown_limit_is_refused():
    with pytest.raises(ValidationError, match="timeout_secs"):
        RolloutConfig.model_validate({"timeout_secs": 3})


@pytest.mark.parametrize("attempts", [0, -1])
def test_less_than_one_attempt_is_refused(attempts):
    with pytest.raises(ValidationError, match="max_attempts"):
        RolloutConfig(max_attempts=attempts)


@pytest.mark.parametrize("status", ["success", "", "RUNNING"])
def test_an_unknown_status_is_refused(status):
    with pytest.raises(ValidationError, match="status"):
        Rollout(rollout_id="r", input=None, start_time=0.0, status=status)


def test_a_rollout_carries_only_an_attempt_of_its_own():
    attempt = Attempt(rollout_id="a", attempt_id="x", sequence_id=1, start_time=0.0)
    fields = {"input": 1, "start_time": 0.0, "attempt": attempt}
    assert AttemptedRollout(rollout_id="a", **fields).attempt.status == "preparing"
    with pytest.raises(ValidationError, match="attempt belongs to 'a', not to 'b'"):
        AttemptedRollout(rollout_id="b", **fields)


def test_an_attempted_rollout_survives_json():
    attempt = Attempt(rollout_id="a", attempt_id="x", sequence_id=1, start_time=0.5, metadata={"error": {"n": 1}})
    rollout = AttemptedRollout(rollout_id="a", input={"q": "?"}, start_time=0.25, mode="val", attempt=attempt)
    assert AttemptedRollout.model_validate_json(rollout.model_dump_json()) == rollout


def test_nothing_is_known_of_a_new_worker():
    assert Worker(worker_id="w").status == "unknown"

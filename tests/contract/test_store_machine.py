"""Random sequences of calls against a model of the state machine: statuses, queue order, retries, spans."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agentlightning.kit.errors import ConflictError
from agentlightning.schemas import AttemptedRollout, RolloutConfig
from agentlightning.schemas.rollout import (
    ATTEMPT_TRANSITIONS,
    QUEUED_STATUSES,
    ROLLOUT_TRANSITIONS,
    SUPERSEDED_TRANSITIONS,
    TERMINAL_ROLLOUT_STATUSES,
)
from agentlightning.store import InMemoryLightningStore, SqlLightningStore
from tests.contract.conftest import make_span
from tests.postgres import empty_schema

T = TypeVar("T")

configs = st.builds(
    RolloutConfig,
    max_attempts=st.integers(1, 3),
    retry_condition=st.lists(st.sampled_from(["failed", "timeout", "unresponsive"]), unique=True),
)


@dataclass
class ExpectedRollout:
    config: RolloutConfig
    status: str
    attempts: list[tuple[str, str]] = field(default_factory=list)  # (id, status)
    spans: int = 0


class StoreMachine(RuleBasedStateMachine):
    rollouts = Bundle("rollouts")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.store = self.open_store()
        self.expected: dict[str, ExpectedRollout] = {}
        self.queue: list[str] = []

    def open_store(self) -> SqlLightningStore:
        return InMemoryLightningStore()

    def teardown(self) -> None:
        self.run(self.store.close())
        self.loop.close()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(call)

    def _set(self, rollout_id: str, status: str) -> None:
        self.expected[rollout_id].status = status
        if status not in QUEUED_STATUSES:
            self.queue = [i for i in self.queue if i != rollout_id]
        elif rollout_id not in self.queue:
            self.queue.append(rollout_id)

    def _carry_over(self, rollout_id: str) -> None:
        expected = self.expected[rollout_id]
        status = expected.attempts[-1][1]
        if expected.status in TERMINAL_ROLLOUT_STATUSES:
            return
        if status in ("preparing", "running", "succeeded"):
            wanted = status
        elif status in expected.config.retry_condition and len(expected.attempts) < expected.config.max_attempts:
            wanted = "requeuing"
        else:
            wanted = "failed"
        if wanted != expected.status and wanted in ROLLOUT_TRANSITIONS[expected.status]:
            self._set(rollout_id, wanted)

    @precondition(lambda self: len(self.expected) < 4)  # few, so that much happens to each
    @rule(target=rollouts, config=configs)
    def enqueue(self, config: RolloutConfig) -> str:
        rollout = self.run(self.store.enqueue_rollout("x", config=config))
        self.expected[rollout.rollout_id] = ExpectedRollout(config, "queuing")
        self.queue.append(rollout.rollout_id)
        return rollout.rollout_id

    @precondition(lambda self: len(self.expected) < 4)  # few, so that much happens to each
    @rule(target=rollouts, config=configs)
    def start(self, config: RolloutConfig) -> str:
        rollout = self.run(self.store.start_rollout("x", config=config))
        self.expected[rollout.rollout_id] = ExpectedRollout(
            config, "preparing", [(rollout.attempt.attempt_id, "preparing")]
        )
        return rollout.rollout_id

    @rule(limit=st.integers(1, 3))
    def dequeue(self, limit: int) -> None:
        claimed = self.run(self.store.dequeue_many_rollouts(limit=limit, worker_id="w"))
        assert [r.rollout_id for r in claimed] == self.queue[:limit]
        for rollout in claimed:
            self._set(rollout.rollout_id, "preparing")
            self.expected[rollout.rollout_id].attempts.append((rollout.attempt.attempt_id, "preparing"))

    @rule(rollout_id=rollouts)
    def start_attempt(self, rollout_id: str) -> None:
        rollout = self.run(self.store.start_attempt(rollout_id))
        self._set(rollout_id, "preparing")
        self.expected[rollout_id].attempts.append((rollout.attempt.attempt_id, "preparing"))

    @rule(rollout_id=rollouts, which=st.integers(0, 5), status=st.sampled_from(sorted(ATTEMPT_TRANSITIONS)))
    def update_attempt(self, rollout_id: str, which: int, status: Any) -> None:
        attempts = self.expected[rollout_id].attempts
        if not attempts:
            return
        index = which % len(attempts)
        attempt_id, old = attempts[index]
        name = "latest" if index == len(attempts) - 1 and which % 2 else attempt_id
        call = self.store.update_attempt(rollout_id, name, status=status)
        allowed = ATTEMPT_TRANSITIONS[old]
        if index < len(attempts) - 1:
            allowed |= SUPERSEDED_TRANSITIONS.get(old, frozenset())
        if status != old and status not in allowed:
            with pytest.raises(ConflictError):
                self.run(call)
            return
        self.run(call)
        attempts[index] = (attempt_id, status)
        if index == len(attempts) - 1:
            self._carry_over(rollout_id)

    @rule(rollout_id=rollouts, status=st.sampled_from(sorted(ROLLOUT_TRANSITIONS)))
    def update_rollout(self, rollout_id: str, status: Any) -> None:
        old = self.expected[rollout_id].status
        call = self.store.update_rollout(rollout_id, status=status)
        if status != old and status not in ROLLOUT_TRANSITIONS[old]:
            with pytest.raises(ConflictError):
                self.run(call)
        else:
            self.run(call)
            self._set(rollout_id, status)

    @rule(rollout_id=rollouts, which=st.integers(0, 5))
    def add_span(self, rollout_id: str, which: int) -> None:
        expected = self.expected[rollout_id]
        if not expected.attempts:
            return
        index = which % len(expected.attempts)
        attempt_id, status = expected.attempts[index]
        self.run(self.store.add_span(make_span(rollout_id, attempt_id)))
        expected.spans += 1
        if index != len(expected.attempts) - 1:
            return
        if status in ("preparing", "unresponsive"):
            status = "running"
            expected.attempts[index] = (attempt_id, status)
        if status == "running" and expected.status in ("preparing", "queuing", "requeuing"):
            self._set(rollout_id, "running")

    @rule(rollout_id=rollouts)
    def count_spans(self, rollout_id: str) -> None:
        assert len(self.run(self.store.query_spans(rollout_id))) == self.expected[rollout_id].spans

    @invariant()
    def statuses_are_as_expected(self) -> None:
        for rollout in self.run(self.store.query_rollouts()):
            expected = self.expected[rollout.rollout_id]
            assert rollout.status == expected.status
            assert (rollout.end_time is not None) == (expected.status in TERMINAL_ROLLOUT_STATUSES)
            if expected.attempts:
                assert isinstance(rollout, AttemptedRollout)
                assert (rollout.attempt.attempt_id, rollout.attempt.status) == expected.attempts[-1]
                assert rollout.attempt.sequence_id == len(expected.attempts)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=50,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)


def test_postgres_is_the_same_machine(postgres_server: str, postgres_schema: str) -> None:
    class PostgresMachine(StoreMachine):
        def open_store(self) -> SqlLightningStore:
            empty_schema(postgres_server)
            return SqlLightningStore(postgres_schema)

    run_state_machine_as_test(PostgresMachine, settings=settings(TestStoreMachine.settings, max_examples=15))

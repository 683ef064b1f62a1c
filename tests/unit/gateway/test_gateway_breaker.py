"""When a target is left alone, and when it is tried again."""

from __future__ import annotations

import pytest

from agentlightning.gateway.breaker import Breaker, BreakerPolicy

POLICY = BreakerPolicy(failure_ratio=0.5, min_calls=4, window_s=10, cool_down_s=5)


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def outcome(breaker: Breaker, *results: bool) -> None:
    for is_good in results:
        ticket = breaker.enter()
        assert ticket is not None
        if is_good:
            breaker.succeed(ticket)
        else:
            breaker.fail(ticket, "boom")


def test_it_opens_at_the_ratio_and_not_before_there_are_enough_calls(clock: Clock) -> None:
    breaker = Breaker(POLICY, clock)
    outcome(breaker, False, False, False)
    assert breaker.state == "closed"
    outcome(breaker, False)
    assert (breaker.state, breaker.opened, breaker.last_failure) == ("open", 1, "boom")
    assert breaker.enter() is None
    assert breaker.retry_after_s() == 5


def test_a_minority_of_failures_leaves_it_closed(clock: Clock) -> None:
    breaker = Breaker(POLICY, clock)
    outcome(breaker, *[True, True, False] * 10)
    assert breaker.state == "closed"


def test_failures_leave_the_window(clock: Clock) -> None:
    breaker = Breaker(POLICY, clock)
    outcome(breaker, False, False, False)
    clock.now += 11
    outcome(breaker, True, False, True)
    assert breaker.state == "closed"
    clock.now += 1000
    outcome(breaker, True, True, True, False)
    assert breaker.state == "closed"


def test_one_probe_passes_after_the_cool_down_and_decides(clock: Clock) -> None:
    breaker = Breaker(POLICY, clock)
    outcome(breaker, *[False] * 4)
    clock.now += 5
    assert breaker.state == "half_open"
    probe = breaker.enter()
    assert probe is not None
    assert breaker.enter() is None  # one at a time
    assert breaker.retry_after_s() > 0
    breaker.fail(probe, "still")
    assert (breaker.state, breaker.opened) == ("open", 2)
    clock.now += 5
    outcome(breaker, True)
    assert breaker.state == "closed"
    outcome(breaker, False, False, False)  # it starts counting afresh
    assert breaker.state == "closed"


def test_a_probe_that_says_nothing_frees_its_place(clock: Clock) -> None:
    breaker = Breaker(POLICY, clock)
    outcome(breaker, *[False] * 4)
    clock.now += 5
    probe = breaker.enter()
    assert probe is not None
    breaker.forget(probe)
    assert breaker.enter() is not None


def test_several_probes_have_to_succeed(clock: Clock) -> None:
    breaker = Breaker(BreakerPolicy(min_calls=1, cool_down_s=1, probes=2), clock)
    outcome(breaker, False)
    clock.now += 1
    outcome(breaker, True)
    assert breaker.state == "half_open"
    outcome(breaker, True)
    assert breaker.state == "closed"


def test_calls_that_began_before_it_opened_do_not_count(clock: Clock) -> None:
    breaker = Breaker(POLICY, clock)
    slow, slower = breaker.enter(), breaker.enter()
    assert slow is not None
    assert slower is not None
    outcome(breaker, *[False] * 4)
    breaker.succeed(slow)
    assert breaker.state == "open"
    clock.now += 5
    breaker.fail(slower, "late")
    breaker.forget(slower)
    assert breaker.state == "half_open"


def test_it_can_be_switched_off(clock: Clock) -> None:
    breaker = Breaker(BreakerPolicy(min_calls=0), clock)
    outcome(breaker, *[False] * 100)
    assert breaker.state == "closed"

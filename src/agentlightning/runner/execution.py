"""One attempt, from claimed to outcome: trace, run the agent in time, understand the result, apply the policy.

Knows nothing of queues: it is given a claimed rollout and returns what to report.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from opentelemetry.sdk.trace import ReadableSpan

from agentlightning.agent import instrument
from agentlightning.agent.agents import Agent, finish
from agentlightning.agent.emit import find_final_reward, make_tag_attributes
from agentlightning.agent.emit.annotations import emit_annotation
from agentlightning.agent.emit.exceptions import emit_exception
from agentlightning.agent.emit.rewards import PRIMARY, RewardDimension, reward_attributes
from agentlightning.agent.hook import Hook
from agentlightning.agent.results import Evaluator, ReturnedSpan, read_evaluation, read_result
from agentlightning.agent.scope import GatewayAddress, RolloutScope, enter_scope
from agentlightning.agent.threads import AgentThreads
from agentlightning.agent.tracer import OtelTracer, Tracer
from agentlightning.runner.failure import (
    AgentExitError,
    AttemptTimeoutError,
    Failure,
    NoRewardError,
    RolloutCancelledError,
)
from agentlightning.runner.policy import Decision, FailurePolicy
from agentlightning.runner.reporter import Outcome
from agentlightning.schemas import AttemptedRollout, NamedResources, ProxyLLM, Span, SpanCoreFields, semconv
from agentlightning.store.base import AttemptUpdate, LightningStore

logger = logging.getLogger(__name__)

POLICY_SCORE_TAG = "agentlightning.policy_score"
"""Tag of a reward that the failure policy gave, not the agent."""
_MAX_CLOCK_LEAD_S = 5.0


@dataclass
class Workbench:
    """What all attempts of a runner share."""

    agent: Agent
    source: Any
    """The agent as the user gave it; hooks see this one."""
    runner: Any
    tracer: Tracer
    store: LightningStore
    threads: AgentThreads
    policy: FailurePolicy
    evaluator: Evaluator | None
    hooks: Sequence[Hook]
    gateways: frozenset[GatewayAddress]
    default_timeout_s: float | None
    grace_s: float
    abandoned: int = 0
    """Asynchronous agents that ignored their cancellation."""


class AttemptExecution:
    """Runs one attempt. Never raises what the agent raises: that becomes part of the outcome."""

    def __init__(self, rollout: AttemptedRollout, bench: Workbench) -> None:
        self.rollout = rollout
        self._bench = bench
        self._cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._may_run_again = True
        self.task: asyncio.Task[Any] | None = None
        """The agent at work."""
        self.deadline: float | None = None
        """When its time is up, on `time.monotonic`'s clock."""
        self.failure: Failure | None = None
        self.scope = RolloutScope(
            rollout.rollout_id, rollout.attempt.attempt_id, gateways=bench.gateways, tracer=bench.tracer
        )

    def cancel(self, because: str, *, may_run_again: bool) -> None:
        """Stop the agent; the outcome says why.

        Args:
            because: For the record.
            may_run_again: Whether the policy decides what follows; else the rollout is over.
        """
        if not self._cancelled.done():
            self._cancelled.set_result(because)
            self._may_run_again = may_run_again

    def hand_back(self, because: str) -> Outcome:
        """The outcome of an attempt that was claimed but not begun."""
        self.failure = Failure.of(RolloutCancelledError(because))
        return self._outcome(self._decide(self.failure))

    async def run(self, fetch_resources: Callable[[], Awaitable[NamedResources]]) -> Outcome:
        """Run the agent; returns what to report."""
        bench, rollout, scope = self._bench, self.rollout, self.scope
        instrument.install()
        await self._hooks("on_rollout_start")
        decision: Decision | None = None
        with enter_scope(scope):
            async with bench.tracer.trace_context(
                name=rollout.rollout_id, rollout_id=rollout.rollout_id, attempt_id=scope.attempt_id
            ):
                await self._hooks("on_trace_start", tracer=bench.tracer)
                try:
                    await self._work(await fetch_resources())
                except Exception as error:  # noqa: BLE001 - an agent may raise anything; it becomes data
                    decision = self._fail(Failure.of(error))
                await self._hooks("on_trace_end", tracer=bench.tracer)
        if bench.hooks:
            await self._hooks("on_rollout_end", spans=self._spans())
        return self._outcome(decision)

    async def _work(self, resources: NamedResources) -> None:
        limit_s = self.time_left()
        self.deadline = time.monotonic() + limit_s if math.isfinite(limit_s) else None
        self.scope.gateways |= gateways_of(resources)
        self.task = task = asyncio.create_task(self._agent_and_evaluator(resources))
        timeout_s = None if self.deadline is None else limit_s
        await asyncio.wait({task, self._cancelled}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await self._give_up(task)
            if self._cancelled.done():
                raise RolloutCancelledError(f"The attempt ended early: {self._cancelled.result()}.")
            raise AttemptTimeoutError(
                f"The agent did not finish within {self.rollout.config.timeout_seconds or limit_s:g} s.",
                hint="Raise RolloutConfig.timeout_seconds, or give its calls time limits of their own.",
            )
        try:
            rewards = task.result()
        except asyncio.CancelledError as error:  # not ours: the agent cancelled itself
            raise RuntimeError("the agent's own task was cancelled from within") from error
        if rewards:
            emit_annotation(reward_attributes(rewards))
        await self._require_reward()

    async def _give_up(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=self._bench.grace_s)
        if not done:
            self._bench.abandoned += 1
            logger.warning("Rollout %s ignores its cancellation and goes on unheard.", self.rollout.rollout_id)
        task.add_done_callback(_retrieve)

    async def _agent_and_evaluator(self, resources: NamedResources) -> list[RewardDimension]:
        try:
            run = self._bench.agent.run
            if self._bench.evaluator is not None:
                run = getattr(self._bench.agent, "run_raw", run)
            output = await run(self.rollout.input, resources, self.rollout)
            if self._bench.evaluator is not None:
                return await self._evaluate(self._bench.evaluator, output, resources)
        except SystemExit as error:
            raise AgentExitError(
                f"The agent called sys.exit({error.code!r}).", hint="Let it return or raise instead."
            ) from error
        result = read_result(output)
        if result.spans:
            self._record(result.spans)
        return result.rewards

    async def _evaluate(self, evaluator: Evaluator, output: Any, resources: NamedResources) -> list[RewardDimension]:
        args, kwargs = evaluator.bind(self.rollout.input, output, resources, self.rollout)
        call = cast("Callable[[], Any]", functools.partial(evaluator.function, *args, **kwargs))
        if evaluator.is_async:
            return read_evaluation(await cast("Awaitable[Any]", call()))
        return read_evaluation(await finish(await self._bench.threads.run(call)))

    def _record(self, spans: Sequence[ReturnedSpan]) -> None:
        known = {span.span_id for span in self.scope.spans()}
        ids: dict[str, Any] = {
            "rollout_id": self.scope.rollout_id,
            "attempt_id": self.scope.attempt_id,
            "sequence_id": 0,
        }
        for span in spans:
            if isinstance(span, SpanCoreFields):
                self.scope.add(Span.from_core_fields(span, **ids))
            elif isinstance(span, ReadableSpan):
                context = span.get_span_context()
                if context is not None and f"{context.span_id:016x}" not in known:
                    self.scope.add(span)
            elif span.span_id not in known:
                self.scope.add(span.model_copy(update=ids))

    async def _require_reward(self) -> None:
        bench, scope = self._bench, self.scope
        if scope.has_reward or bench.policy.actions["no_reward"].kind == "keep":
            return
        if find_final_reward(self._spans()) is not None:
            return
        stored = await bench.store.query_spans(scope.rollout_id, scope.attempt_id, name=semconv.AGL_ANNOTATION)
        if find_final_reward(list(stored)) is None:
            raise NoRewardError(
                "The attempt ended without a reward.",
                hint="Return it, call agl.emit_reward(...), or give the runner an evaluator.",
            )

    def _spans(self) -> list[Span]:
        if isinstance(self._bench.tracer, OtelTracer):
            return self.scope.spans()
        return [*self._bench.tracer.get_last_trace(), *self.scope.spans()]

    def time_left(self) -> float:
        """Seconds for the agent: a little less than the store allows, so that the runner reports first."""
        timeout_s = self.rollout.config.timeout_seconds
        if timeout_s is None:
            return math.inf if self._bench.default_timeout_s is None else self._bench.default_timeout_s
        elapsed_s = min(max(time.time() - self.rollout.attempt.start_time, 0.0), _MAX_CLOCK_LEAD_S)
        return max(timeout_s - elapsed_s - min(0.5, 0.05 * timeout_s), 0.01)

    def _fail(self, failure: Failure) -> Decision:
        self.failure = failure
        decision = self._decide(failure)
        assert failure.error is not None
        emit_exception(failure.error, attributes={"agentlightning.error.class": failure.error_class})
        if decision.reward is not None:
            tags = make_tag_attributes([POLICY_SCORE_TAG, f"error_class:{failure.error_class}"])
            emit_annotation({**reward_attributes([RewardDimension(PRIMARY, decision.reward)]), **tags})
        logger.info(
            "Rollout %s: %s (%s: %s), so: %s.",
            self.rollout.rollout_id,
            failure.error_class,
            failure.type,
            failure.message,
            decision.kind,
        )
        return decision

    def _decide(self, failure: Failure) -> Decision:
        if not self._may_run_again:
            return Decision("drop", "failed")
        return self._bench.policy.decide(failure, self.rollout, self.rollout.attempt.sequence_id)

    def _outcome(self, decision: Decision | None) -> Outcome:
        attempt = self.rollout.attempt
        update = AttemptUpdate(rollout_id=self.rollout.rollout_id, attempt_id=attempt.attempt_id, status="succeeded")
        if decision is None or self.failure is None:
            return Outcome(self.scope, update)
        update.status = decision.status
        update.metadata = {**(attempt.metadata or {}), "error": self.failure.as_metadata(), "action": decision.kind}
        return Outcome(self.scope, update, config=decision.config)

    async def _hooks(self, name: str, **more: Any) -> None:
        for hook in self._bench.hooks:
            method = getattr(hook, name)
            try:
                await method(agent=self._bench.source, runner=self._bench.runner, rollout=self.rollout, **more)
            except Exception:  # hooks are others' code: they may not change how the rollout ends
                logger.exception("%s of %s failed in rollout %s.", name, hook, self.rollout.rollout_id)


def gateways_of(resources: NamedResources) -> frozenset[GatewayAddress]:
    """The gateways that the resources point to."""
    proxies = [resource for resource in resources.values() if isinstance(resource, ProxyLLM)]
    return frozenset(GatewayAddress.parse(proxy.endpoint, proxy.api_key or "") for proxy in proxies)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Look at the exception of an abandoned task, lest asyncio complain that nobody did."""
    if not task.cancelled():
        task.exception()

"""The A/B test between standard and optimised prompts, and the schedule, kept up over processes. Knows no agent."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from agentlightning.algorithm.experiment import ABTest, Arm, Schedule, Trigger, Verdict
from agentlightning.integrations.tongyi.book import LOCK_WAIT_S, PromptBook, keep_aside
from agentlightning.integrations.tongyi.config import TongyiConfig
from agentlightning.kit.errors import BadInputError
from agentlightning.kit.files import exclusive_lock, write_atomic

logger = logging.getLogger(__name__)

FILE = "experiments.json"


@dataclass(frozen=True)
class Choice:
    """Which prompts a query meets."""

    version: int
    arm: Arm | None = None
    candidate: int | None = None
    """The version on trial."""


class Trials:
    """What `[experiments]` and `[optimization_schedule]` ask for.

    Args:
        config: The settings.
        folder: The training folder.
        book: Its prompts.

    Raises:
        ConfigError: The settings contradict each other, such as an experiment too short to tell anything.
        MissingExtraError: A schedule of kind cron needs the package cronsim.
    """

    def __init__(self, config: TongyiConfig, folder: Path, book: PromptBook) -> None:
        self._config = config
        self._folder = folder
        self._book = book
        self._schedule()
        if config.experiments.enable_ab_testing:
            self._new_test(0)

    def choose(self, query: str) -> Choice:
        """The prompts for a query; the same query meets the same arm as long as a test runs."""
        candidate = self._book.candidate
        if candidate is None or not self._config.experiments.enable_ab_testing:
            return Choice(self._book.active)
        arm = self._new_test(candidate).assign(query)
        return Choice(candidate if arm == "treatment" else self._book.active, arm, candidate)

    def record(self, query: str, choice: Choice, reward: float | None) -> Verdict | None:
        """Count an interaction; returns the verdict when it ended the test."""
        with self._changing() as kept:
            schedule = self._schedule(kept)
            schedule.record(reward)
            kept["schedule"] = schedule.as_dict()
            if choice.arm is None or choice.candidate is None or choice.candidate != self._book.candidate:
                return None
            test = self._test(kept, choice.candidate)
            test.record(choice.arm, reward, key=query if reward is not None else None)
            kept["ab"] = {"candidate": choice.candidate, "test": test.as_dict()}
            verdict = test.verdict()
            if not verdict.is_over:
                return None
            kept["decided"] = [*kept.get("decided", []), {"candidate": choice.candidate, **verdict.as_dict()}]
        self._book.decide(choice.candidate, is_better=verdict.winner == "treatment")
        return verdict

    def due(self) -> Trigger | None:
        """Why it is time for an optimisation, if it is.

        Never while a version is on trial: another one would take its place, and no trial would ever end.
        """
        if self._config.experiments.enable_ab_testing and self._book.candidate is not None:
            return None
        return self._schedule(self._read()).due()

    def optimized(self) -> None:
        """An optimisation was made: begin to count anew."""
        with self._changing() as kept:
            schedule = self._schedule(kept)
            schedule.ran()
            kept["schedule"] = schedule.as_dict()

    def verdict(self) -> Verdict | None:
        """How the test that is running stands."""
        candidate = self._book.candidate
        if candidate is None or not self._config.experiments.enable_ab_testing:
            return None
        return self._test(self._read(), candidate).verdict()

    def decided(self) -> list[dict[str, Any]]:
        """Tests that are over."""
        return list(self._read().get("decided", []))

    def _new_test(self, candidate: int) -> ABTest:
        section = self._config.experiments
        return ABTest(
            f"tongyi-{candidate}",
            control_ratio=section.control_ratio,
            experiment_duration=section.experiment_duration,
        )

    def _test(self, kept: dict[str, Any], candidate: int) -> ABTest:
        found = kept.get("ab") or {}
        if found.get("candidate") == candidate:
            try:
                return ABTest.from_dict(found["test"])
            except (BadInputError, KeyError) as error:
                logger.warning("The A/B test that was kept cannot be read, and begins anew: %s", error)
        return self._new_test(candidate)

    def _schedule(self, kept: dict[str, Any] | None = None) -> Schedule:
        section = self._config.optimization_schedule
        schedule = Schedule(
            section.schedule,
            periodic_interval=section.periodic_interval,
            cron=section.cron,
            trigger_on_performance_drop=section.trigger_on_performance_drop,
            performance_threshold=section.performance_threshold,
            window=section.window,
        )
        if kept and kept.get("schedule"):
            try:
                schedule.restore(kept["schedule"])
            except BadInputError as error:
                logger.warning("The schedule that was kept cannot be read, and begins anew: %s", error)
        return schedule

    @contextmanager
    def _changing(self) -> Generator[dict[str, Any]]:
        with exclusive_lock(self._folder / ".experiments.lock", purpose="Experiments", wait_s=LOCK_WAIT_S):
            kept = self._read()
            yield kept
            write_atomic(self._folder / FILE, orjson.dumps(kept, option=orjson.OPT_INDENT_2) + b"\n")

    def _read(self) -> dict[str, Any]:
        path = self._folder / FILE
        try:
            found = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            logger.warning("%s cannot be read; it is kept as %s.", path, keep_aside(path))
            return {}
        return found

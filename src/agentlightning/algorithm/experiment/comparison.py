"""An A/B test over a data set: two sets of resources, one agent, as many rollouts as it takes. Knows no runners."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from agentlightning.algorithm.base import Algorithm, Dataset
from agentlightning.algorithm.datasets import example_key
from agentlightning.algorithm.experiment.abtest import ARMS, ABTest, Arm, Verdict
from agentlightning.algorithm.rollouts import Outcome, Plan, run_batch
from agentlightning.kit.errors import BadInputError, ConfigError
from agentlightning.kit.files import write_atomic
from agentlightning.schemas import NamedResources

FILE = "abtest.json"


@dataclass(frozen=True)
class _Trial:
    """One rollout to be."""

    number: int
    task: Any
    key: str
    arm: Arm


class Comparison(Algorithm):
    """Runs tasks with one of two sets of resources each, until one is shown to be better.

    The tasks come in a random order, and again in another one when all have been used. Repeated under the same run id
    after an interruption, finished rollouts are not run again, and the result is the same.

    Args:
        control: Resources of one arm, by name; they are laid over the run's initial resources.
        treatment: Those of the other.
        test: How tasks are divided and when it is over.
        key: What makes two tasks one case, e.g. their user, so that they meet the same arm and count as one result; by
            default each rollout stands alone.
        batch_size: Rollouts between two looks at the results.
        timeout_s: Longest time of one rollout.

    Raises:
        ConfigError: Both arms are the same, or the batch size is not positive.
    """

    def __init__(
        self,
        control: NamedResources,
        treatment: NamedResources,
        *,
        test: ABTest | None = None,
        key: Callable[[Any], str] | None = None,
        batch_size: int = 16,
        timeout_s: float = 120.0,
    ) -> None:
        if control == treatment:
            raise ConfigError("Control and treatment are the same.", hint="Give two prompts that differ.")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}.", hint="Give 1 or more.")
        self.arms: Mapping[Arm, NamedResources] = {"control": control, "treatment": treatment}
        self.test = test or ABTest()
        self.key = key
        self.batch_size = batch_size
        self.timeout_s = timeout_s
        self.verdict: Verdict | None = None

    async def run(self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run it to its end; the verdict is in `verdict` and in the run's folder.

        Raises:
            BadInputError: There are no tasks, or too few cases for a verdict.
            RunStopped: Somebody asked the run to stop.
        """
        del val_dataset
        tasks = [] if train_dataset is None else [train_dataset[index] for index in range(len(train_dataset))]
        if not tasks:
            raise BadInputError("There are no tasks to compare on.", hint="Give --data FILE.")
        context = self.get_context()
        snapshots = await self._snapshots()
        trials = self._trials(tasks)
        self.verdict = self.test.verdict()
        while not self.verdict.is_over:
            context.check()
            batch = list(itertools.islice(trials, self.batch_size))
            if not batch:
                break
            plans = [Plan(f"{context.run_id}.ab.{t.number:06d}", t.task, t.arm, snapshots[t.arm]) for t in batch]
            outcomes = await run_batch(
                context, plans, mode="val", timeout_s=self.timeout_s, label="ab", with_calls=False
            )
            self._record(batch, outcomes)
        self._write(snapshots)

    def _record(self, batch: Sequence[_Trial], outcomes: Sequence[Outcome]) -> None:
        for trial, outcome in zip(batch, outcomes, strict=True):
            if self.verdict is not None and self.verdict.is_over:
                break  # what was under way with the deciding result does not count any more
            self.test.record(trial.arm, outcome.reward, key=trial.key if self.key else None)
            self.verdict = self.test.verdict()
        assert self.verdict is not None
        self.get_context().report(
            {"type": "abtest", "planned": self.test.experiment_duration, **self.verdict.as_dict()}
        )

    def _trials(self, tasks: Sequence[Any]) -> Iterator[_Trial]:
        """In random order, over and over; with keys each task once, since another time would be no other case."""
        chance = random.Random(f"{self.get_context().seed}/ab")
        number = 0
        for time in itertools.count():
            if time and self.key is not None:
                return
            order = list(tasks)
            chance.shuffle(order)
            for task in order:
                key = self.key(task) if self.key else f"{example_key(task)}/{number}"
                yield _Trial(number, task, key, self.test.assign(key))
                number += 1

    async def _snapshots(self) -> dict[Arm, str]:
        """The resources of both arms in the store; a run that goes on has another gateway, so they are made anew."""
        context = self.get_context()
        path = context.directory / FILE
        known: dict[str, str] = orjson.loads(path.read_bytes())["snapshots"] if path.exists() else {}
        base: NamedResources = {}
        if context.resources_id is not None:
            update = await context.store.get_resources_by_id(context.resources_id)
            base = dict(update.resources) if update is not None else {}
        found: dict[Arm, str] = {}
        for arm in ARMS:
            resources = {**base, **self.arms[arm]}
            if arm in known:
                await context.store.update_resources(known[arm], resources)
                found[arm] = known[arm]
            else:
                found[arm] = (await context.store.add_resources(resources)).resources_id
        self._write(found)
        return found

    def _write(self, snapshots: Mapping[Arm, str]) -> None:
        content = {
            "snapshots": dict(snapshots),
            "arms": {arm: {name: resource.model_dump() for name, resource in self.arms[arm].items()} for arm in ARMS},
            "test": {key: value for key, value in self.test.as_dict().items() if key not in ("keys", "moments")},
            "verdict": None if self.verdict is None else self.verdict.as_dict(),
        }
        write_atomic(self.get_context().directory / FILE, orjson.dumps(content, option=orjson.OPT_INDENT_2))

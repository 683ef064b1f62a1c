"""When to improve again: after so many interactions, at set times, when results have dropped. Knows no optimiser."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from agentlightning.kit.errors import BadInputError, ConfigError

if TYPE_CHECKING:
    from cronsim import CronSim

Kind = Literal["periodic", "cron", "manual"]
KINDS: tuple[Kind, ...] = ("periodic", "cron", "manual")


@dataclass(frozen=True)
class Trigger:
    """Why it is time."""

    kind: Literal["periodic", "cron", "drop"]
    reason: str


class Schedule:
    """Counts interactions and watches their rewards.

    Args:
        schedule: `periodic` every `periodic_interval` interactions, `cron` at the times of `cron`, `manual` never by
            itself.
        periodic_interval: Interactions between two runs.
        cron: Five fields as in crontab, UTC: `0 3 * * *`.
        trigger_on_performance_drop: Also when the mean reward of the last `window` rewards is below
            `performance_threshold`, whatever `schedule` says.
        performance_threshold: See there.
        window: Rewards that the mean is taken over. After a run so many new ones are awaited first.
        started: When counting begins, for `cron`; now by default.

    Raises:
        ConfigError: A value is out of its range, or belongs to another kind of schedule.
        MissingExtraError: `cron` needs the package cronsim.
    """

    def __init__(
        self,
        schedule: Kind = "manual",
        *,
        periodic_interval: int = 100,
        cron: str | None = None,
        trigger_on_performance_drop: bool = False,
        performance_threshold: float = 0.7,
        window: int = 20,
        started: datetime | None = None,
    ) -> None:
        if schedule not in KINDS:
            raise ConfigError(f"There is no schedule {schedule!r}.", hint=f"They are: {', '.join(KINDS)}.")
        if periodic_interval < 1 or window < 1:
            raise ConfigError("periodic_interval and window are 1 or more.")
        if (cron is not None) != (schedule == "cron"):
            raise ConfigError(
                "cron and schedule = cron belong together.", hint='Give schedule="cron", cron="0 3 * * *".'
            )
        self.schedule = schedule
        self.periodic_interval = periodic_interval
        self.cron = cron
        self.trigger_on_performance_drop = trigger_on_performance_drop
        self.performance_threshold = performance_threshold
        self.window = window
        self._interactions = 0
        self._rewards: deque[float] = deque(maxlen=window)
        self._last_run = _utc(started or datetime.now(UTC))
        self.next_time()  # says at once when the expression is wrong

    def record(self, reward: float | None) -> None:
        """One interaction has ended; `None` when nobody gave a reward."""
        self._interactions += 1
        if reward is not None:
            self._rewards.append(reward)

    def due(self, now: datetime | None = None) -> Trigger | None:
        """Why it is time to improve; `None` when it is not. It stays so until `ran`."""
        if self.trigger_on_performance_drop and len(self._rewards) == self.window:
            mean = sum(self._rewards) / self.window
            if mean < self.performance_threshold:
                return Trigger(
                    "drop",
                    f"the mean of the last {self.window} rewards is {mean:.3g}, below {self.performance_threshold:g}",
                )
        if self.schedule == "periodic" and self._interactions >= self.periodic_interval:
            return Trigger("periodic", f"{self._interactions} interactions since the last run")
        planned = self.next_time()
        if planned is not None and _utc(now or datetime.now(UTC)) >= planned:
            return Trigger("cron", f"planned for {planned.isoformat()}")
        return None

    def ran(self, now: datetime | None = None) -> None:
        """It was done: begin to count anew. Times of `cron` that passed meanwhile are one, not several."""
        self._interactions = 0
        self._rewards.clear()
        self._last_run = _utc(now or datetime.now(UTC))

    def next_time(self) -> datetime | None:
        """The next time of `cron`, UTC; `None` for another schedule.

        Raises:
            ConfigError: The expression is wrong.
        """
        if self.cron is None:
            return None
        return next(_times(self.cron, self._last_run))

    def as_dict(self) -> dict[str, Any]:
        """What was counted, JSON-able; `restore` goes on from it."""
        return {
            "interactions": self._interactions,
            "rewards": list(self._rewards),
            "last_run": self._last_run.isoformat(),
        }

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what `as_dict` gave.

        Raises:
            BadInputError: It is something else.
        """
        try:
            interactions, rewards = int(kept["interactions"]), [float(value) for value in kept["rewards"]]
            last_run = _utc(datetime.fromisoformat(kept["last_run"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInputError(f"This is no schedule that was kept: {error!r}.") from error
        self._interactions, self._last_run = interactions, last_run
        self._rewards = deque(rewards, maxlen=self.window)


def _times(expression: str, after: datetime) -> CronSim:
    try:
        from cronsim import CronSim, CronSimError
    except ImportError as error:
        from agentlightning.kit.errors import MissingExtraError

        raise MissingExtraError(
            "Times of cron need the package cronsim.", hint="pip install 'agentlightning[schedule]'"
        ) from error
    try:
        return CronSim(expression, after)
    except CronSimError as error:
        raise ConfigError(
            f"cron = {expression!r} is wrong: {error}.", hint="Five fields, for example 0 3 * * * (each day at 3)."
        ) from error


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)

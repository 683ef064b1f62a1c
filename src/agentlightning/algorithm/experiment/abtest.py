"""Two versions at work, each for its share of the tasks, until one is shown to be better. Knows no agents and no store.

Who belongs to which arm follows from a key, such as a user or a task: the same key always meets the same version.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Literal

from agentlightning.algorithm.experiment.sequence import Moments, difference_sequence
from agentlightning.kit.errors import BadInputError, ConfigError

Arm = Literal["control", "treatment"]
ARMS: tuple[Arm, Arm] = ("control", "treatment")
MIN_PER_ARM = 15
"""Nothing is decided with fewer: the interval rests on the central limit theorem."""


@dataclass(frozen=True)
class Verdict:
    """What is known by now."""

    winner: Arm | None
    """The better arm, once it is shown."""
    is_over: bool
    """Whether to stop: a winner, no difference worth having, or the planned number of results."""
    reason: str
    difference: float | None
    """Treatment less control; `None` while an arm has no reward."""
    ci_low: float
    ci_high: float
    """A 95 % confidence sequence (for alpha 0.05): it may be looked at after every result."""
    n: dict[str, int]
    mean: dict[str, float | None]
    missing: dict[str, int]
    """Results without a reward; they count for nothing, and never as 0."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; an unbounded side is `None`."""
        bounds = {"ci_low": self.ci_low, "ci_high": self.ci_high}
        return {
            "winner": self.winner,
            "is_over": self.is_over,
            "reason": self.reason,
            "difference": self.difference,
            **{name: value if math.isfinite(value) else None for name, value in bounds.items()},
            "n": dict(self.n),
            "mean": dict(self.mean),
            "missing": dict(self.missing),
        }


class ABTest:
    """Assigns, counts, and says when there is something to say.

    Args:
        name: Another name divides the same keys differently.
        control_ratio: Share of the keys that get the control, between 0 and 1.
        experiment_duration: Results after which it ends without a winner, of both arms together.
        alpha: How often an experiment with equal arms may ever name a winner.
        minimal_effect: A difference that would not be worth having: once the interval lies within it on both sides,
            the experiment ends without a winner.

    Raises:
        ConfigError: A value is out of its range.
    """

    def __init__(
        self,
        name: str = "ab",
        *,
        control_ratio: float = 0.5,
        experiment_duration: int = 100,
        alpha: float = 0.05,
        minimal_effect: float = 0.0,
    ) -> None:
        if not 0 < control_ratio < 1:
            raise ConfigError(f"control_ratio is {control_ratio}.", hint="Give a share between 0 and 1, such as 0.5.")
        if experiment_duration < 2 * MIN_PER_ARM:
            raise ConfigError(
                f"experiment_duration is {experiment_duration}.",
                hint=f"Nothing is decided with fewer than {MIN_PER_ARM} results for each arm: give {2 * MIN_PER_ARM} "
                "or more.",
            )
        if not 0 < alpha < 1:
            raise ConfigError(f"alpha is {alpha}.", hint="Give a probability, such as 0.05.")
        if minimal_effect < 0:
            raise ConfigError(f"minimal_effect is {minimal_effect}.", hint="Give 0 or more.")
        self.name = name
        self.control_ratio = control_ratio
        self.experiment_duration = experiment_duration
        self.alpha = alpha
        self.minimal_effect = minimal_effect
        self._seen: dict[str, tuple[Arm, int, float]] = {}  # arm, rewards, their sum
        self._moments: dict[Arm, Moments] = {arm: Moments() for arm in ARMS}
        self._missing: dict[Arm, int] = dict.fromkeys(ARMS, 0)

    def assign(self, key: str) -> Arm:
        """The arm of a key: always the same one, on every machine, without anything kept."""
        digest = hashlib.sha256(f"{self.name}\0{key}".encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        return "control" if share < self.control_ratio else "treatment"

    def record(self, arm: Arm, reward: float | None, *, key: str | None = None) -> None:
        """Count one result.

        Args:
            arm: Which version it comes from.
            reward: What it got; `None` when nobody gave one.
            key: Whose it is. Results of the same key are one result, with their mean as reward: they depend on each
                other, and counting them singly would make the interval too narrow. Without a key it stands alone.

        Raises:
            BadInputError: There is no such arm, the key belongs to the other one, or the reward is not finite.
        """
        if arm not in ARMS:
            raise BadInputError(f"There is no arm {arm!r}.", hint=f"They are: {', '.join(ARMS)}.")
        if key is not None and self._seen.get(key, (arm, 0, 0.0))[0] != arm:
            raise BadInputError(f"The key {key!r} has been recorded for the other arm.", hint="Use assign(key).")
        if reward is None:
            self._missing[arm] += 1
            return
        if not math.isfinite(reward):
            raise BadInputError(f"The reward {reward} is no finite number.", hint="No reward is None.")
        if key is None:
            self._moments[arm] = self._moments[arm].plus(reward)
            return
        _, count, total = self._seen.get(key, (arm, 0, 0.0))
        if count:
            self._moments[arm] = self._moments[arm].less(total / count)
        self._seen[key] = (arm, count + 1, total + reward)
        self._moments[arm] = self._moments[arm].plus((total + reward) / (count + 1))

    def verdict(self) -> Verdict:
        """What is known by now; may be asked after every result."""
        control, treatment = self._moments["control"], self._moments["treatment"]
        difference, low, high = difference_sequence(
            control, treatment, alpha=self.alpha, planned=self.experiment_duration
        )
        winner, is_over, reason = self._judged(low, high)
        return Verdict(
            winner,
            is_over,
            reason,
            difference if control.n and treatment.n else None,
            low,
            high,
            {arm: self._moments[arm].n for arm in ARMS},
            {arm: self._moments[arm].mean if self._moments[arm].n else None for arm in ARMS},
            {arm: self._missing[arm] for arm in ARMS},
        )

    def _judged(self, low: float, high: float) -> tuple[Arm | None, bool, str]:
        n = {arm: self._moments[arm].n for arm in ARMS}
        ended = sum(n.values()) + sum(self._missing.values()) >= self.experiment_duration
        fewest = min(n.values())
        if fewest < MIN_PER_ARM:
            missing = sum(self._missing.values())
            lacking = f"; {missing} results have no reward" if missing else ""
            arm = min(ARMS, key=lambda name: n[name])
            return None, ended, f"{arm} has {fewest} rewards, {MIN_PER_ARM} are needed{lacking}"
        if self._moments["control"].squares == self._moments["treatment"].squares == 0 and low <= 0 <= high:
            return None, ended, "all rewards are the same: they tell nothing"
        if low > 0:
            return "treatment", True, "the treatment is better"
        if high < 0:
            return "control", True, "the control is better"
        if self.minimal_effect and -self.minimal_effect <= low and high <= self.minimal_effect:
            return None, True, f"no difference beyond {self.minimal_effect:g}"
        if ended:
            return None, True, f"no difference shown in {self.experiment_duration} results"
        return None, False, "not decided yet"

    def as_dict(self) -> dict[str, Any]:
        """Everything, JSON-able: `from_dict` goes on from it."""
        return {
            "name": self.name,
            "control_ratio": self.control_ratio,
            "experiment_duration": self.experiment_duration,
            "alpha": self.alpha,
            "minimal_effect": self.minimal_effect,
            "keys": {key: list(entry) for key, entry in self._seen.items()},
            "moments": {arm: [m.n, m.mean, m.squares] for arm, m in self._moments.items()},
            "missing": dict(self._missing),
        }

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> ABTest:
        """Go on from what `as_dict` gave.

        Raises:
            BadInputError: It is something else.
        """
        try:
            found = cls(
                kept["name"],
                control_ratio=kept["control_ratio"],
                experiment_duration=kept["experiment_duration"],
                alpha=kept["alpha"],
                minimal_effect=kept["minimal_effect"],
            )
            found._seen = {key: (arm, int(n), float(total)) for key, (arm, n, total) in kept["keys"].items()}
            for arm in ARMS:
                n, mean, squares = kept["moments"][arm]
                found._moments[arm] = Moments(int(n), float(mean), float(squares))
            found._missing = {arm: int(kept["missing"][arm]) for arm in ARMS}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInputError(f"This is no A/B test that was kept: {error!r}.") from error
        return found

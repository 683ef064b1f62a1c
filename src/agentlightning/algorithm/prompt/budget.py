"""What an optimisation may spend, and what it has spent: calls, tokens, money, time.

A call is one call of a model, the agent's and the proposer's alike; a rollout in which none was seen counts as one.
Knows nothing of what the money buys.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from agentlightning.kit.errors import AgentLightningError, ConfigError

PriceOf = Callable[[str], tuple[float, float] | None]
"""US dollars per million input and output tokens of a model; `None` when they are not known."""
_MILLION = 1_000_000


class BudgetSpent(AgentLightningError):  # noqa: N818 - not a failure: the best so far is the result
    """What is left does not pay for the next step."""

    code = "BUDGET_SPENT"
    status = 402


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that a run may use; `None` is no limit.

    Args:
        calls: Model calls.
        tokens: Input and output tokens together.
        usd: US dollars; every model that is called needs a price.
        wall_s: Seconds, those before an interruption included.
        prices: US dollars per million (input, output) tokens by model name.

    Raises:
        ConfigError: A limit is not positive.
    """

    calls: int | None = None
    tokens: int | None = None
    usd: float | None = None
    wall_s: float | None = None
    prices: Mapping[str, tuple[float, float]] | None = None

    def __post_init__(self) -> None:
        for name in ("calls", "tokens", "usd", "wall_s"):
            limit = getattr(self, name)
            if limit is not None and not (limit > 0 and math.isfinite(limit)):
                raise ConfigError(f"A budget of {name}={limit} allows nothing.", hint="Give a positive number.")


@dataclass
class Spend:
    """Amounts used; `usd` covers the calls whose price is known."""

    calls: int = 0
    rollouts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    unpriced_calls: int = 0

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def minus(self, earlier: Spend) -> Spend:
        """What came since `earlier`."""
        return Spend(**{name: value - getattr(earlier, name) for name, value in asdict(self).items()})


class Purse:
    """Counts what is used and says what the rest pays for.

    Args:
        budget: The limits.
        price_of: Prices of models that the budget does not list.
        spent_s: Seconds used before this process.
    """

    def __init__(self, budget: Budget, *, price_of: PriceOf | None = None, spent_s: float = 0.0) -> None:
        self.budget = budget
        self.spent = Spend()
        self._price_of = price_of
        self._since = time.monotonic() - spent_s
        self._kept_rollouts = 0
        self._questions = 0

    @property
    def wall_s(self) -> float:
        """Seconds used in all."""
        return time.monotonic() - self._since

    def keep_back(self, rollouts: int) -> None:
        """Set rollouts aside, for the comparison at the end."""
        self._kept_rollouts = rollouts

    @contextlib.contextmanager
    def setting_aside(self, rollouts: int) -> Generator[None]:
        """Set more rollouts aside while something else is done."""
        self._kept_rollouts += rollouts
        try:
            yield
        finally:
            self._kept_rollouts -= rollouts

    def charge(
        self,
        model: str,
        *,
        calls: int = 1,
        input_tokens: int = 0,
        output_tokens: int = 0,
        is_question: bool = False,
    ) -> None:
        """Count calls; a question is one to the proposer, outside of all rollouts.

        Raises:
            ConfigError: The budget is in money and the model has no price.
        """
        self.spent.calls += calls
        self._questions += calls if is_question else 0
        self.spent.input_tokens += input_tokens
        self.spent.output_tokens += output_tokens
        price = self.price(model)
        if price is not None:
            self.spent.usd += (input_tokens * price[0] + output_tokens * price[1]) / _MILLION
            return
        self.spent.unpriced_calls += calls
        if self.budget.usd is not None and calls:
            raise ConfigError(
                f"The budget is in money, but the price of {model!r} is not known.",
                hint=f"Give it: Budget(prices={{{model!r}: (INPUT, OUTPUT)}}), --price {model}=INPUT/OUTPUT "
                "(US dollars per million tokens).",
            )

    def price(self, model: str) -> tuple[float, float] | None:
        """US dollars per million input and output tokens, if known."""
        listed = (self.budget.prices or {}).get(model)
        return listed if listed is not None else self._price_of(model) if self._price_of else None

    def affordable_rollouts(self) -> float:
        """How many more rollouts the rest pays for, at what they have cost so far; `inf` without a limit.

        A question is a call of its own: it makes no rollout cost more calls. Of tokens and money, where a question may
        cost more than a rollout, what questions cost is spread over the rollouts, so that one never goes over.
        """
        rollouts = max(1, self.spent.rollouts)
        fits = math.inf
        if self.budget.wall_s is not None and self.wall_s >= self.budget.wall_s:
            return 0
        for name, limit, amount in self._limits():
            each = max(1.0, (amount - self._questions) / rollouts) if name == "calls" else amount / rollouts
            if limit - amount <= 0:
                return 0
            if each > 0:
                fits = min(fits, math.floor((limit - amount) / each + 1e-9))
        return max(0, fits - self._kept_rollouts)

    @property
    def knows_no_cost(self) -> bool:
        """Whether there is a limit on what a rollout costs, and none was seen yet."""
        return not self.spent.rollouts and bool(self._limits())

    def _limits(self) -> list[tuple[str, float, float]]:
        amounts = (
            ("calls", self.budget.calls, self.spent.calls),
            ("tokens", self.budget.tokens, self.spent.tokens),
            ("usd", self.budget.usd, self.spent.usd),
        )
        return [(name, limit, amount) for name, limit, amount in amounts if limit is not None]

    def require(self, rollouts: int = 0, calls: int = 0) -> None:
        """Check that the rest pays for so much.

        Raises:
            BudgetSpent: It does not.
        """
        if self.affordable_rollouts() < max(1, rollouts + calls):
            raise BudgetSpent(self.told(), hint="Raise the budget and repeat the command: nothing is paid for twice.")

    def remaining_s(self) -> float | None:
        """Seconds left; `None` without a limit."""
        return None if self.budget.wall_s is None else max(0.0, self.budget.wall_s - self.wall_s)

    def told(self) -> str:
        """What was used of what, in words."""
        spent, budget = self.spent, self.budget
        parts = [f"{spent.calls}{_of(budget.calls)} calls", f"{spent.tokens:,}{_of(budget.tokens)} tokens"]
        if spent.usd or budget.usd is not None:
            parts.append(f"{spent.usd:.4f}{_of(budget.usd)} USD")
        parts.append(f"{self.wall_s:.0f}{_of(budget.wall_s)} s")
        is_over = any(amount >= limit for _, limit, amount in self._limits()) or self.remaining_s() == 0
        return f"The budget is spent{'' if is_over else ', for the rest is too little to go on'}: {', '.join(parts)}."

    def as_dict(self) -> dict[str, Any]:
        """JSON-able amounts."""
        return {**asdict(self.spent), "tokens": self.spent.tokens, "wall_s": self.wall_s}


def _of(limit: float | None) -> str:
    return "" if limit is None else f" of {limit:g}"

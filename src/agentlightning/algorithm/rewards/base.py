"""What a reward is, sums of rewards, and where they find the reference answer and the text of an output."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from agentlightning.kit.errors import ConfigError

REFERENCE_KEYS = (
    "expected",
    "expected_output",
    "expected_choice",
    "answer",
    "reference",
    "label",
    "target",
    "gold",
    "query",
    "sql",
)
_OUTPUT_KEYS = ("output", "answer", "content", "text", "response")


class Reward:
    """Base class: implement `score`, plain or async. Higher is better; `None` says that there is no reward.

    Example:
        ```python
        class Polite(Reward):
            def score(self, task, output):
                return float("please" in output)
        ```
    """

    name: str = ""

    def score(self, task: Any, output: Any) -> float | Awaitable[float | None] | None:
        """How good `output` is for `task`."""
        # A hook: users' subclasses and the rewards beside this file say it.
        raise NotImplementedError(f"{type(self).__name__} does not implement score()")

    async def __call__(self, task: Any, output: Any) -> float | None:
        found = self.score(task, output)
        return await found if inspect.isawaitable(found) else found

    def __mul__(self, weight: float) -> Weighted:
        return Weighted((self, float(weight)))

    __rmul__ = __mul__

    def __add__(self, other: Any) -> Weighted:
        return Weighted((self, 1.0)) + other


class FunctionReward(Reward):
    """A function of task and output (or of the output alone) as a reward."""

    def __init__(self, function: Callable[..., Any], name: str = "") -> None:
        self.function = function
        self.name = name or getattr(function, "__name__", "")
        self._takes_task = _takes_task(function)

    def score(self, task: Any, output: Any) -> float | Awaitable[float | None] | None:
        """Call the function."""
        return self.function(task, output) if self._takes_task else self.function(output)


class Weighted(Reward):
    """The sum of rewards times weights; `None` when one of them is.

    `ExactMatch() * 0.7 + Regex("final:") * 0.3` is one, too.

    Args:
        *parts: Pairs of a reward (or function) and its weight.
        missing: What a part without a reward does: `none` leaves the whole without one, `skip` shares its weight among
            the others.

    Raises:
        ConfigError: There are no parts, or a weight is not finite.
    """

    name = "weighted"

    def __init__(self, *parts: tuple[Reward | Callable[..., Any], float], missing: str = "none") -> None:
        if not parts or not all(math.isfinite(weight) for _, weight in parts):
            raise ConfigError("A weighted reward has parts with finite weights.")
        if missing not in ("none", "skip"):
            raise ConfigError(f"missing is 'none' or 'skip', not {missing!r}.")
        self.parts = [(r if isinstance(r, Reward) else FunctionReward(r), float(weight)) for r, weight in parts]
        self.missing = missing

    async def score(self, task: Any, output: Any) -> float | None:
        """The sum."""
        found = await asyncio.gather(*(reward(task, output) for reward, _ in self.parts))
        there = [(value, weight) for value, (_, weight) in zip(found, self.parts, strict=True) if value is not None]
        if len(there) < len(self.parts) and (self.missing == "none" or not there):
            return None
        whole = math.fsum(weight for _, weight in self.parts)
        counted = math.fsum(weight for _, weight in there)
        total = math.fsum(value * weight for value, weight in there)
        return total if len(there) == len(self.parts) or not counted else total * whole / counted

    def __mul__(self, weight: float) -> Weighted:
        return Weighted(*((reward, own * weight) for reward, own in self.parts), missing=self.missing)

    __rmul__ = __mul__

    def __add__(self, other: Any) -> Weighted:
        parts = other.parts if isinstance(other, Weighted) else [(other, 1.0)]
        return Weighted(*self.parts, *parts, missing=self.missing)


def _takes_task(function: Callable[..., Any]) -> bool:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    needed = [p for p in parameters if p.kind in kinds and p.default is p.empty]
    return len(needed) != 1


def reference_of(task: Any, key: str | None = None) -> Any:
    """The reference answer of a task: the value under `key`, else under the first usual name; `None` without one."""
    if not isinstance(task, Mapping):
        return None
    if key is not None:
        return task.get(key)
    return next((task[name] for name in REFERENCE_KEYS if task.get(name) is not None), None)


def output_text(output: Any) -> str | None:
    """An output as text: itself, the usual entry of a mapping, else JSON; `None` stays `None`."""
    if output is None or isinstance(output, str):
        return output
    if isinstance(output, Mapping):
        for key in _OUTPUT_KEYS:
            if isinstance(output.get(key), str):
                return output[key]
    stdout = getattr(output, "stdout", None)
    if isinstance(stdout, str):
        return stdout.strip()
    return json.dumps(output, default=str, ensure_ascii=False)

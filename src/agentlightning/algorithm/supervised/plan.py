"""Which examples make which optimizer step, and what a run keeps of its data. Knows no models."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from agentlightning.algorithm.datasets import split_dataset
from agentlightning.kit.errors import ConfigError, StorageError
from agentlightning.kit.files import write_atomic

T = TypeVar("T")

_FREE = ("checkpoint_every", "keep_checkpoints", "microbatch_tokens", "eval_every")
"""Settings that may change when a run is continued."""


class Measure(msgspec.Struct, kw_only=True):
    """Held-out examples under some weights."""

    facts: dict[str, float]
    values: list[float]
    """Of each example, the greater the better: what the gain is computed from."""


class Prepared(msgspec.Struct, Generic[T], kw_only=True):
    """The data of a run as tokens; kept, so that a run that continues learns from the same ones."""

    settings: dict[str, Any]
    train: list[T]
    held_out: list[T]
    report: dict[str, Any]
    before: Measure | None
    """The held-out examples under the weights the run began with."""


def plan_steps(sizes: Sequence[int], *, epochs: int, batch_tokens: int, seed: int) -> list[list[int]]:
    """The examples of each step: every epoch takes all of them once, in an order of its own.

    Args:
        sizes: Tokens of each example.
        epochs: How often each is taken.
        batch_tokens: Most tokens of a step; an example that has more is alone.
        seed: Decides the orders.
    """
    steps: list[list[int]] = []
    for epoch in range(epochs):
        order = list(range(len(sizes)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        step: list[int] = []
        filled = 0
        for place in order:
            if step and filled + sizes[place] > batch_tokens:
                steps.append(step)
                step, filled = [], 0
            step.append(place)
            filled += sizes[place]
        steps.append(step)
    return [step for step in steps if step]


def split(found: Sequence[tuple[str, T]], share: float, seed: int) -> tuple[list[T], list[T]]:
    """Training and held-out examples; tasks stay together. With fewer than two tasks nothing is held out."""
    if share <= 0 or len({key for key, _ in found}) < 2:
        return [example for _, example in found], []
    parts = split_dataset(found, {"train": 1 - share, "held_out": share}, seed=seed, key=lambda pair: pair[0])
    return [example for _, example in parts["train"]], [example for _, example in parts["held_out"]]


def keep(path: Path, prepared: Prepared[Any]) -> None:
    """Write the data of a run."""
    write_atomic(path, msgspec.msgpack.encode(prepared))


def kept(path: Path, kind: type[Prepared[T]], settings: dict[str, Any]) -> Prepared[T] | None:
    """The data of a run that continues, if it does.

    Raises:
        ConfigError: The run began with other settings or data.
        StorageError: The file cannot be read.
    """
    if not path.exists():
        return None
    try:
        found = msgspec.msgpack.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise StorageError(f"Cannot read {path}: {error}.", hint="Start the run anew under another run id.") from error
    changed = [
        name
        for name in sorted({*settings, *found.settings} - set(_FREE))
        if settings.get(name) != found.settings.get(name)
    ]
    if changed:
        told = ", ".join(f"{name} {found.settings.get(name)} (now {settings.get(name)})" for name in changed)
        raise ConfigError(
            f"This run began with other settings: {told}.", hint="Give those, or start anew under another run id."
        )
    return found

"""0.3's execution strategies as objects: they say where runners are, and the trainer does the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from agentlightning.kit.errors import ConfigError


class ExecutionStrategy:
    """Where runners are."""

    alias: str
    n_runners: int | None = None


class SharedMemoryExecutionStrategy(ExecutionStrategy):
    """One runner in this process; the same as `Trainer(strategy="shm")`.

    Args:
        n_runners: One.
        main_thread: Has no effect: algorithm and runner share an event loop.
        join_timeout: Has no effect.
        graceful_delay: Has no effect.
        poll_interval: Has no effect.
        managed_store: Has no effect.

    Raises:
        ConfigError: More than one runner.
    """

    alias = "shm"

    def __init__(
        self,
        n_runners: int = 1,
        main_thread: Literal["algorithm", "runner"] = "runner",
        join_timeout: float = 15.0,
        graceful_delay: float = 5.0,
        poll_interval: float = 0.05,
        managed_store: bool | None = None,
    ) -> None:
        if n_runners != 1:
            raise ConfigError(
                "There is one runner in this process.",
                hint="Raise max_concurrency, or use runners of their own ('cs').",
            )
        self.n_runners = n_runners
        del main_thread, join_timeout, graceful_delay, poll_interval, managed_store


class ClientServerExecutionStrategy(ExecutionStrategy):
    """Runner processes; the same as `Trainer(strategy="cs", n_runners=...)`.

    Args:
        role: `"both"`. A side alone is another program here: `agl runner --store URL`, or an algorithm on a
            `LightningStoreClient`.
        server_host: Address of gateway and store; by default that of the settings.
        server_port: Port; by default that of the settings.
        n_runners: Runner processes.
        graceful_timeout: Has no effect.
        terminate_timeout: Has no effect.
        main_process: Has no effect: the algorithm is in this process.
        managed_store: Has no effect.
        allowed_exit_codes: Has no effect.

    Raises:
        ConfigError: One role alone is asked for.
    """

    alias = "cs"

    def __init__(
        self,
        role: Literal["algorithm", "runner", "both"] | None = None,
        server_host: str | None = None,
        server_port: int | None = None,
        n_runners: int = 1,
        graceful_timeout: float = 10.0,
        terminate_timeout: float = 10.0,
        main_process: Literal["algorithm", "runner"] = "algorithm",
        managed_store: bool | None = None,
        allowed_exit_codes: Iterable[int] = (0, -15),
    ) -> None:
        if role not in (None, "both"):
            raise ConfigError(
                f"A trainer has both sides; role={role!r} alone is another program.",
                hint="Runners elsewhere: agl runner --store URL. An algorithm alone: use LightningStoreClient(URL).",
            )
        self.server_host = server_host
        self.server_port = server_port
        self.n_runners = n_runners
        del graceful_timeout, terminate_timeout, main_process, managed_store, allowed_exit_codes

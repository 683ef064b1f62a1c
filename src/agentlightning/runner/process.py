"""Runner processes: started, watched, restarted when they die, and taken down without a trace.

Knows nothing of the algorithm. The agent travels by import path or by value; environment variables are set before it is
imported, so clients that it makes at import time talk to the gateway.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentlightning.agent.hook import Hook
from agentlightning.kit.asyncs import cancelled
from agentlightning.kit.errors import AgentLightningError, ConfigError, ConflictError
from agentlightning.runner.member import Member, Plan
from agentlightning.runner.place import RunnerStartError
from agentlightning.runner.policy import FailurePolicy
from agentlightning.runner.transport import Parcel, pack
from agentlightning.runner.worker import MARKER
from agentlightning.store import access
from agentlightning.store.base import AttemptUpdate, LightningStore

logger = logging.getLogger(__name__)

__all__ = ["RunnerPool", "RunnerStartError"]

_RECYCLE_ISOLATED_AFTER = 200
_BEAT_TIMEOUT_S = 10.0


class RunnerPool:
    """Runs an agent in processes of its own.

    Args:
        agent: Anything `as_agent` understands.
        store_url: Address of the store.
        n_runners: Processes.
        max_concurrency: Rollouts at once in each; 64 by default, 1 when isolated.
        evaluator: See `LitAgentRunner`.
        policy: See `FailurePolicy`.
        gateway_url: Base URL of the gateway; agents get it as `OPENAI_BASE_URL` and the like.
        gateway_key: API key for it, if it asks for one; agents get it as `OPENAI_API_KEY` and the like.
        model: Name of the model; agents get it as `OPENAI_MODEL`.
        env: More environment variables; they have the last word.
        log_path: File for the output of the runner; with several, each gets one with its number.
        max_rollouts: End after so many, each.
        hooks: Callbacks around rollouts.
        store: The store itself where it is at hand, to settle what a dead process leaves; else reached by its address.
        max_restarts: How often one runner may die within five minutes before it is given up.
        start_timeout_s: How long importing the agent may take.
        drain_timeout_s: How long running rollouts may finish when the pool is stopped.
        heartbeat_interval: Seconds between signs of life; claims hold for three of them.
        isolated: One rollout at a time in each process, for agents that block, leak or crash: they take nothing with
            them. A process that does not react past its rollout's time limit is killed; whoever dies is replaced.
        recycle_after: Replace each process after so many rollouts; by default 200 when isolated, else never.
        store_token: The store's token; by default `AGL_STORE_TOKEN`. Processes get it in their environment.
        store_patience_s: How long an unreachable store is waited for.
        spool: Folder where reports wait while the store is away; see `agentlightning.runner.spool`.
    """

    def __init__(
        self,
        agent: Any,
        *,
        store_url: str,
        n_runners: int = 1,
        max_concurrency: int | None = None,
        evaluator: Callable[..., Any] | str | None = None,
        policy: FailurePolicy | None = None,
        gateway_url: str | None = None,
        gateway_key: str | None = None,
        model: str | None = None,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        max_rollouts: int | None = None,
        hooks: Sequence[Hook] = (),
        store: LightningStore | None = None,
        max_restarts: int = 5,
        start_timeout_s: float = 120.0,
        drain_timeout_s: float = 5.0,
        heartbeat_interval: float = 10.0,
        isolated: bool = False,
        recycle_after: int | None = None,
        store_token: str | None = None,
        store_patience_s: float | None = None,
        spool: Path | None = None,
    ) -> None:
        if n_runners < 1:
            raise ConfigError(f"n_runners must be at least 1, it is {n_runners}.")
        if isolated and max_concurrency not in (None, 1):
            raise ConfigError("An isolated runner has one rollout at a time: leave max_concurrency alone.")
        self.store_url = store_url
        self.policy = policy or FailurePolicy()
        self.max_restarts = max_restarts
        self.start_timeout_s = start_timeout_s
        self.drain_timeout_s = drain_timeout_s
        self._n_runners = n_runners
        self._log_path = log_path
        self._agent = agent
        self._evaluator = evaluator
        self._hooks = list(hooks)
        self._options: dict[str, Any] = {
            "max_concurrency": max_concurrency or (1 if isolated else 64),
            "policy": self.policy,
            "gateway_url": gateway_url,
            "store_patience_s": store_patience_s,
            "drain_timeout_s": drain_timeout_s,
            "heartbeat_interval": heartbeat_interval,
        }
        self._max_rollouts = max_rollouts
        self._isolated = isolated
        self._heartbeat_interval = heartbeat_interval
        self._pulse: asyncio.Task[None] | None = None
        self._recycle_after = _RECYCLE_ISOLATED_AFTER if isolated and recycle_after is None else recycle_after
        self._store_token = access.store_token(store_token)
        self._spool = spool.absolute() if spool is not None else None
        token = {access.TOKEN_VARIABLE: self._store_token} if self._store_token is not None else {}
        self._env = {**model_variables(store_url, gateway_url, gateway_key, model), **token, **(env or {})}
        self._given_store = store
        self._store: LightningStore | None = store
        self._members: list[Member] = []
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self.failure: AgentLightningError | None = None
        """Set when no runner is left to do the work."""

    @property
    def restarts(self) -> int:
        """Processes that died and were replaced."""
        return sum(member.restarts for member in self._members)

    async def start(self) -> None:
        """Start the processes; returns when all are ready.

        Raises:
            RunnerStartError: One could not begin; the message has the cause, the others are stopped.
            AgentLoadError: The agent cannot be sent to another process.
            ConfigError: Called from inside a runner process.
        """
        if os.environ.get(MARKER):
            raise ConfigError(
                "Training was started again from inside a runner process, while it imported the script.",
                hint='Start it under `if __name__ == "__main__":`.',
            )
        plan = self._plan()
        self._members = [Member(index, plan) for index in range(self._n_runners)]
        try:
            async with asyncio.timeout(self.start_timeout_s):
                await asyncio.gather(*(member.start() for member in self._members))
        except TimeoutError:
            await self.stop()
            raise RunnerStartError(
                f"The runners were not ready after {self.start_timeout_s:.0f} s.",
                hint="Look at what the agent's module does when it is imported.",
            ) from None
        except BaseException:
            await self.stop()
            raise
        for member in self._members:
            member.watch()
        if self._isolated and self._heartbeat_interval > 0:
            self._pulse = asyncio.create_task(self._beat(), name="agentlightning-pool-pulse")

    def _plan(self) -> Plan:
        agent = pack(self._agent)
        self._scratch = tempfile.TemporaryDirectory(prefix="agl-runners-")
        return Plan(
            store_url=self.store_url,
            agent=agent,
            evaluator=_packed(self._evaluator),
            hooks=_packed(self._hooks),
            options=self._options,
            env={"PYTHONUNBUFFERED": "1", **self._env},
            log_paths=[self._log_path_of(index, Path(self._scratch.name)) for index in range(self._n_runners)],
            policy=self.policy,
            store=self._settling_store,
            gave_up=self._gave_up,
            max_restarts=self.max_restarts,
            start_timeout_s=self.start_timeout_s,
            drain_timeout_s=self.drain_timeout_s,
            isolated=self._isolated,
            max_rollouts=self._max_rollouts,
            recycle_after=self._recycle_after,
            spool=self._spool,
        )

    def _log_path_of(self, index: int, scratch: Path) -> Path:
        if self._log_path is None:
            return scratch / f"runner-{index}.log"
        if self._n_runners == 1:
            return self._log_path
        return self._log_path.with_name(f"{self._log_path.stem}-{index}{self._log_path.suffix}")

    async def _beat(self) -> None:
        """Signs of life on behalf of isolated processes: an agent may block its own for as long as its limit allows."""
        while True:
            await asyncio.sleep(self._heartbeat_interval)
            now = time.time()
            alive = [
                AttemptUpdate(rollout_id=rollout_id, attempt_id=attempt_id, last_heartbeat_time=now)
                for rollout_id, attempt_id in (member.current for member in self._members if member.current)
            ]
            try:
                async with asyncio.timeout(_BEAT_TIMEOUT_S):
                    if alive:
                        await self._settling_store().update_many_attempts(alive)
            except ConflictError:
                pass  # one has ended meanwhile; the others are noted
            except (AgentLightningError, OSError) as error:  # OSError: TimeoutError too
                logger.info("The heartbeat of isolated runners failed: %r", error)

    async def stop(self) -> None:
        """Let running rollouts finish for `drain_timeout_s`, then end the processes and all they have started."""
        await asyncio.gather(*(member.stop() for member in self._members))
        if self._pulse is not None:
            await cancelled(self._pulse)
            self._pulse = None
        if self._store is not None and self._given_store is None:
            await self._store.close()
            self._store = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    async def wait(self) -> None:
        """Wait until all processes have ended by themselves, as they do after `max_rollouts`.

        Raises:
            AgentLightningError: They were given up.
        """
        await asyncio.gather(*(member.ended() for member in self._members))
        if self.failure is not None:
            raise self.failure

    def pids(self) -> list[int]:
        """Process ids of the runners that are alive."""
        return [member.process.pid for member in self._members if member.process and member.process.returncode is None]

    def _settling_store(self) -> LightningStore:
        if self._store is None:
            from agentlightning.store import LightningStoreClient

            self._store = LightningStoreClient(self.store_url, token=self._store_token)
        return self._store

    def _gave_up(self, error: AgentLightningError) -> None:
        logger.error("%s", error)
        if all(member.is_over for member in self._members):
            self.failure = error


def model_variables(
    store_url: str, gateway_url: str | None, gateway_key: str | None, model: str | None
) -> dict[str, str]:
    """Variables that tell agents where store, gateway and model are."""
    variables = {"AGL_STORE_URL": store_url}
    if gateway_url:
        root = gateway_url.rstrip("/").removesuffix("/v1")
        variables |= {
            "AGL_GATEWAY_URL": gateway_url,
            "OPENAI_BASE_URL": f"{root}/v1",
            "OPENAI_API_BASE": f"{root}/v1",
            "ANTHROPIC_BASE_URL": root,
            "OPENAI_API_KEY": gateway_key or os.environ.get("OPENAI_API_KEY") or "unused",
            "ANTHROPIC_API_KEY": gateway_key or os.environ.get("ANTHROPIC_API_KEY") or "unused",
        }
    if gateway_key:
        variables |= {"AGL_GATEWAY_KEY": gateway_key, "AGL_GATEWAY_KEYS": ""}  # its other keys are none of theirs
    if model:
        variables["OPENAI_MODEL"] = model
    return variables


def _packed(obj: Any) -> Parcel | None:
    return pack(obj) if obj else None

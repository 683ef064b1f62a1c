"""Runs experiments that wait, one at a time, each in a process of its own that is on this worker's leash.

A worker that dies is noticed by its lease; whoever takes the experiment then goes on where it was, under the same run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import secrets
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from datetime import timedelta
from typing import Any

from agentlightning.kit.errors import AgentLightningError, ForbiddenError
from agentlightning.kit.leash import leashed
from agentlightning.platform.agents.service import AgentService
from agentlightning.platform.auth.keys import KeyService
from agentlightning.platform.auth.permissions import granted_to, may
from agentlightning.platform.columns import now
from agentlightning.platform.context import Identity
from agentlightning.platform.database import Database, is_unavailable
from agentlightning.platform.learning import repository
from agentlightning.platform.learning.algorithms import ExperimentConfig
from agentlightning.platform.learning.models import COMPLETED, CREATED, FAILED, RUNNING, STOPPED, Experiment
from agentlightning.platform.learning.order import STOPPED_CODE, Job, Trained
from agentlightning.platform.learning.service import ExperimentService
from agentlightning.platform.learning.weights import Weights, base_in
from agentlightning.platform.masking import Masking
from agentlightning.platform.settings import PlatformSettings

log = logging.getLogger(__name__)

LOOK_S = 2.0
LEASE_S = 30.0
_BEAT_S = 5.0
_MAX_ATTEMPTS = 3
_END_S = 30.0
_KEY_S = 7 * 86_400
_MAX_LINE = 16 * 2**20
_TAIL_CHARS = 2_000


class _OwnerGoneError(ForbiddenError):
    code = "OWNER_GONE"


class Supervisor:
    """Of one worker.

    Args:
        settings: Of the platform.
        database: Where experiments wait.
        agents: Who is improved.
        experiments: Who knows their owners.
        keys: Makes the key with which a process reaches the models.
        weights: Says which model reads a prompt, and where the weights are that an experiment trains.
        url: Where this platform is reached from this machine; nothing is run while it is empty.
        masking: For what is kept of errors.
    """

    def __init__(
        self,
        settings: PlatformSettings,
        database: Database,
        agents: AgentService,
        experiments: ExperimentService,
        keys: KeyService,
        weights: Weights,
        url: Callable[[], str],
        masking: Masking,
    ) -> None:
        self._masking = masking
        self._settings = settings
        self._database = database
        self._agents = agents
        self._experiments = experiments
        self._keys = keys
        self._weights = weights
        self._worker = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(3)}"
        self._url = url

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Look for experiments within the block; what runs at its end goes on elsewhere, or after a restart."""
        task = asyncio.create_task(self._look())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _look(self) -> None:
        while True:
            try:
                found = await self._claim() if self._url() else None
                if found is not None:
                    await self._run(found)
                    continue
            except Exception as error:
                if not is_unavailable(error):
                    log.exception("an experiment cannot be run")
            await asyncio.sleep(LOOK_S)

    async def _claim(self) -> Experiment | None:
        async with self._database.write() as session:
            return await repository.claim(session, self._worker, now(), now() + timedelta(seconds=LEASE_S))

    async def _run(self, experiment: Experiment) -> None:
        try:
            owner = await self._owner(experiment)
            made, key = await self._keys.create(owner, f"experiment {experiment.name}"[:100], _KEY_S, ["rl:execute"])
        except AgentLightningError as error:
            await self._end(experiment, FAILED, error=f"{error.code}: {error}")
            return
        try:
            job = await self._job(experiment, owner, key)
            await self._follow(experiment, job)
        except AgentLightningError as error:
            await self._end(experiment, FAILED, error=f"{error.code}: {error}")
        except asyncio.CancelledError:
            await self._end(experiment, CREATED)  # whoever starts next goes on with it
            raise
        finally:
            await asyncio.shield(self._keys.remove(owner, made.id))

    async def _owner(self, experiment: Experiment) -> Identity:
        owner = await self._experiments.owner(experiment)
        if owner is None or not may(owner.role, None, "rl:execute"):
            raise _OwnerGoneError("Whoever began this experiment may not run any more.", hint="Begin it anew.")
        return owner

    async def _job(self, experiment: Experiment, owner: Identity, key: str) -> Job:
        """What the process is told.

        Raises:
            AgentLightningError: The agent is gone, or there is no model for it.
        """
        config = ExperimentConfig.model_validate(experiment.config)
        _, version = await self._agents.version(experiment.agent_id or 0, experiment.agent_version)
        definition = self._agents.definition_of(version)
        trained = await self._trained(experiment)
        if trained is None:
            model = await self._weights.reader_of(definition, config)
        else:
            model = await self._weights.judge() or ""
        # A run of weights is named by its beginning, too: checkpoints of another database's would be gone on with.
        begun = "" if trained is None else f"-{experiment.created_at:%Y%m%d%H%M%S}"
        return Job(
            run_id=f"experiment-{experiment.id}{begun}",
            home=self._settings.home,
            store=self._settings.store_location,
            definition=definition,
            algorithm=experiment.algorithm,
            config=config,
            model=model,
            base_url=f"{self._url()}/v1",
            api_key=key,
            permissions=granted_to(owner.role),
            weights=trained,
        )

    async def _trained(self, experiment: Experiment) -> Trained | None:
        base = base_in(experiment)
        if base is None:
            return None
        found = await self._weights.locate(base)
        return Trained(path=found.path, device=found.device, style=base.style, name=base.name)

    async def _follow(self, experiment: Experiment, job: Job) -> None:
        command = leashed([sys.executable, "-m", "agentlightning.platform.learning.job"])
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_MAX_LINE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        tail = asyncio.create_task(_tail(process.stderr))
        beat = asyncio.create_task(self._beat(experiment, process))
        ended: dict[str, Any] = {}
        try:
            process.stdin.write(job.model_dump_json().encode())
            await process.stdin.drain()
            process.stdin.close()
            async for line in process.stdout:
                said = json.loads(line)
                if said["type"] == "progress":
                    await self._note(experiment, said["event"])
                else:
                    ended = said
            await process.wait()
        except (ConnectionError, ValueError) as error:
            log.warning("experiment %s said something unreadable: %s", experiment.name, error)
        finally:
            beat.cancel()
            await _finished(process)
        await self._conclude(experiment, ended, process.returncode, await tail)

    async def _conclude(self, experiment: Experiment, ended: dict[str, Any], code: int | None, tail: str) -> None:
        if ended.get("type") == "result":
            if (base := base_in(experiment)) is not None:
                await self._weights.prune(base.name, self._settings.kept_candidates)
            await self._end(experiment, COMPLETED, result=ended)
        elif code == STOPPED_CODE or (ended.get("code") == "RUN_STOPPED"):
            await self._end(experiment, STOPPED)
        elif ended.get("type") == "error":
            text = " ".join(str(ended.get(part) or "") for part in ("message", "hint")).strip()
            await self._end(experiment, FAILED, error=f"{ended.get('code')}: {text}")
        elif experiment.attempts < _MAX_ATTEMPTS:
            log.warning("experiment %s ended with code %s and is run again: %s", experiment.name, code, tail)
            await self._end(experiment, CREATED)
        else:
            await self._end(experiment, FAILED, error=f"Its process ended with code {code}: {tail}")

    async def _beat(self, experiment: Experiment, process: asyncio.subprocess.Process) -> None:
        """Renew the lease, and end the process when somebody asks for it or another worker has taken over."""
        while True:
            await asyncio.sleep(_BEAT_S)
            try:
                async with self._database.write() as session:
                    found = await repository.by_id(session, experiment.id, lock=True)
                    is_ours = found is not None and found.worker == self._worker and found.status == RUNNING
                    if found is not None and is_ours:
                        found.lease_until = now() + timedelta(seconds=LEASE_S)
                    is_over = not is_ours or (found is not None and found.stop_requested)
            except Exception as error:
                if not is_unavailable(error):
                    raise
                continue  # the lease may run out meanwhile; whoever takes over says so
            if is_over and process.returncode is None:
                process.terminate()

    async def _note(self, experiment: Experiment, event: dict[str, Any]) -> None:
        async with self._database.write() as session:
            found = await repository.by_id(session, experiment.id, lock=True)
            if found is not None and found.worker == self._worker and found.status == RUNNING:
                found.metrics = {**found.metrics, "progress": _finite(event)}

    async def _end(
        self,
        experiment: Experiment,
        status: str,
        *,
        error: str | None = None,
        result: dict[str, Any] | None = None,
    ) -> None:
        async with self._database.write() as session:
            found = await repository.by_id(session, experiment.id, lock=True)
            if found is None or found.worker != self._worker:
                return  # another worker has it
            stopped = status in (CREATED, FAILED) and found.stop_requested and error is None
            found.status = STOPPED if stopped else status
            found.lease_until, found.worker = None, None
            if found.status != CREATED:
                found.end_time = now()
            if error is not None:
                found.error_message = self._masking.text(error)[:2_000]
            if result is not None:
                found.metrics = _finite(result["metrics"])
                if result["checkpoint"] is not None:
                    made = {**result["checkpoint"], "at": now().isoformat()}
                    found.checkpoints = [*found.checkpoints, made]


async def _tail(stream: asyncio.StreamReader) -> str:
    """The last of what is written there."""
    kept = b""
    while piece := await stream.read(65_536):
        kept = (kept + piece)[-4 * _TAIL_CHARS :]
    return kept.decode(errors="replace")[-_TAIL_CHARS:].strip()


async def _finished(process: asyncio.subprocess.Process) -> None:
    """Let it end by itself for a while, then end it."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _END_S)
    except TimeoutError:
        process.kill()
        await process.wait()


def _finite(value: Any) -> Any:
    """JSON that every database takes: no infinities, no NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

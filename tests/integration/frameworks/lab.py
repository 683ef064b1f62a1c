"""What the tests of agent frameworks share: the real engine behind a gateway and a store on one port, real tasks, the
interpreters that have the frameworks, and what must be true of every rollout afterwards.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import agentlightning as agl
from agentlightning import nano
from agentlightning.agent.adapter import calls_from_spans, merge_calls
from agentlightning.gateway import EngineUpstream, Gateway
from agentlightning.learner.client import EngineClient
from agentlightning.schemas import EnqueueRolloutRequest, ModelCall, Rollout
from agentlightning.store import InMemoryLightningStore, store_routes

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples" / "frameworks"
OTHER_PYTHON = Path(os.environ.get("AGL_FRAMEWORKS_PYTHON", ROOT / ".venv-frameworks" / "bin" / "python"))
"""The environment of the frameworks that hold other packages back; `make frameworks` builds it."""
QUIET = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
"""Frameworks that report to their makers, or ask them something, are told not to."""


@dataclass(frozen=True)
class Framework:
    """One agent of `examples/frameworks`."""

    file: str
    module: str
    """What has to be importable."""
    env: dict[str, str] = field(default_factory=dict[str, str])
    keeps_history: bool = True
    """Whether it sends back its own turns as they were, so that all calls of a rollout are one token sequence."""

    def python(self) -> str:
        """The interpreter to run it with; skips the test where there is none."""
        if importlib.util.find_spec(self.module) is not None:
            return sys.executable
        probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({self.module!r}) is None)"
        if not OTHER_PYTHON.exists() or subprocess.run([OTHER_PYTHON, "-c", probe], timeout=30).returncode:
            pytest.skip(f"{self.module} is not installed; `make frameworks` does it")
        return str(OTHER_PYTHON)


FRAMEWORKS = {
    "langchain": Framework("langchain_agent.py", "langchain_openai"),
    "openai-agents-responses": Framework("openai_agents_agent.py", "agents", {"OPENAI_API": "responses"}),
    "openai-agents-chat": Framework("openai_agents_agent.py", "agents", {"OPENAI_API": "chat_completions"}),
    "autogen": Framework("autogen_agent.py", "autogen_agentchat"),
    "crewai": Framework("crewai_agent.py", "crewai"),
}


class Lab:
    """A gateway in front of the embedded model, with the store on the same port."""

    def __init__(self, store: InMemoryLightningStore, gateway: Gateway) -> None:
        self.store = store
        self.gateway = gateway

    @property
    def url(self) -> str:
        return self.gateway.url

    def client_env(self) -> dict[str, str]:
        """What points an ordinary program to the gateway."""
        return {"OPENAI_BASE_URL": f"{self.url}/v1", "OPENAI_API_KEY": "unused", "OPENAI_MODEL": "default", **QUIET}

    async def enqueue(self, tasks: Sequence[Any], *, seed_base: int = 7) -> list[str]:
        """One rollout for each task, sampled from seeds."""
        await self.store.add_resources({"llm": self.gateway.llm()})
        requests = [EnqueueRolloutRequest(input=task) for task in tasks]
        ids = [rollout.rollout_id for rollout in await self.store.enqueue_many_rollouts(requests)]
        self.gateway.sampling.register(ids, {"max_tokens": 64}, seed_base=seed_base, samples_freely=True)
        return ids

    async def run(self, agent: Any, ids: Sequence[str], **options: Any) -> None:
        """Run the agent on these rollouts in this process."""
        runner: Any = agl.LitAgentRunner(max_rollouts=len(ids), max_concurrency=len(ids), **options)
        with runner.run_context(agent=agent, store=self.store):
            await asyncio.wait_for(runner.iter(), 100)

    async def calls(self, rollout_id: str) -> list[ModelCall]:
        return calls_from_spans(await self.store.query_spans(rollout_id))

    async def rollouts(self, ids: Sequence[str]) -> list[Rollout]:
        found = {rollout.rollout_id: rollout for rollout in await self.store.query_rollouts(rollout_id_in=list(ids))}
        return [found[rollout_id] for rollout_id in ids]

    async def check(self, ids: Sequence[str], *, keeps_history: bool = True) -> list[ModelCall]:
        """Every call is on its rollout, exact and trainable; every rollout has a reward and trains."""
        all_calls: list[ModelCall] = []
        for rollout in await self.rollouts(ids):
            spans = await self.store.query_spans(rollout.rollout_id)
            assert rollout.status == "succeeded", [span.attributes for span in spans]
            assert agl.find_final_reward(spans) in (0.0, 1.0)
            calls = calls_from_spans(spans)
            assert calls
            for call in calls:
                assert _asks(call, rollout.input["question"])
                assert call.trainable, call.not_trainable_because
                assert len(call.response_logprobs or ()) == len(call.response_token_ids or ()) > 0
                assert call.prompt_token_ids
            triplets = agl.TracerTraceToTriplet().adapt(spans)
            assert [t.response["token_ids"] for t in triplets] == [call.response_token_ids for call in calls]
            trajectories = merge_calls(calls)
            assert sum(len(t.span_ids) for t in trajectories) == len(calls)
            if keeps_history:
                assert len(trajectories) == 1, [t.break_reason for t in trajectories]
            all_calls += calls
        return all_calls


def _asks(call: ModelCall, question: str) -> bool:
    return any(message["role"] == "user" and question in str(message["content"]) for message in call.messages)


@asynccontextmanager
async def running_lab(engine: EngineClient) -> AsyncGenerator[Lab]:
    """Everything an agent needs, on a free port."""
    store = InMemoryLightningStore()
    try:
        async with Gateway(
            store, [EngineUpstream(engine)], extra_routes=store_routes(store), shutdown_grace_s=1
        ) as gateway:
            yield Lab(store, gateway)
    finally:
        await store.close()


def sql_tasks(folder: Path, n: int) -> list[dict[str, Any]]:
    """Questions with their databases; no two the same."""
    return nano.make_tasks("train", n, 0, folder)


_made: list[Any] = []


@contextmanager
def holding_clients() -> Generator[None]:
    """Hold every HTTP client that is made meanwhile, for `close_clients`.

    Frameworks drop theirs unclosed, and when Python finds them is up to it: then the connection is still open.
    """
    with ExitStack() as patches:
        for module in [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]:
            for kind in (module.Client, module.AsyncClient):
                patches.enter_context(patch.object(kind, "__init__", _noting(kind.__init__)))
        yield
    _made.clear()


async def close_clients() -> None:
    """Close what frameworks keep open for ever, within the loop it belongs to."""
    for client in _made:
        if client.is_closed:
            continue
        if hasattr(client, "aclose"):
            await client.aclose()
        else:
            client.close()


def _noting(construct: Callable[..., None]) -> Callable[..., None]:
    @wraps(construct)
    def noting(self: Any, *arguments: Any, **options: Any) -> None:
        construct(self, *arguments, **options)
        _made.append(self)

    return noting


def train_nano(folder: Path, *arguments: str) -> tuple[list[dict[str, Any]], Path]:
    """`agl train` for two small steps on the embedded model; returns what it noted of each, and the run's folder."""
    recipe = ["steps=2", "prompts_per_step=4", "group_size=4", "eval_every=0", "max_tokens=64", "learning_rate=5e-4"]
    done = subprocess.run(
        [sys.executable, "-m", "agentlightning.cli.main", "train", "--model", "nano", "--json", *arguments]
        + [word for setting in recipe for word in ("--set", setting)],
        env={**os.environ, **QUIET, "AGL_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [run] = (folder / "home" / "runs").iterdir()
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if entry["type"] == "step"]
    assert [step["step"] for step in steps] == [1, 2]
    return steps, run

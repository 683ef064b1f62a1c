"""The gateways that are measured beside ours: how they are started, and where they keep what they captured.

Each in an environment of its own (`peers.py`), one worker process, in the configuration its documentation gives for
recording calls of a vLLM server.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import peers

from agentlightning.kit.http import free_port

START_S = 180.0
SETTLE_S = 10.0
HERE = Path(__file__).resolve().parent


@dataclass
class Record:
    """One captured choice, in whatever form the gateway kept it; `None` for what it did not keep."""

    prompt: str
    message: dict[str, Any]
    prompt_ids: list[int] | None
    token_ids: list[int] | None
    logprobs: list[float] | None
    choice: int = 0
    response_id: str | None = None
    owner: str | None = None


@dataclass
class Base:
    """Where one agent calls: `openai` with `/v1`, `anthropic` without."""

    owner: str
    openai: str
    anthropic: str


class Subject(Protocol):
    """A gateway under test."""

    name: str

    async def bases(self, count: int) -> list[Base]: ...

    async def records(self) -> list[Record]:
        """What was captured since the last `bases`."""
        ...


@dataclass
class Peer:
    """A running peer."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    capture_file: Path
    _seen: int = 0
    _sessions: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    def path(self, agent: int) -> str:
        """Of the chat completions for the speed test."""
        return f"/sessions/s{agent}/v1/chat/completions" if self.name == RLLM else "/v1/chat/completions"

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)

    async def bases(self, count: int) -> list[Base]:
        url = f"http://127.0.0.1:{self.port}"
        if self.name == LITELLM:
            self._seen = len(self._lines())
            return [Base("", f"{url}/v1", url) for _ in range(count)]
        self._sessions = [uuid.uuid4().hex for _ in range(count)]
        return [Base(sid, f"{url}/sessions/{sid}/v1", f"{url}/sessions/{sid}") for sid in self._sessions]

    async def records(self) -> list[Record]:
        # Both record after they have answered: wait until no more comes.
        found: list[Record] = []
        deadline, stable = time.monotonic() + SETTLE_S, 0
        while time.monotonic() < deadline and stable < 5:
            now = await self._records()
            stable = stable + 1 if len(now) == len(found) else 0
            found = now
            await asyncio.sleep(0.2)
        return found

    async def _records(self) -> list[Record]:
        if self.name == LITELLM:
            return [record for line in self._lines()[self._seen :] for record in litellm_records(json.loads(line))]
        async with aiohttp.ClientSession() as session:
            found: list[Record] = []
            for sid in self._sessions:
                async with session.get(f"http://127.0.0.1:{self.port}/sessions/{sid}/traces") as answer:
                    found += [record for trace in await answer.json() for record in rllm_records(trace)]
        return found

    def _lines(self) -> list[str]:
        return self.capture_file.read_text().splitlines() if self.capture_file.exists() else []


LITELLM, RLLM = "litellm", "rllm-model-gateway"


def start(name: str, upstream: str, folder: Path) -> Peer:
    """Start a peer in front of `upstream` (a URL with `/v1`); returns when it answers."""
    folder = folder / f"{name}-{uuid.uuid4().hex[:6]}"
    folder.mkdir(parents=True)
    port = free_port()
    environment = {**os.environ, "CAPTURE_FILE": str(folder / "captured.jsonl"), "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONPATH", None)
    command = [str(peers.peer_command(name))]
    if name == LITELLM:
        shutil.copy(HERE / "litellm_capture.py", folder)
        (folder / "config.yaml").write_text(json.dumps(litellm_config(upstream)))  # JSON is YAML
        command += ["--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--num_workers", "1", "--telemetry", "False"]
        # It would ask the network for prices when imported.
        environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "PYTHONPATH": str(folder)}
        environment["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # no key to check: it is faster
    else:
        command += ["--host", "127.0.0.1", "--port", str(port), "--worker", upstream]
        command += ["--db-path", str(folder / "traces.db"), "--log-level", "ERROR"]
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    peer = Peer(name, port, process, log, folder / "captured.jsonl")
    path = "/health/liveliness" if name == LITELLM else "/health"
    _wait_until_up(peer, f"http://127.0.0.1:{port}{path}")
    return peer


def litellm_config(upstream: str) -> dict[str, Any]:
    parameters = {"model": "hosted_vllm/mock", "api_base": upstream, "api_key": "any", "logprobs": True}
    parameters["extra_body"] = {"return_token_ids": True}
    return {
        "model_list": [{"model_name": "mock", "litellm_params": parameters}],
        # One refused call shall not close the way for the next case.
        "router_settings": {"disable_cooldowns": True, "num_retries": 0},
        "litellm_settings": {"callbacks": "litellm_capture.capture", "num_retries": 0, "telemetry": False},
    }


def _wait_until_up(peer: Peer, url: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and peer.process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    peer.process.kill()
    sys.exit(f"{peer.name} did not start:\n{peer.log.read_text()[-3000:]}")


def litellm_records(line: dict[str, Any]) -> list[Record]:
    response = line["response"]
    if not isinstance(response, dict):
        return []
    found: list[Record] = []
    top = response.get("provider_specific_fields") or {}
    for position, choice in enumerate(response.get("choices") or []):
        own = {**(choice.get("provider_specific_fields") or {}), **choice}
        record = Record(
            prompt=prompt_of(line["messages"]),
            message=choice.get("message") or {},
            prompt_ids=response.get("prompt_token_ids") or top.get("prompt_token_ids"),
            token_ids=own.get("token_ids"),
            logprobs=logprobs_of(choice),
            choice=choice.get("index", position),
            response_id=response.get("id"),
        )
        found.append(record)
    return found


def rllm_records(trace: dict[str, Any]) -> list[Record]:
    prompt, owner = prompt_of(trace["messages"]), trace["session_id"]
    raw = trace.get("raw_response")
    if not raw:  # a streamed answer
        return [
            Record(
                prompt=prompt,
                message=trace["response_message"],
                prompt_ids=trace["prompt_token_ids"],
                token_ids=trace["completion_token_ids"],
                logprobs=trace["logprobs"],
                owner=owner,
            )
        ]
    # Its own fields hold the first choice only; the raw answer that it keeps as well has all of them.
    return [
        Record(
            prompt=prompt,
            message=choice.get("message") or {},
            prompt_ids=raw.get("prompt_token_ids"),
            token_ids=choice.get("token_ids"),
            logprobs=logprobs_of(choice),
            choice=choice.get("index", position),
            response_id=raw.get("id"),
            owner=owner,
        )
        for position, choice in enumerate(raw.get("choices") or [])
    ]


def logprobs_of(choice: dict[str, Any]) -> list[float] | None:
    content = (choice.get("logprobs") or {}).get("content")
    return None if content is None else [entry["logprob"] for entry in content]


def prompt_of(messages: Any) -> str:
    content = messages[-1].get("content") if messages else ""
    return "".join(part.get("text", "") for part in content) if isinstance(content, list) else str(content)

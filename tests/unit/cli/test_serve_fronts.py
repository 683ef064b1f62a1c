"""`agl serve` in front of other servers, with a cache and masking, as it is typed."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from agentlightning.store import LightningStoreClient, SqlLightningStore
from tests.unit.gateway.hostile import HostileServer, saying, whole
from tests.unit.gateway.scripted import ScriptedOpenAIServer
from tests.unit.gateway.scripted_anthropic import ScriptedAnthropicServer

USER: Any = [{"role": "user", "content": "hello"}]
SERVE = [sys.executable, "-m", "agentlightning.cli.main", "serve", "--port", "0"]


def environment(home: Path, **more: str) -> dict[str, str]:
    left_out = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "AGL_GATEWAY_KEYS")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "AGL_HOME": str(home), "COLUMNS": "200", **more}


@asynccontextmanager
async def serving(home: Path, *options: str, **variables: str) -> AsyncGenerator[tuple[str, list[str]]]:
    """The URL, and what was printed: the rest of it after the end."""
    process = await asyncio.create_subprocess_exec(
        *SERVE, *options, env=environment(home, **variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(60):
            while "docs:" not in (lines or [""])[-1]:
                line = (await process.stdout.readline()).decode()
                assert line, "".join(lines)
                lines.append(line)
        found = re.search(r"listening on (\S+)", "".join(lines))
        assert found
        yield found[1], lines
        process.terminate()
        lines.append((await process.stdout.read()).decode())
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def refused(home: Path, *options: str) -> str:
    """What is said when the options do not fit."""
    done = subprocess.run(
        [*SERVE, *options], env=environment(home), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)


async def ask(agent: openai.AsyncOpenAI, **options: Any) -> str | None:
    request: dict[str, Any] = {"model": "m", "messages": USER, "temperature": 0, **options}
    answer = await agent.chat.completions.create(**request)
    return answer.choices[0].message.content


@pytest.mark.timeout(120)
async def test_openai_and_anthropic_servers_beside_each_other(tmp_path: Path) -> None:
    async with ScriptedOpenAIServer() as one, ScriptedAnthropicServer() as other:
        options = ["--base-url", one.base_url, "--anthropic-url", other.base_url]
        async with serving(tmp_path, *options) as (url, lines), client(url) as agent:
            assert f"claude* (Anthropic): {other.base_url}" in "".join(lines)
            assert await ask(agent)
            assert (len(one.bodies), len(other.bodies)) == (1, 0)
            async with anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as claude:
                await claude.messages.create(model="claude-x", max_tokens=5, messages=USER)
            assert (len(one.bodies), len(other.bodies)) == (1, 1)


@pytest.mark.timeout(120)
async def test_an_anthropic_server_alone_answers_for_every_name(tmp_path: Path) -> None:
    async with (
        ScriptedAnthropicServer() as other,
        serving(tmp_path, "--anthropic-url", other.base_url) as (url, lines),
        anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as agent,
    ):
        assert f"all other models (Anthropic): {other.base_url}" in "".join(lines)
        assert (await agent.messages.create(model="any-name", max_tokens=5, messages=USER)).content


@pytest.mark.timeout(120)
async def test_repeated_calls_are_answered_from_the_cache_and_records_are_masked(tmp_path: Path) -> None:
    secretive: Any = [{"role": "user", "content": "write to ann@example.org"}]
    async with ScriptedOpenAIServer() as server:
        options = ["--base-url", server.base_url, "--mask", "email", "--store", str(tmp_path / "s.db")]
        options += ["--cache", "memory", "--cache-modes", "unattributed,val", "--cache-version", "2026-11"]
        async with serving(tmp_path, *options) as (url, _), client(url) as agent, aiohttp.ClientSession() as session:
            assert await ask(agent) == await ask(agent)
            assert len(server.bodies) == 1
            async with session.get(f"{url}/health") as reply:
                cache = (await reply.json())["stats"]["cache"]
            assert (cache["hits"], cache["misses"]) == (1, 1)
            store = LightningStoreClient(url)
            rollout = await store.start_rollout({"question": "?"})
            await store.close()
            scoped = client(f"{url}/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}")
            async with scoped:
                await ask(scoped, messages=secretive)
            assert server.bodies[-1]["messages"] == secretive
        kept = SqlLightningStore(str(tmp_path / "s.db"))
        [span] = await kept.query_spans(rollout.rollout_id)
        await kept.close()
        assert "ann@example.org" not in str(span.attributes)
        assert "[email]" in str(span.attributes)


@pytest.mark.timeout(120)
async def test_health_tells_of_a_server_that_is_down_and_of_a_pause(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(
        '[targets.t]\nbase_url = "http://127.0.0.1:9/v1"\nbreaker.min_calls = 1\nretry.max_attempts = 1\n'
        '[routes.m]\ntargets = ["t"]\n'
    )

    async with serving(tmp_path, "--routes", str(path)) as (url, _), aiohttp.ClientSession() as session:

        async def health() -> dict[str, Any]:
            async with session.get(f"{url}/health") as reply:
                return await reply.json()

        assert (await health())["status"] == "ok"
        async with client(url) as agent:
            with pytest.raises(openai.APIStatusError):
                await ask(agent)
        told = await health()
        assert (told["status"], told["stats"]["targets"]) == ("degraded", {"t": "open"})
        async with session.post(f"{url}/proxy/pause") as reply:
            assert reply.status == 200
        assert (await health())["status"] == "paused"


@pytest.mark.timeout(120)
async def test_credentials_in_urls_and_keys_are_sent_and_shown_nowhere(tmp_path: Path) -> None:
    echo = b'{"error": {"message": "no: s3cret-pa%20ss s3cret-pa ss dXNlcjpzM2NyZXQtcGEgc3M= sk-environment"}}'
    async with HostileServer(saying(whole(echo, "400 Bad Request")), saying(whole(b"<html>s3cret-pa ss"))) as server:
        base = server.url.replace("http://", "http://user:s3cret-pa%20ss@") + "/v1"
        options = ["--base-url", base, "--store", str(tmp_path / "s.db")]
        variables = {"OPENAI_API_KEY": "sk-environment", "AGL_DEBUG": "1"}
        told: list[str] = []
        async with serving(tmp_path, *options, **variables) as (url, lines), client(url) as agent:
            for _ in range(2):
                with pytest.raises(openai.APIStatusError) as caught:
                    await ask(agent)
                told.append(caught.value.response.text)
            async with aiohttp.ClientSession() as session:
                for path in ("/health", "/models", "/v1/models", "/metrics", "/docs", "/proxy/state"):
                    async with session.get(url + path) as reply:
                        told.append(await reply.text())
        assert b"Authorization: Basic dXNlcjpzM2NyZXQtcGEgc3M=" in server.requests[-1]
        assert server.url in "".join(lines)
        for text in (*told, "".join(lines)):
            for secret in ("s3cret-pa ss", "dXNlcjpzM2NyZXQtcGEgc3M="):
                assert secret not in text


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cache-modes", "val"], "--cache-modes without --cache"),
        (["--cache", "memory", "--cache-modes", "vall"], "Unknown modes to cache: vall"),
        (["--cache", "disk"], "'disk' is no place for a cache"),
        (["--cache", "redis://127.0.0.1:9/0", "--mask", "email"], "--mask and a cache in Redis exclude each other"),
        (["--mask", "emial"], "Unknown kinds to mask: emial"),
        (["--anthropic-url", "api.anthropic.com"], "--anthropic-url has to be a URL"),
        (["--base-url", "localhost:8000/v1"], "--base-url has to be a URL"),
        (["--litellm", "x="], "--litellm x= names no model"),
        (["--litellm", "a/b", "--litellm", "a/b"], "LiteLLM|called 'a/b'"),
        (["--model", "a=nano", "--litellm", "a=gemini/x"], "Two models are called 'a'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.slow
def test_options_that_do_not_fit_are_told(tmp_path: Path, options: list[str], message: str) -> None:
    assert re.search(message, refused(tmp_path, *options))


@pytest.mark.timeout(120)
def test_a_file_and_an_option_that_answer_for_every_name_are_told(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(
        'accept_any_model = true\n[targets.t]\nbase_url = "http://127.0.0.1:9/v1"\n[routes.m]\ntargets = ["t"]\n'
    )
    told = refused(tmp_path, "--base-url", "http://127.0.0.1:9/v1", "--routes", str(path))
    assert "both say who answers for all other names" in " ".join(told.split())

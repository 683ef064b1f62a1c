"""Command lines as agents, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shlex
import sys
import time
from typing import Any

import psutil
import pytest

import agentlightning as agl
from agentlightning.agent import AgentSignatureError, BadResultError
from agentlightning.kit.errors import ConfigError
from agentlightning.runner.command import CommandError, CommandOutput
from agentlightning.runner.failure import AttemptTimeoutError
from agentlightning.schemas import RolloutConfig
from tests.unit.agent.builders import attempted, bare

PYTHON = shlex.quote(sys.executable)


def script(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def run(agent: agl.CommandAgent, task: Any = None, resources: Any = None, rollout: Any = None) -> Any:
    tracer = agl.OtelTracer()
    rollout = rollout or attempted(task)
    async with tracer.trace_context(rollout_id=rollout.rollout_id, attempt_id="a1"):
        result = await agent.run(task, resources or {}, rollout)
        run.messages = {  # type: ignore[attr-defined]
            s.attributes["stream"]: agl.get_message_value(s) for s in tracer.get_last_trace()
        }
    return result


async def test_reward_is_on_the_last_json_line_of_stdout():
    lines = ['{"reward": 0.1}', "noise", "{broken", '{"reward": 0.5, "n": 2, "s": "x"}']
    code = f"print({chr(10).join(lines)!r}, end='')"
    assert await run(agl.CommandAgent(script(code))) == {"reward": 0.5, "n": 2}
    assert "noise" in run.messages["stdout"]


@pytest.mark.parametrize(
    ("printed", "expected"),
    [("", None), ("text", None), ('{"answer": 1}', None), ('{"reward": null}', {"reward": None}), ("[1]", None)],
)
async def test_no_reward_is_none(printed, expected):
    assert await run(agl.CommandAgent(["echo", printed])) == expected


async def test_reward_that_is_no_number_is_a_bad_result():
    with pytest.raises(BadResultError, match="'high'"):
        await run(agl.CommandAgent(["echo", '{"reward": "high"}']))


async def test_task_arrives_by_stdin_file_variable_and_placeholder():
    code = """
import json, os, sys
task = json.load(sys.stdin)
assert task == json.loads(os.environ['AGL_TASK']) == json.load(open(os.environ['AGL_TASK_FILE']))
print(json.dumps({"reward": 1, "same": sys.argv[1] == task["q"] and json.loads(sys.argv[2]) == task}))
"""
    agent = agl.CommandAgent([*script(code), "{q}", "{task}"])
    assert await run(agent, {"q": 'it\'s $(rm -rf /) `x` "y"'}) == {"reward": 1, "same": True}


async def test_large_task_travels_without_the_variable():
    code = "import os, sys; print('{\"reward\": %d}' % (len(sys.stdin.read()) * ('AGL_TASK' not in os.environ)))"
    assert (await run(agl.CommandAgent(script(code)), "x" * 1_000_000))["reward"] > 1_000_000


async def test_command_that_does_not_read_its_task_is_fine():
    assert await run(agl.CommandAgent(["true"]), "x" * 1_000_000) is None


async def test_shell_gets_quoted_values():
    agent = agl.CommandAgent("printf '{\"reward\": %d}' $(printf %s {q} | wc -c) | cat", shell=True)
    assert await run(agent, {"q": "a'b; echo"}) == {"reward": 9}


async def test_placeholder_without_value_is_said():
    with pytest.raises(AgentSignatureError, match=r"placeholder \{q\}, but the task has only \['x'\]"):
        await run(agl.CommandAgent("echo {q}"), {"x": 1})
    assert await run(agl.CommandAgent(["echo", '{"reward": {n}}']), 3) == {"reward": 3}
    assert await run(agl.CommandAgent(["awk", 'BEGIN {{exit}} END {print "{\\"reward\\": {n}}"}']), 3) == {"reward": 3}


@pytest.mark.parametrize(("code", "expected"), [(0, 1.0), (3, 0.0)])
async def test_exit_code_as_reward(code, expected):
    assert await run(agl.CommandAgent(["sh", "-c", f"exit {code}"], reward="exit-code")) == expected


def graded(task, output: CommandOutput) -> dict[str, float]:
    return {"reward": float(task in output.stdout), "code": output.exit_code}


async def test_evaluator_gets_the_output():
    agent = agl.CommandAgent(["sh", "-c", "echo hello; echo oops >&2; exit 2"], reward=graded)
    assert await run(agent, "hello") == {"reward": 1.0, "code": 2.0}
    assert run.messages == {"stdout": "hello\n", "stderr": "oops\n"}
    assert await run(agl.CommandAgent(["true"], reward=lambda output: None)) is None


@pytest.mark.parametrize("reward", ["stdout-json", "none"])
async def test_failing_command_is_an_error_with_its_last_words(reward):
    with pytest.raises(CommandError, match=r"code 2.*broken pipe dream"):
        await run(agl.CommandAgent(["sh", "-c", "echo broken pipe dream >&2; exit 2"], reward=reward))
    with pytest.raises(CommandError, match="signal SIGKILL"):
        await run(agl.CommandAgent(["sh", "-c", "kill -9 $$"], reward=reward))
    assert await run(agl.CommandAgent(["echo", '{"reward": 1}'], reward="none")) is None


async def test_command_that_does_not_exist_is_said():
    with pytest.raises(CommandError, match="Cannot start 'no-such-command'"):
        await run(agl.CommandAgent("no-such-command"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"command": ""}, "empty"),
        ({"command": []}, "empty"),
        ({"command": "echo 'x"}, "malformed"),
        ({"command": ["x"], "shell": True}, "one string"),
        ({"command": "x", "reward": "stdout"}, "Unknown reward source 'stdout'"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        agl.CommandAgent(**options)


async def test_environment_names_rollout_model_and_otlp(monkeypatch, tmp_path):
    monkeypatch.setenv("AGL_STORE_URL", "http://store:1")
    monkeypatch.setenv("AGL_RUNNER_WORKER", "1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    resources = {"llm": agl.ProxyLLM(endpoint="http://gate:2/v1", model="m")}
    code = (
        "import json, os; print(json.dumps({'reward': 1})); open('env.json', 'w').write(json.dumps(dict(os.environ)))"
    )
    await run(agl.CommandAgent(script(code), cwd=tmp_path, env={"EXTRA": "yes"}), "t", resources)
    env = json.loads((tmp_path / "env.json").read_text())
    bound = "http://gate:2/rollout/r1/attempt/a1"
    expected = {
        "OPENAI_BASE_URL": f"{bound}/v1",
        "ANTHROPIC_BASE_URL": bound,
        "OPENAI_API_KEY": "unused",
        "OPENAI_MODEL": "m",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://store:1",
        "OTEL_RESOURCE_ATTRIBUTES": "agentlightning.rollout_id=r1,agentlightning.attempt_id=a1",
        "AGL_ROLLOUT_ID": "r1",
        "AGL_ATTEMPT_ID": "a1",
        "AGL_STORE_URL": "http://store:1",
        "EXTRA": "yes",
    }
    assert {key: env.get(key) for key in expected} == expected
    assert "AGL_RUNNER_WORKER" not in env
    assert not os.path.exists(env["AGL_TASK_FILE"])  # noqa: ASYNC240


async def test_rollout_without_attempt_gets_no_attempt_id(tmp_path):
    code = "import json, os; open('env', 'w').write(json.dumps(dict(os.environ)))"
    await run(agl.CommandAgent(script(code), cwd=tmp_path), "t", rollout=bare("t"))
    assert "AGL_ATTEMPT_ID" not in json.loads((tmp_path / "env").read_text())


def alive(marker: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if marker in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


FAMILY = "trap '' TERM; sleep 60 & sleep 60 & wait"


@pytest.mark.parametrize("way", ["timeout", "cancel"])
async def test_whole_group_is_killed_on_timeout_and_cancellation(way, tmp_path):
    marker = f"marker-{os.getpid()}-{way}"
    agent = agl.CommandAgent(["sh", "-c", FAMILY, marker], timeout_s=0.3 if way == "timeout" else None)
    started = time.monotonic()
    task = asyncio.create_task(agent.run(None, {}, attempted()))
    if way == "timeout":
        with pytest.raises(AttemptTimeoutError, match=r"within 0.3 s"):
            await task
    else:
        for _ in range(1000):
            if alive(marker):
                break
            await asyncio.sleep(0.1)
        assert alive(marker)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert time.monotonic() - started < 50
    assert alive(marker) == []


async def test_what_a_command_leaves_in_the_background_is_ended(tmp_path):
    pid_file = tmp_path / "pid"
    agent = agl.CommandAgent(["sh", "-c", f"sleep 60 & echo $! > {pid_file}; echo '{{\"reward\": 1}}'"])
    started = time.monotonic()
    assert await run(agent) == {"reward": 1}
    assert time.monotonic() - started < 50
    pid = int(pid_file.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_endless_output_is_bounded():
    agent = agl.CommandAgent("yes | head -c 30000000; printf '\\n{\"reward\": 1}\\n'", shell=True)
    assert await run(agent) == {"reward": 1}
    assert len(run.messages["stdout"]) <= 16_384


def test_command_agents_travel():
    agent = pickle.loads(pickle.dumps(agl.CommandAgent("echo {q}", reward=graded)))
    assert repr(agent) == "CommandAgent('echo {q}')"


async def test_evaluator_of_the_runner_gets_the_output_too(work):
    agent = agl.CommandAgent(["sh", "-c", "echo {task}; exit 1"])
    rollouts = await work(agent, ["a", "b"], evaluator=lambda task, output: output.stdout == "a\n")
    assert [agl.find_final_reward(await work.spans(r)) for r in rollouts] == [1.0, 0.0]


async def test_commands_run_as_rollouts(work):
    agent = agl.CommandAgent(["sh", "-c", "sleep {task}; echo '{\"reward\": 1}'"])
    rollouts = await work(agent, [0, 0, 600], config=RolloutConfig(timeout_seconds=8.0))
    assert [r.status for r in rollouts] == ["succeeded", "succeeded", "failed"]
    assert rollouts[2].attempt.status == "timeout"
    assert agl.find_final_reward(await work.spans(rollouts[0])) == 1.0

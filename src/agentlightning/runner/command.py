"""Any command line as an agent: a process per task, told of its rollout by environment variables.

Knows nothing of the language behind the command. Model calls are captured because `OPENAI_BASE_URL` (and Anthropic's)
name the rollout; spans, when the program has OpenTelemetry, because the OTLP variables do.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import quote

from agentlightning.agent.agents import finish
from agentlightning.agent.emit import emit_message
from agentlightning.agent.errors import AgentSignatureError, BadResultError
from agentlightning.agent.results import REWARD_KEY, Evaluator, read_evaluation
from agentlightning.agent.threads import shared_threads
from agentlightning.kit.errors import AgentLightningError, ConfigError
from agentlightning.runner import groups
from agentlightning.runner.failure import AttemptTimeoutError
from agentlightning.schemas import LLM, AttemptedRollout, NamedResources, ProxyLLM, Rollout
from agentlightning.store.access import TOKEN_VARIABLE

RewardSource = Literal["stdout-json", "exit-code", "none"]

TAIL_BYTES = 16_384
"""How much of the end of stdout and of stderr is kept."""
_LONGEST_LINE = 1 << 20
_MAX_ENV_TASK_BYTES = 100_000
"""Above this a task travels by file and stdin only; the kernel limits the size of one variable."""
_PLACEHOLDER = re.compile(r"\{(\{[A-Za-z_]\w*\})\}|\{([A-Za-z_]\w*)\}")
_OBJECT_LINE = re.compile(rb"^[ \t]*\{.*$", re.MULTILINE)
_TERM_GRACE_S = 0.5
_KILL_WAIT_S = 2.0


class CommandError(AgentLightningError):
    """The command could not be started, or ended with an error."""

    code = "COMMAND_FAILED"


@dataclass
class CommandOutput:
    """What an evaluator gets as `output`."""

    stdout: str
    """The end of it, `TAIL_BYTES` at most."""
    stderr: str
    exit_code: int
    result: dict[str, Any] | None
    """The last line of stdout that is a JSON object."""


class CommandAgent:
    """Runs a command for each task.

    The task goes to the command as JSON on stdin, in the file `AGL_TASK_FILE`, in the variable `AGL_TASK` (unless it is
    large), and into the placeholders of the command line: `{question}` is the task's key `question`, `{task}` the whole
    task; `{{print}}` stands for `{print}`. Values are passed as they are, without a shell; with `shell=True` they are
    quoted for it.

    Args:
        command: A command line, or its words.
        reward: `"stdout-json"`: the last JSON object on stdout, its `reward` (a missing one means no reward);
            `"exit-code"`: 1 for exit code 0, else 0; `"none"`; or a function of `task` and `output`, which is a
            `CommandOutput`.
        cwd: Folder to run in.
        env: More environment variables.
        timeout_s: Time limit of one run, beside the rollout's.
        shell: Run by `/bin/sh`.

    Raises:
        ConfigError: The command is empty or malformed, or `reward` is unknown.
    """

    def __init__(
        self,
        command: str | Sequence[str],
        *,
        reward: RewardSource | Callable[..., Any] = "stdout-json",
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        shell: bool = False,
    ) -> None:
        if not callable(reward) and reward not in ("stdout-json", "exit-code", "none"):
            raise ConfigError(
                f"Unknown reward source {reward!r}.", hint="There are stdout-json, exit-code, none, or a function."
            )
        if shell and not isinstance(command, str):
            raise ConfigError("With shell=True the command is one string.")
        self.command = command
        self.reward = reward
        self.cwd = cwd
        self.env = dict(env or {})
        self.timeout_s = timeout_s
        self.shell = shell
        self._words = _words(command, shell)
        self._evaluator = Evaluator(reward) if callable(reward) else None

    def __repr__(self) -> str:
        return f"CommandAgent({self.command!r})"

    async def run(self, task: Any, resources: NamedResources, rollout: Rollout) -> Any:
        """Run the command on one task.

        Raises:
            CommandError: It cannot be started, or exits with an error while the reward does not come from that.
            AgentSignatureError: The task lacks what a placeholder names.
            AttemptTimeoutError: `timeout_s` has passed.
        """
        output = await self.run_raw(task, resources, rollout)
        return await self._result(task, output, resources, rollout)

    async def run_raw(self, task: Any, resources: NamedResources, rollout: Rollout) -> CommandOutput:
        """Run the command on one task, whatever it exits with; evaluators of the runner get this as `output`.

        Raises:
            CommandError: It cannot be started.
            AgentSignatureError: The task lacks what a placeholder names.
            AttemptTimeoutError: `timeout_s` has passed.
        """
        arguments = self._arguments(task)
        with tempfile.TemporaryDirectory(prefix="agl-task-") as folder:
            payload = json.dumps(task, default=str).encode()
            path = Path(folder) / "task.json"
            path.write_bytes(payload)
            environment = self._environment(payload, path, resources, rollout)
            output = await self._execute(arguments, payload, environment)
        _leave_traces(output)
        return output

    def _arguments(self, task: Any) -> list[str]:
        return [_PLACEHOLDER.sub(lambda m: m[1] or self._value(m[2], task), word) for word in self._words]

    def _value(self, name: str, task: Any) -> str:
        if name == "task":
            value = task
        elif isinstance(task, Mapping) and name in task:
            value = cast("Mapping[str, Any]", task)[name]
        elif not isinstance(task, Mapping):
            value = task
        else:
            raise AgentSignatureError(
                f"The command has the placeholder {{{name}}}, but the task has only {sorted(map(str, task))}.",
                hint=f"Write {{{{{name}}}}} where braces are meant.",
            )
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        return shlex.quote(text) if self.shell else text

    def _environment(self, payload: bytes, path: Path, resources: NamedResources, rollout: Rollout) -> dict[str, str]:
        environment = {**os.environ, **_model_variables(resources, rollout), **self.env}
        environment["AGL_TASK_FILE"] = str(path)
        if len(payload) <= _MAX_ENV_TASK_BYTES:
            environment["AGL_TASK"] = payload.decode()
        environment["AGL_ROLLOUT_ID"] = rollout.rollout_id
        if isinstance(rollout, AttemptedRollout):
            attempt_id = rollout.attempt.attempt_id
            environment["AGL_ATTEMPT_ID"] = attempt_id
            environment["OTEL_RESOURCE_ATTRIBUTES"] = (
                f"agentlightning.rollout_id={rollout.rollout_id},agentlightning.attempt_id={attempt_id}"
            )
        store_url = os.environ.get("AGL_STORE_URL")
        if store_url:
            environment.setdefault("OTEL_EXPORTER_OTLP_ENDPOINT", store_url)
            token = os.environ.get(TOKEN_VARIABLE)
            if token:
                environment.setdefault("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{quote(token)}")
        # What concerns the runner's own process only.
        environment.pop("AGL_RUNNER_WORKER", None)
        return environment

    async def _execute(self, arguments: list[str], payload: bytes, environment: dict[str, str]) -> CommandOutput:
        words = ["/bin/sh", "-c", *arguments] if self.shell else arguments
        loop = asyncio.get_running_loop()
        try:
            transport, child = await loop.subprocess_exec(
                lambda: _Child(loop), *words, cwd=self.cwd, env=environment, start_new_session=True
            )
        except OSError as error:
            raise CommandError(
                f"Cannot start {words[0]!r}: {error.strerror or error}.", hint="Check the command and cwd."
            ) from error
        group = transport.get_pid()
        with groups.guarded(group):
            try:
                stdin = cast("asyncio.WriteTransport", transport.get_pipe_transport(0))
                stdin.write(payload)
                stdin.close()
                await self._exited(child)
            finally:
                await _end(group, child)
                transport.close()
        code = transport.get_returncode()
        stdout, stderr = child.tails[1], child.tails[2]
        return CommandOutput(stdout.text(), stderr.text(), code if code is not None else -signal.SIGKILL, stdout.result)

    async def _exited(self, child: _Child) -> None:
        try:
            async with asyncio.timeout(self.timeout_s):
                await asyncio.shield(child.exited)
        except TimeoutError:
            raise AttemptTimeoutError(f"The command did not finish within {self.timeout_s:g} s.") from None

    async def _result(
        self, task: Any, output: CommandOutput, resources: NamedResources, rollout: Rollout
    ) -> dict[str, float] | float | None:
        if self._evaluator is not None:
            args, kwargs = self._evaluator.bind(task, output, resources, rollout)
            call = self._evaluator.function
            rewards = read_evaluation(
                await finish(await shared_threads().run(functools.partial(call, *args, **kwargs)))
            )
            return {REWARD_KEY: rewards[0].value, **{r.name: r.value for r in rewards[1:]}} if rewards else None
        if self.reward == "exit-code":
            return float(output.exit_code == 0)
        if output.exit_code != 0:
            raise CommandError(
                f"The command exited with {_code(output.exit_code)}. The end of stderr: {output.stderr[-1000:].strip()}"
            )
        if self.reward == "none" or output.result is None or REWARD_KEY not in output.result:
            return None
        reward = output.result[REWARD_KEY]
        if reward is not None and (isinstance(reward, str) or not isinstance(reward, int | float)):
            raise BadResultError(f"The command printed a reward that is no number: {reward!r}.")
        return {key: item for key, item in output.result.items() if isinstance(item, int | float) or key == REWARD_KEY}


def _words(command: str | Sequence[str], shell: bool) -> list[str]:
    if not isinstance(command, str):
        words = [os.fspath(word) for word in command]
    elif shell:
        words = [command]
    else:
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise ConfigError(f"The command {command!r} is malformed: {error}.") from error
    if not words or not words[0].strip():
        raise ConfigError("The command is empty.")
    return words


def _model_variables(resources: NamedResources, rollout: Rollout) -> dict[str, str]:
    llm = next((r for r in resources.values() if isinstance(r, LLM)), None)
    if llm is None:
        return {}
    if isinstance(llm, ProxyLLM) and isinstance(rollout, AttemptedRollout):
        llm = llm.with_attempted_rollout(rollout)
    base_url = llm.endpoint
    return {
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_BASE": base_url,
        "OPENAI_API_KEY": llm.api_key or os.environ.get("OPENAI_API_KEY") or "unused",
        "OPENAI_MODEL": llm.model,
        "ANTHROPIC_BASE_URL": base_url.rstrip("/").removesuffix("/v1"),
        "ANTHROPIC_API_KEY": llm.api_key or os.environ.get("ANTHROPIC_API_KEY") or "unused",
    }


class _Tail:
    """The last of a stream, and the last of its lines that is a JSON object."""

    def __init__(self, *, keep_result: bool = False) -> None:
        self._kept = b""
        self._line = b""
        self._keep_result = keep_result
        self._result: dict[str, Any] | None = None

    def add(self, data: bytes) -> None:
        self._kept = (self._kept + data)[-TAIL_BYTES:]
        if not self._keep_result:
            return
        whole, newline, rest = data.rpartition(b"\n")
        if newline:
            for line in _OBJECT_LINE.findall(self._line + whole):
                self._read(line)
            self._line = b""
        self._line = (self._line + rest)[:_LONGEST_LINE]

    def _read(self, line: bytes) -> None:
        with contextlib.suppress(ValueError):  # most output is not meant for us
            value = json.loads(line)
            if isinstance(value, dict):
                self._result = cast("dict[str, Any]", value)

    @property
    def result(self) -> dict[str, Any] | None:
        if _OBJECT_LINE.match(self._line):  # the last line may lack its end
            self._read(self._line)
        return self._result

    def text(self) -> str:
        return self._kept.decode(errors="replace")


class _Child(asyncio.SubprocessProtocol):
    """Collects output; tells of the exit even while something in the background holds the pipes open."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.exited: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.tails = {1: _Tail(keep_result=True), 2: _Tail()}
        self._open = {1, 2}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.tails[fd].add(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open and not self.closed.done():
            self.closed.set_result(None)

    def process_exited(self) -> None:
        if not self.exited.done():
            self.exited.set_result(None)


async def _end(group: int, child: _Child) -> None:
    """Make sure that nothing of the process group is left, politely first, and read what it still wrote."""
    if not child.exited.done():
        groups.kill(group, signal.SIGTERM)
        await asyncio.wait({child.exited}, timeout=_TERM_GRACE_S)
    groups.kill(group, signal.SIGKILL)  # also what it left in the background
    await asyncio.wait({child.exited}, timeout=_KILL_WAIT_S)
    await asyncio.wait({child.closed}, timeout=_KILL_WAIT_S)


def _leave_traces(output: CommandOutput) -> None:
    facts = {"exit_code": output.exit_code}
    for name, text in (("stdout", output.stdout), ("stderr", output.stderr)):
        if text.strip():
            emit_message(text, attributes={"stream": name, **facts})


def _code(code: int) -> str:
    if code >= 0:
        return f"code {code}"
    with contextlib.suppress(ValueError):  # real-time signals have no name
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"


if sys.platform == "win32":  # pragma: no cover - process groups are POSIX
    raise ConfigError("CommandAgent needs a POSIX system.")

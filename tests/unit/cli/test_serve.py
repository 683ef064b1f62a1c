"""`agl serve` as a process, and `agl models` asking it; what the options become."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from typer.testing import CliRunner

from agentlightning.cli.models import app
from agentlightning.cli.serve import model_specs
from agentlightning.kit.errors import AgentLightningError, BadInputError, ConfigError, UpstreamError
from agentlightning.registry import ModelRegistry
from tests.unit.learner.tiny import save_model

COMMON: dict[str, Any] = {"engine": "auto", "device": "cpu", "lazy": False, "adapter": None}
USER: Any = [{"role": "user", "content": "hello"}]


def specs(models: list[str], config: Path | None = None, *, fronted: bool = False, **common: Any) -> list[Any]:
    return [
        (spec.name, spec.origin, spec.aliases)
        for spec in model_specs(models, config, {**COMMON, **common}, fronted=fronted)
    ]


def test_models_get_names_and_the_first_is_the_default(tmp_path: Path) -> None:
    assert specs([]) == [("nano", "nano", ["default"])]
    assert specs([], fronted=True) == specs([], lazy=True) == []
    (tmp_path / "weights").mkdir()
    assert specs([str(tmp_path / "weights"), "judge=org/big", "demo@v1"]) == [
        ("weights", str(tmp_path / "weights"), ["default"]), ("judge", "org/big", []), ("demo@v1", "demo@v1", []),
    ]  # fmt: skip
    assert specs(["default=nano"]) == [("default", "nano", [])]


def test_a_file_sets_each_model_apart(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text(
        '[[models]]\nname = "a"\nsource = "x"\n[[models]]\nname = "b"\naliases = ["default"]\nlazy = true\n'
    )
    assert specs([], path) == [("a", "x", []), ("b", "b", ["default"])]
    path.write_text('[[models]]\nname = "a"\ndevise = "cpu"\n')
    with pytest.raises(ConfigError, match="did you mean 'device'"):
        specs([], path)
    for text, message in (("models = 5", "tables"), ("x = 1", "tables"), ("[", "cannot be read")):
        path.write_text(text)
        with pytest.raises(BadInputError, match=message):
            specs([], path)
    with pytest.raises(BadInputError, match="cannot be read"):
        specs([], tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="--adapter fits one model"):
        specs(["a", "b"], adapter="/lora")


def agl(*arguments: str) -> Any:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def test_asking_a_service_that_is_not_there_says_so() -> None:
    with pytest.raises(UpstreamError, match="No model service answers"):
        agl("served", "--url", "http://127.0.0.1:9")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    registry = ModelRegistry(tmp_path / "home" / "models")
    for number in (1, 2):
        source = save_model(tmp_path / f"m{number}", seed=number)
        registry.register("tiny", source, base="none", run_id=f"r{number}", step=number, metrics={})
    registry.promote("tiny@v1")
    return tmp_path


@pytest.fixture
def service(home: Path) -> Generator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "agentlightning.cli.main", "serve", "--model", "tiny", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--engine", "builtin", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if "docs:" in line:
            break
    found = re.search(r"listening on (\S+)", "".join(lines))
    assert found, "".join(lines)
    try:
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_serve_load_promote_and_stop(service: tuple[subprocess.Popen[str], str], home: Path) -> None:
    process, url = service
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
    other = anthropic.Anthropic(base_url=url, api_key="any", max_retries=0)
    with client, other:
        assert {model.id for model in client.models.list()} == {"tiny", "default"}
        first = client.chat.completions.create(model="default", messages=USER, max_tokens=8, seed=1)
        assert first.system_fingerprint == "tiny@v1"
        assert other.messages.create(model="tiny", messages=USER, max_tokens=5).usage.output_tokens <= 5
        [shown] = agl("served", "--url", url, "--json")
        assert (shown["state"], shown["version"]) == ("ready", "tiny@v1")
        assert "tiny@v1" in agl("served", "--url", url)
        assert "tiny@v2 is in stage production" in agl("promote", "tiny@v2")
        again = first
        for _ in range(600):
            again = client.chat.completions.create(model="tiny", messages=USER, max_tokens=8, seed=1)
            if again.system_fingerprint == "tiny@v2":
                break
        assert again.system_fingerprint == "tiny@v2"
        assert "extra is ready" in agl("load", "extra", "--source", str(home / "m1"), "--url", url)
        same = client.chat.completions.create(model="extra", messages=USER, max_tokens=8, seed=1)
        assert same.choices[0].message.content == first.choices[0].message.content
        assert "extra is unloaded" in agl("unload", "extra", "--url", url)
        with pytest.raises(openai.InternalServerError, match="not loaded"):
            client.chat.completions.create(model="extra", messages=USER)
        with pytest.raises(AgentLightningError, match="No model 'gone'"):
            agl("unload", "gone", "--url", url)
        pids = [model["pid"] for model in agl("served", "--url", url, "--json") if model["pid"]]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.timeout(200)
def test_stopping_while_a_model_is_loaded_leaves_nothing_behind(home: Path) -> None:
    command = [sys.executable, "-m", "agentlightning.cli.main", "serve", "--port", "0", "--model", "tiny"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert "listening on" in first
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(60) == 0
    assert rest.strip() == "stopping: calls under way are finished"


@pytest.mark.timeout(200)
def test_a_model_that_cannot_be_loaded_ends_the_command_with_the_reason(home: Path) -> None:
    command = [sys.executable, "-m", "agentlightning.cli.main", "serve", "--port", "0", "--model"]
    done = subprocess.run([*command, "./nowhere"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "There is no model directory nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run(
        [*command, "nano", "--engine", "vllm"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "vllm cannot run here" in done.stderr

"""`agl runs | rollouts | show | resources | doctor` on a store made by a real run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import agentlightning as agl
from agentlightning.cli import doctor, records
from agentlightning.config import Settings
from agentlightning.kit.errors import AgentLightningError, BadInputError, NotFoundError
from agentlightning.schemas import Span, semconv
from agentlightning.store import SqlLightningStore
from agentlightning.trainer import ModelRegistry
from agentlightning.trainer.runlog import RunRecord

Invoke = Callable[..., Result]


def call_span(rollout_id: str, attempt_id: str, messages: list[dict[str, object]], output: dict[str, object]) -> Span:
    return Span.from_attributes(
        rollout_id=rollout_id,
        attempt_id=attempt_id,
        name=semconv.MODEL_CALL,
        start_time=1.0,
        end_time=1.5,
        attributes={
            semconv.CALL_INPUT_MESSAGES: json.dumps(messages),
            semconv.CALL_OUTPUT_MESSAGES: json.dumps([output]),
            semconv.PROMPT_TOKEN_IDS: [1, 2, 3],
            semconv.RESPONSE_TOKEN_IDS: [4, 5],
            semconv.RESPONSE_LOGPROBS: [-0.5, -0.25],
        },
    )


@pytest.fixture
async def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGL_HOME", str(tmp_path))
    store = SqlLightningStore(tmp_path / "store.db")
    await store.add_resources({"llm": agl.LLM(endpoint="http://x/v1", model="m", api_key="very-secret")})
    good = await store.start_rollout(
        input={"question": "How many?" + " really" * 20}, mode="train", rollout_id="run-a.1"
    )
    ids = (good.rollout_id, good.attempt.attempt_id)
    question: dict[str, object] = {"role": "user", "content": "How many?"}
    asked: dict[str, object] = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "sql", "arguments": '{"query": "SELECT 1"}'}}],
    }
    await store.add_many_spans(
        [
            call_span(*ids, [question], asked),
            call_span(
                *ids, [question, asked, {"role": "tool", "content": "1"}], {"role": "assistant", "content": "It is 1."}
            ),
            Span.from_attributes(
                rollout_id=ids[0],
                attempt_id=ids[1],
                name=semconv.AGL_ANNOTATION,
                attributes={"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": 0.75},
            ),
        ]
    )
    await store.update_attempt(*ids, status="succeeded")
    bad = await store.start_rollout(input="plain text", mode="val", rollout_id="run-b.1")
    await store.update_attempt(
        bad.rollout_id,
        bad.attempt.attempt_id,
        status="failed",
        metadata={"error": {"class": "agent_error", "type": "KeyError", "message": "broken"}},
    )
    await store.close()
    RunRecord(tmp_path / "runs" / "run-a").update(
        run_id="run-a",
        status="succeeded",
        algorithm="GRPO",
        created_at=0.0,
        seconds=61,
        before={"v": {"accuracy": 0.3}},
    )
    return tmp_path


@pytest.fixture
def agl_command() -> Invoke:
    app = typer.Typer()
    records.register(app)
    doctor.register(app)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})

    return invoke


def test_runs_lists_each_run_with_its_result(home: Path, agl_command: Invoke) -> None:
    shown = agl_command("runs").stdout
    assert "run-a" in shown
    assert "30.0 %" in shown
    assert "1 min 1 s" in shown
    assert json.loads(agl_command("runs", "--json").stdout)[0]["run_id"] == "run-a"


def test_rollouts_can_be_filtered(home: Path, agl_command: Invoke) -> None:
    everything = json.loads(agl_command("rollouts", "--json").stdout)
    assert {r["rollout_id"]: r["reward"] for r in everything} == {"run-a.1": 0.75, "run-b.1": None}
    for filters in (("--run", "run-b"), ("--status", "failed"), ("--mode", "val"), ("--limit", "1")):
        found = json.loads(agl_command("rollouts", "--json", *filters).stdout)
        assert len(found) == 1, filters
    assert "How many?" in agl_command("rollouts").stdout
    failed = agl_command("rollouts", "--status", "broken")
    assert isinstance(failed.exception, BadInputError)
    assert "succeeded" in failed.exception.hint


def test_show_prints_each_message_once_with_tokens_and_reward(home: Path, agl_command: Invoke) -> None:
    shown = agl_command("show", "run-a.1", "--spans").stdout
    assert shown.count("How many?") == 1
    assert shown.count("SELECT 1") == 1
    assert "It is 1." in shown
    assert "[3+2 tokens, mean logprob -0.38]" in shown
    assert "reward: 0.75" in shown
    assert "500.0" in shown
    assert len(json.loads(agl_command("show", "run-a.1", "--json").stdout)["spans"]) == 3


def test_show_tells_what_failed_and_what_was_meant(home: Path, agl_command: Invoke) -> None:
    shown = agl_command("show", "run-b.1").stdout
    assert "agent_error: KeyError: broken" in shown
    assert "reward: none" in shown
    failed = agl_command("show", "run-a")
    assert isinstance(failed.exception, NotFoundError)
    assert "run-a.1" in failed.exception.hint


def test_resources_lists_models_and_hides_keys(home: Path, agl_command: Invoke) -> None:
    weights = home / "weights"
    weights.mkdir()
    ModelRegistry(Settings().models_path).register("demo", weights, base="b", run_id="run-a", step=1, metrics={})
    shown = agl_command("resources").stdout
    assert "demo@v1" in shown
    assert "llm" in shown
    as_json = agl_command("resources", "--json").stdout
    assert json.loads(as_json)["models"][0]["version"] == "v1"
    assert "very-secret" not in as_json


def test_without_a_store_the_next_step_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agl_command: Invoke
) -> None:
    monkeypatch.setenv("AGL_HOME", str(tmp_path / "nowhere"))
    assert "agl demo" in agl_command("runs").stdout
    assert "No model versions" in agl_command("resources").stdout
    failed = agl_command("rollouts")
    assert isinstance(failed.exception, AgentLightningError)
    assert "agl demo" in failed.exception.hint
    assert not (tmp_path / "nowhere").exists()


def test_doctor_says_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agl_command: Invoke) -> None:
    monkeypatch.setenv("AGL_HOME", str(tmp_path / "deep" / "home"))
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    report = json.loads(agl_command("doctor", "--json").stdout)
    assert report["system"]["home_writable"]
    assert {p["package"] for p in report["packages"]} >= {"torch", "openai"}
    services = {s["variable"]: s["reachable"] for s in report["services"]}
    assert services["OPENAI_BASE_URL"] is False
    assert "NOT reachable" in agl_command("doctor").stdout

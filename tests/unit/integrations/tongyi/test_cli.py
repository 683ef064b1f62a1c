"""`tongyi-cli` as it is typed: every flag, every documented message, Ctrl-C."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentlightning.integrations.tongyi import cli
from agentlightning.integrations.tongyi.records import TrainingData
from agentlightning.kit.errors import StorageError
from tests.scripted_researcher import ScriptedResearcher
from tests.unit.integrations.tongyi.test_records import interaction

QUESTION = "How old is the oldest dragon?"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedResearcher]:
    with ScriptedResearcher() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield server


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Type a command line; exit code, output and errors."""
    level = logging.getLogger("agentlightning").level

    def typed(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tongyi-cli", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()  # also ends with this when all is well
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    yield typed
    logging.getLogger("agentlightning").setLevel(level)


def history(count: int, **more: object) -> None:
    data = TrainingData(".tongyi_training")
    for number in range(count):
        data.append(interaction(f"query {number}", reward=number / count, **more))
    data.save()


def test_a_question_is_answered_and_nothing_kept(run: Run, server: ScriptedResearcher, place: Path) -> None:
    code, out, _ = run(QUESTION, "--verbose")
    assert code == 0
    assert out.startswith("The dragon asked about is Smaug")
    assert not (place / ".tongyi_training").exists()


def test_verbose_explains(run: Run, server: ScriptedResearcher) -> None:
    _, _, err = run(QUESTION, "--verbose", "--model", "scripted")
    assert "plan 1: Search the notes with Grep" in err
    assert "not available: WebSearch: no search engine is configured" in err
    assert "[S2] file: notes/dragons.md" in err
    assert "5 model calls" in err
    assert server.bodies[-1]["model"] == "scripted"


def test_training_statistics_export_and_the_documented_analysis(
    run: Run, server: ScriptedResearcher, place: Path
) -> None:
    code, _, err = run("--train", "--training-mode", "prompt", QUESTION)
    assert code == 0
    assert "kept for training: reward 0." in err
    code, out, _ = run("--training-stats")
    assert code == 0
    for words in ("Total interactions", "Success rate", "100%", "Average response time", "Tool usage efficiency"):
        assert words in out
    code, out, _ = run("--export-training-data", "analysis.json")
    assert (code, out) == (0, "✅ 1 interactions written to analysis.json\n")
    analysis = "import json\nwith open('analysis.json') as f:\n    data = json.load(f)\n"
    analysis += "print(f'Total interactions: {len(data[\"interactions\"])}')\n"
    analysis += 'print(f\'Average response time: {data["metrics"]["average_response_time"]:.2f}s\')\n'
    done = subprocess.run(
        [sys.executable, "-c", analysis], cwd=place, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("Total interactions: 1\nAverage response time: ")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--training-stats"], 0), (["--optimize"], 1), (["--export-training-data", "x.json"], 1)],
)
def test_without_data_the_documented_message_comes(run: Run, arguments: list[str], code: int) -> None:
    found, out, _ = run(*arguments)
    assert (found, out) == (
        code,
        "ℹ️ No training data found. Run with --train to generate training data first.\n",  # noqa: RUF001
    )


def test_too_few_interactions_fail_with_reason_and_hints(run: Run, server: ScriptedResearcher) -> None:
    history(4)
    code, _, err = run("--optimize", "--optimize-iterations", "100")
    assert code == 1
    assert err.splitlines() == [
        "❌ Optimization failed",
        "   There are 4 interactions; 10 or more are needed.",
        "  - Check you have enough training data (10+ interactions)",
        "  - Verify training configuration",
        "  - Try fewer iterations: `--optimize-iterations 50`",
    ]


def test_an_optimisation_from_the_command_line(run: Run, server: ScriptedResearcher, place: Path) -> None:
    history(12)
    code, out, _ = run("--optimize", "--training-mode", "sft")
    assert code == 0
    assert out.startswith("✅ 6 of 12 interactions, the best rated, were written to .tongyi_training/sft.jsonl")
    code, out, _ = run("--optimize-iterations", "2")
    assert code == 0
    assert "No better prompt was found; the present one stays." in out
    assert "look closer: agl lineage tongyi-" in out


def test_a_missing_package_is_the_documented_message(
    run: Run, server: ScriptedResearcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "claude_agent_sdk", None)
    code, _, err = run("--train", "--agent", "claude", QUESTION)
    assert code == 1
    assert err.startswith("❌ Optimized agents not available: No module named 'claude_agent_sdk'\n   pip install")
    monkeypatch.setitem(sys.modules, "openai", None)
    code, _, err = run(QUESTION)
    assert code == 1
    assert err.startswith("❌ Optimized agents not available: ")
    assert "agentlightning[tongyi]" in err


def test_no_model_no_answer_and_wrong_settings_are_said(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run(QUESTION)
    assert code == 1
    assert "There is no model to do research with" in err
    assert "next:  Give --base-url URL" in err
    code, _, err = run(QUESTION, "--base-url", "http://127.0.0.1:9/v1", "--model", "m")
    assert code == 1
    assert "There is no answer: The model 'm' at http://127.0.0.1:9/v1 does not answer" in err
    (place / "training_config.ini").write_text("[training]\nmodus = rl\n")
    code, _, err = run(QUESTION)
    assert (code, "the nearest is 'mode'" in err) == (1, True)
    assert run("--config", "none.ini", QUESTION)[0] == 1
    assert run("--training-mode", "dpo", QUESTION, "--config", os.devnull)[0] == 1


def test_usage(run: Run) -> None:
    code, out, _ = run()
    assert code == 2
    assert "--optimize-iterations" in out
    assert run("--nonsense")[0] == 2
    assert run("--optimize-iterations", "0")[0] == 2


def test_a_server_with_several_models_wants_one_named(run: Run, server: ScriptedResearcher) -> None:
    monkey = {"object": "list", "data": [{"id": "a"}, {"id": "b"}]}
    handler = server._server.RequestHandlerClass
    handler.do_GET = lambda self: self.send(monkey)  # type: ignore[attr-defined]
    code, _, err = run(QUESTION)
    assert code == 1
    assert "has 2 models" in err
    assert "there are: a, b" in err


def test_a_schedule_starts_an_optimisation_after_the_answer(run: Run, server: ScriptedResearcher, place: Path) -> None:
    history(10)
    settings = '[training]\nmode = "sft"\n[optimization_schedule]\nschedule = "periodic"\nperiodic_interval = 1\n'
    (place / "training_config.ini").write_text(settings)
    code, out, err = run("--train", QUESTION)
    assert code == 0
    assert "optimising now: 1 interactions since the last run" in err
    assert "were written to" in out


def test_ctrl_c_ends_cleanly_and_keeps_what_there_is(place: Path) -> None:
    history(2)
    root = Path(__file__).resolve().parents[4]
    with ScriptedResearcher(delay_s=30) as server:
        environment = {
            **os.environ,
            "PYTHONPATH": str(root / "src"),
            "OPENAI_BASE_URL": server.url,
            "OPENAI_MODEL": "scripted",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "agentlightning.integrations.tongyi.cli", "--train", QUESTION],
            cwd=place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 120
        while not server.bodies and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped: What was answered before is kept. The same command continues." in err
    assert "Traceback" not in err
    kept = json.loads((place / ".tongyi_training" / "interactions-00001.json").read_text())["interactions"]
    assert len(kept) == 2


def test_a_folder_that_takes_nothing_is_said_before_a_model_is_asked(
    run: Run, server: ScriptedResearcher, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "file").write_text("")
    monkeypatch.setenv("TONGYI_TRAINING_PATH", str(place / "file" / "data"))
    code, out, err = run("--train", QUESTION, "--model", "m")
    assert (code, out, server.total) == (1, "", 0)
    assert "error: Cannot write" in err


def test_an_answer_that_cannot_be_kept_is_printed_all_the_same(
    run: Run, server: ScriptedResearcher, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("No space left on the disk.", hint="Free some space.")

    monkeypatch.setattr(TrainingData, "_append_line", full)  # a full disk cannot be had otherwise
    code, out, err = run("--train", QUESTION)
    assert code == 1
    assert out.startswith("The dragon asked about is Smaug")
    assert "error: No space left" in err

"""`agl import training-camp`, `agl export training-camp` and `agl store lineages`, typed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from agentlightning.algorithm.prompt.candidate import Candidate
from agentlightning.algorithm.prompt.result import OptimizationResult
from agentlightning.cli import exchange
from agentlightning.integrations.training_camp import load_export
from agentlightning.kit.errors import BadInputError, NotFoundError
from agentlightning.schemas import PromptTemplate
from tests.unit.cli.test_store import agl as agl_store
from tests.unit.integrations.camps import session

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples/training_camp/session.json"


def agl(*arguments: str) -> Result:
    app = typer.Typer()
    exchange.register(app)
    found = CliRunner().invoke(app, list(arguments))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "session.json"
    path.write_text(json.dumps(session()))
    return path


def test_a_session_comes_in_and_stands_side_by_side(file: Path, tmp_path: Path):
    store = str(tmp_path / "s.db")
    checked = agl("import", "training-camp", str(file), "--check", "--store", store).stdout
    assert "7 attempts, 3 of them scored" in checked
    assert "1 events of type camp.mood" in checked
    assert not Path(store).exists(), "--check writes nothing"
    done = json.loads(agl("import", "training-camp", str(file), "--store", store, "--json").stdout)
    assert (done["imported"]["attempts"], done["imported"]["preferences"]) == (7, 3)
    assert "7 known" in agl("import", "training-camp", str(file), "--store", store).stdout
    picture = tmp_path / "lines.svg"
    table = agl_store("lineages", "camp-s-1", "--store", store, "--plot", str(picture)).stdout
    (first,) = (line for line in table.splitlines() if line.startswith("A "))
    assert first.split()[1:4] == ["4.0", "9.0", "+5.0"]
    assert "<svg" in picture.read_text()
    rows = json.loads(agl_store("lineages", "camp-s-1", "--store", store, "--json").stdout)
    assert [row["locked"] for row in rows] == [False, True, False, False]
    assert "camp-s-1" in agl_store("lineages", "--store", store).stdout
    assert json.loads(agl_store("lineages", "--store", store, "--json").stdout)[0]["name"] == "about rain"
    with pytest.raises(NotFoundError):
        agl_store("lineages", "other", "--store", store)
    with pytest.raises(BadInputError, match="no picture"):
        agl_store("lineages", "camp-s-1", "--store", store, "--plot", str(tmp_path / "x.txt"))
    with pytest.raises(BadInputError, match="Which session"):
        agl_store("lineages", "--store", store, "--plot", str(picture))


@pytest.mark.parametrize("name", ["system_prompt", "prompt_template"])
def test_a_better_prompt_goes_out(file: Path, tmp_path: Path, name: str):
    prompt, result, out = tmp_path / "p.txt", tmp_path / "result.json", tmp_path / "out.json"
    prompt.write_text("You write better.")
    shown = agl("export", "training-camp", str(file), "--prompt", str(prompt)).stdout
    assert json.loads(shown)["agents"][-1]["systemPrompt"] == "You write better."
    best = Candidate({name: PromptTemplate(template="You write best.")})
    found = OptimizationResult("run-1", tmp_path, "apo", best, best)
    result.write_text(json.dumps({"status": "done", **found.as_dict()}))
    said = agl("export", "training-camp", str(file), "--result", str(result), "-o", str(out)).stdout
    assert said.strip() == f"{out}: writer version 2"
    assert load_export(out).latest("writer").system_prompt == "You write best."
    assert json.loads(out.read_text())["events"][-1]["payload"]["evidence"]["run_id"] == "run-1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["import", "training-camp"], "Which file"),
        (["export", "training-camp", "{file}"], "either --prompt or --result"),
        (["export", "training-camp", "{file}", "--prompt", "{file}", "--result", "{file}"], "either"),
        (["export", "training-camp", "{file}", "--result", "{file}"], "no result of agl optimize"),
        (["export", "training-camp", "{file}", "--prompt", "missing"], "missing"),
        (["export", "training-camp", str(EXAMPLE), "--prompt", "{file}"], "Which agent"),
    ],
)
def test_what_is_missing_is_said(file: Path, arguments: list[str], said: str):
    with pytest.raises(BadInputError, match=said):
        agl(*(part.format(file=file) for part in arguments))


def test_the_shipped_session_is_of_a_real_agent():
    camp = load_export(EXAMPLE)
    assert len(camp.lineages) == 4
    assert len(camp.attempts) == 21
    for attempt in camp.attempts:
        assert attempt.score is not None
        kinds = {span.kind for span in attempt.done.spans}
        assert "llm" in kinds
        assert all(span.output_tokens for span in attempt.done.spans if span.kind == "llm")
    data = camp.optimization_data()  # that is what `APO().optimize(load_export(FILE))` asks for
    assert list(data.prompts) == ["sql-d"]
    assert len(data.tasks) == 8  # those that its lineage was not asked, too
    assert {judged.task["question"] for judged in data.judged} < {task["question"] for task in data.tasks}


@pytest.mark.slow
def test_the_shipped_session_can_be_made_again(tmp_path: Path):
    path = tmp_path / "session.json"
    subprocess.run([sys.executable, ROOT / "examples/training_camp/make_session.py", path], check=True, timeout=100)
    made = load_export(path)
    assert {agent_id for agent_id, _ in made.agents} == {agent_id for agent_id, _ in load_export(EXAMPLE).agents}
    assert all(attempt.score is not None and attempt.done.spans for attempt in made.attempts)

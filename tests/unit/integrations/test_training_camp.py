"""Training Camp's sessions: what is read, what is refused, what a store then holds, and what goes back."""

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from agentlightning.algorithm.judged.conversation import Conversation, conversation_of
from agentlightning.algorithm.judged.side_by_side import side_by_side
from agentlightning.integrations.training_camp import (
    Improvement,
    import_camp,
    improved,
    json_schema,
    load_export,
    read_export,
    write_export,
)
from agentlightning.kit.errors import BadInputError, NotFoundError
from agentlightning.store import InMemoryLightningStore, SqlLightningStore
from tests.unit.integrations.camps import DRAFT, DRAFT_ID, attempt, event, session


def test_a_session_is_read_with_payloads_in_their_places():
    camp = read_export(session())
    assert [item.done.attempt_id for item in camp.attempts] == ["A-1", "B-1", "C-1", "D-1", "A-2", "C-2", "D-2"]
    assert camp.attempts[0].done.spans[0].output == DRAFT
    assert camp.unread == {"camp.mood": 1}
    assert [(step.kind, step.lineage_id) for step in camp.steps if step.kind != "attempt"] == [("locked", "B")]


def test_the_latest_score_of_an_artifact_counts_and_no_score_is_not_zero():
    camp = read_export(session())
    scores = {item.done.attempt_id: item.score for item in camp.attempts}
    assert scores == {"A-1": 4, "B-1": 8.5, "C-1": None, "D-1": None, "A-2": 9, "C-2": None, "D-2": None}
    assert camp.attempts[0].comments == ["too short"]


def test_the_published_schema_describes_what_is_read(tmp_path: Path):
    schema = json_schema()
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    validator.check_schema(schema)
    validator.validate(session())
    wrong = session()
    wrong["events"][4]["payload"]["score"] = 11
    assert [list(error.absolute_path)[-1] for error in validator.iter_errors(wrong)] == ["score"]
    published = Path(__file__).parents[3] / "docs/reference/training-camp.schema.json"
    assert json.loads(published.read_text()) == schema, "run: agl import training-camp --schema"


def _changed(**more: Any) -> dict[str, Any]:
    return session(**more)


def _with_events(*added: dict[str, Any]) -> dict[str, Any]:
    found = session()
    found["events"] = [*found["events"], *added]
    return found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "valid dictionary"),
        ({**session(), "version": 2}, "version"),
        (_changed(agents=[]), "agents"),
        (_changed(agents=[{"id": "writer", "name": "W", "systemPrompt": ""}]), "systemPrompt"),
        (_changed(payloads={DRAFT_ID: "something else"}), "another hash"),
        (_changed(payloads={}), "there is no payload"),
        (_changed(lineages=[]), "lineage 'A', which is not there"),
        (_with_events(attempt(50, "A", 2)), "completed twice"),
        (_with_events(attempt(50, "A", 2, attemptId="x", artifacts=[])), "another attempt in cycle 2"),
        (_with_events(attempt(50, "B", 3)), "while it is locked"),
        (_with_events(attempt(50, "A", 3, agentVersion=7)), "version 7, which is not there"),
        (_with_events(attempt(50, "A", 3, endedAt="2020-01-01T00:00:00Z")), "ends before it starts"),
        (_with_events(attempt(50, "A", 3, startedAt="2026-03-01T12:00:00")), "timezone"),
        (_with_events(event(50, "artifact.scored", artifactId="art-A-1", score=10.5)), "less than or equal to 10"),
        (_with_events(event(50, "artifact.scored", artifactId="art-A-1", score=float("nan"))), "finite|less than"),
        (_with_events(event(50, "artifact.scored", artifactId="nobody's", score=1)), "which no attempt made"),
        (_with_events(event(50, "lineage.locked", lineageId="Z")), "'Z', which is not there"),
        (_with_events(event(40, "camp.mood")), "stands there twice"),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_place(content: Any, said: str):
    with pytest.raises(BadInputError, match=said) as caught:
        read_export(content)
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"\x1f\x8b\x08junk", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "session.json"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match="cannot be read"):
        load_export(path)
    with pytest.raises(BadInputError, match="No such file"):
        load_export(tmp_path / "missing.json")


def test_a_packed_file_is_read_but_not_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "session.json.gz"
    path.write_bytes(gzip.compress(json.dumps(session()).encode()))
    assert load_export(path).session.id == "s-1"
    monkeypatch.setattr("agentlightning.integrations.training_camp.reading.MAX_BYTES", 100)
    with pytest.raises(BadInputError, match="unpacks to more"):
        load_export(path)


async def test_a_store_then_holds_attempts_spans_scores_and_preferences():
    store = InMemoryLightningStore()
    camp = read_export(session())
    counts = await import_camp(store, camp)
    assert (counts.attempts, counts.judgements, counts.locks, counts.preferences) == (7, 5, 1, 3)
    assert counts.spans == 7 * 3
    spans = await store.query_spans("camp-s-1-A-1")
    found = conversation_of(list(spans))
    assert isinstance(found, Conversation)
    assert [message["role"] for message in found.prompt] == ["system", "user"]
    assert found.completion == [{"role": "assistant", "content": "Rain, says A-1."}]
    tool = next(span for span in spans if span.name == "look_up")
    assert tool.attributes["gen_ai.tool.call.arguments"] == '{"word": "rain"}'
    assert tool.parent_id == next(span for span in spans if span.name == "openai.chat.completion").span_id
    pairs = await store.query_preferences(session_id="camp-s-1")
    assert {(p.chosen_rollout_id, p.rejected_rollout_id) for p in pairs} == {
        ("camp-s-1-B-1", f"camp-s-1-{letter}-1") for letter in "ACD"
    }
    assert await store.get_latest_resources() is None, "what other agents are given is not changed"
    await store.close()


async def test_an_import_that_was_cut_is_completed_by_repeating_it(tmp_path: Path):
    camp = read_export(session())
    whole = SqlLightningStore(tmp_path / "whole.db")
    await import_camp(whole, camp)
    expected = await _content(whole)
    again = await import_camp(whole, camp)
    assert (again.attempts, again.spans, again.judgements, again.locks, again.known) == (0, 0, 0, 0, 7)
    assert await _content(whole) == expected
    for cut in range(1, 7):
        store = SqlLightningStore(tmp_path / f"{cut}.db")

        def stop(done: int, _: int, cut: int = cut) -> None:
            if done == cut:
                raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await import_camp(store, camp, progress=stop)
        await import_camp(store, camp)
        assert await _content(store) == expected
        await store.close()
    await whole.close()


async def _content(store: Any) -> Any:
    rollouts = await store.query_rollouts(sort_by="rollout_id")
    return {
        "rollouts": [(item.rollout_id, item.status, item.input) for item in rollouts],
        "spans": [
            [
                (span.span_id, span.name, span.attributes, span.start_time)
                for span in await store.query_spans(item.rollout_id)
            ]
            for item in rollouts
        ],
        "said": sorted((item.feedback_id, item.score, item.comment) for item in await store.query_feedback()),
        "pairs": sorted(item.preference_id for item in await store.query_preferences()),
        "steps": [(step.lineage_id, step.kind, step.cycle) for step in await store.query_lineage_history("camp-s-1")],
    }


async def test_lineages_stand_side_by_side():
    store = InMemoryLightningStore()
    await import_camp(store, read_export(session()))
    rows = {row.name: row for row in await side_by_side(store, "camp-s-1")}
    assert list(rows) == list("ABCD")
    assert [(cell.cycle, cell.score) for cell in rows["A"].cells] == [(1, 4), (2, 9)]
    assert (rows["A"].gain, rows["B"].gain, rows["C"].latest_score) == (5, None, None)
    assert (rows["B"].cells[0].wins, rows["B"].lineage.locked, rows["C"].cells[0].losses) == (3, True, 1)
    with pytest.raises(NotFoundError, match="no session") as caught:
        await side_by_side(store, "camp-other")
    assert "camp-s-1" in (caught.value.hint or "")
    await store.close()


def test_a_better_prompt_goes_back_and_everything_else_with_it(tmp_path: Path):
    camp = read_export(session())
    evidence = {"before": 4.0, "after": 7.5, "n": 12}
    content = improved(camp, [Improvement("writer", {"system_prompt": "You write well."}, evidence)])
    path = tmp_path / "out" / "improved.json"
    write_export(content, path)
    back = load_export(path)
    assert back.latest("writer").system_prompt == "You write well."
    assert (back.latest("writer").version, back.latest("writer").parent_version) == (2, 1)
    assert back.latest("writer").tools == ({"name": "look_up"},)
    jsonschema.Draft202012Validator(json_schema()).validate(content)
    before, after = session(), json.loads(path.read_text())
    assert after["events"][: len(before["events"])] == before["events"], "unknown events too"
    assert after["session"] == before["session"], "unknown keys too"
    assert after["events"][-1]["payload"]["evidence"] == evidence


@pytest.mark.parametrize(
    ("improvement", "said"),
    [
        (Improvement("nobody", {"system_prompt": "x"}), "no agent 'nobody'"),
        (Improvement("writer", {"intro": "x"}), "no prompt 'intro'"),
        (Improvement("writer", {"system_prompt": " "}), "is empty"),
        (Improvement("writer", {"system_prompt": "You write."}), "those it has"),
    ],
)
def test_what_is_no_improvement_is_not_written(improvement: Improvement, said: str):
    with pytest.raises((BadInputError, NotFoundError), match=said):
        improved(read_export(session()), [improvement])

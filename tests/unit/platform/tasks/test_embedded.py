"""With nothing configured: the SQL agent answers from the sample database with the embedded model."""

import sqlite3

import pytest

from agentlightning.nano.databases import choose_tables
from agentlightning.platform.tasks.text_to_sql import SAMPLE_SEED, sample_path
from tests.unit.platform.agents.calls import AGENTS, ended
from tests.unit.platform.tasks.things import Caller


@pytest.mark.slow
def test_the_sql_agent_works_out_of_the_box(make_site):
    site = make_site()
    user = Caller(site)
    tables = [table.name for table in choose_tables(SAMPLE_SEED)]
    answers = [
        user.until(user.assign(f"How many {name} are there?", agent="sql_agent"), timeout_s=90) for name in tables
    ]
    assert {task["status"] for task in answers} == {"completed"}
    with sqlite3.connect(f"file:{sample_path(site.settings.home)}?mode=ro", uri=True) as database:
        for task in answers:
            result = task["result"]
            assert (result["model"], result["database"]) == ("nano", "sample")
            assert result["rows"] == [list(row) for row in database.execute(result["sql"])]
        counts = [database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables]
    assert any(task["result"]["rows"] == [[count]] for task, count in zip(answers, counts, strict=True))
    trace = user.get(f"/api/v2/tasks/{answers[0]['task_id']}/trace").json()["data"]["spans"]
    calls = [span for span in trace if span["name"] == "openai.chat.completion"]
    assert calls
    assert all(span["attributes"].get("response_token_ids") for span in calls)
    failed = user.until(user.assign("Tell me about penguins", agent="sql_agent"), timeout_s=90)
    if failed["status"] == "failed":  # a model this small may find a query that runs, all the same
        assert (failed["error"]["code"], failed["attempts"]) == ("NO_QUERY", 1)
        assert all(name in failed["error"]["hint"] for name in tables)
    developer = Caller(site, "developer")
    begun = developer.post(f"{AGENTS}/sql_agent/evaluate", {"split": "held_out", "limit": 2}).json()["data"]
    judged = ended(site, developer.headers, f"{AGENTS}/sql_agent/evaluations/{begun['id']}")
    assert judged["told"] == 2  # a case without a query is a failed one, not one without a verdict
    assert judged["score"] == sum(result["score"] for result in judged["results"]) / 2

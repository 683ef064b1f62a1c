"""The example agent: same words as in pre-training, real queries, and a model server it cannot tell apart."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from agentlightning.nano import chat, make_tasks
from agentlightning.nano.databases import build_database

Fetch = Callable[[str, str], list[Any]]


class ScriptedClient:
    """Stands where `AsyncOpenAI` stands and says what it was told to."""

    def __init__(self, *replies: str | dict[str, Any]) -> None:
        self.replies = list(replies)
        self.requests: list[dict[str, Any]] = []
        self.chat = self
        self.completions = self

    async def create(self, **request: Any) -> ChatCompletion:
        self.requests.append(json.loads(json.dumps(request)))
        reply = self.replies.pop(0)
        message: dict[str, Any] = {"role": "assistant", "content": reply if isinstance(reply, str) else None}
        if isinstance(reply, dict):
            function = {"name": "sql", "arguments": reply.get("raw", json.dumps(reply))}
            message["tool_calls"] = [{"id": f"c{len(self.replies)}", "type": "function", "function": function}]
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        return ChatCompletion.model_validate(body)


@pytest.fixture
def database(database_dir: Path) -> str:
    return str(build_database(5, database_dir))


def test_first_messages_when_sent_equal_those_of_pretraining(sql_agent: ModuleType, database_dir: Path) -> None:
    for task in make_tasks("test", 30, 0, database_dir):
        with closing(sqlite3.connect(task["database"])) as connection:
            schema = chat.read_schema(connection)
        expected = chat.first_messages(task["question"], schema)
        assert sql_agent.first_messages(task["question"], task["database"]) == expected


def test_results_when_shown_equal_those_of_pretraining(sql_agent: ModuleType, database_dir: Path) -> None:
    assert sql_agent.MAX_TURNS == chat.MAX_TURNS
    queries = [
        "SELECT * FROM nowhere",
        "SELEC",
        "SELECT NULL",
        "SELECT 1.0/3",
        "SELECT 1 WHERE 0",
        "SELECT 'é' || 1e9",
    ]
    tasks = make_tasks("test", 60, 0, database_dir)
    for task, query in itertools.chain(((t, t["gold_sql"]) for t in tasks), ((tasks[0], q) for q in queries)):
        with closing(sqlite3.connect(task["database"])) as connection:
            expected, rows = chat.run_query(query, connection)
        found = sql_agent.Answer()
        assert sql_agent.run_call(json.dumps({"query": query}), task["database"], found) == expected
        assert found.rows == rows


async def test_answer_when_a_query_fails_lets_the_model_correct_it(
    sql_agent: ModuleType, database: str, fetch: Fetch
) -> None:
    table = fetch(database, "SELECT name FROM sqlite_master")[0][0]
    good = f"SELECT COUNT(*) FROM {table}"
    client = ScriptedClient({"query": "SELECT x FROM nowhere"}, {"query": good}, "done")
    found = await sql_agent.answer("How many?", database, client=client)
    assert (found.text, found.sql, found.error) == ("done", good, None)
    assert found.rows == fetch(database, good)
    sent = client.requests[-1]["messages"]
    assert [m["role"] for m in sent] == ["system", "user", "assistant", "tool", "assistant", "tool"]
    assert sent[3]["content"] == "error: no such table: nowhere"
    assert client.requests[0]["tools"] == [sql_agent.SQL_TOOL]


async def test_answer_when_the_model_never_stops_ends_after_three_turns(sql_agent: ModuleType, database: str) -> None:
    client = ScriptedClient(*[{"query": "SELECT 1"}] * 5)
    found = await sql_agent.answer("?", database, client=client)
    assert len(client.requests) == 3
    assert found.rows == [(1,)]


async def test_answer_when_the_model_only_talks_has_no_rows(sql_agent: ModuleType, database: str) -> None:
    found = await sql_agent.answer("?", database, client=ScriptedClient("I do not know"))
    assert (found.text, found.sql, found.rows) == ("I do not know", None, None)


async def test_answer_when_arguments_are_malformed_says_so(sql_agent: ModuleType, database: str) -> None:
    client = ScriptedClient({"raw": "{not json"}, {"q": "x"}, {"query": 3})
    found = await sql_agent.answer("?", database, client=client)
    assert found.rows is None
    assert found.error is not None
    assert found.error.startswith("bad arguments")


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE {t}",
        "DELETE FROM {t}",
        "ATTACH 'new.db' AS n",
        "PRAGMA writable_schema=1",
        "SELECT 1; SELECT 2",
    ],
)
def test_run_call_when_not_a_read_is_refused(sql_agent: ModuleType, database: str, query: str, fetch: Fetch) -> None:
    before = Path(database).read_bytes()
    table = fetch(database, "SELECT name FROM sqlite_master")[0][0]
    found = sql_agent.Answer()
    shown = sql_agent.run_call(json.dumps({"query": query.format(t=table)}), database, found)
    assert shown.startswith("error: ")
    assert found.rows is None
    assert Path(database).read_bytes() == before


def test_run_query_when_endless_is_stopped(
    sql_agent: ModuleType, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_agent, "QUERY_TIMEOUT_S", 0.05)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n"
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        sql_agent.run_query(endless, database)
    assert len(sql_agent.run_query(endless.replace("COUNT(*)", "i"), database)) == sql_agent.MAX_ROWS


def test_shared_client_when_asked_twice_in_a_loop_is_one(
    sql_agent: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")

    async def twice() -> tuple[object, object]:
        return sql_agent.shared_client(), sql_agent.shared_client()

    one, two = asyncio.run(twice())
    other, _ = asyncio.run(twice())
    assert one is two
    assert other is not one


def test_command_line_when_database_is_missing_says_so(
    sql_agent: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["agent.py", "--database", "nowhere.sqlite", "How many?"])
    with pytest.raises(SystemExit):
        sql_agent.main()
    assert "no such database: nowhere.sqlite" in capsys.readouterr().err


def test_command_line_when_asked_prints_query_and_rows(
    sql_agent: ModuleType, database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = ScriptedClient({"query": "SELECT 42, 'x'"}, "done")
    monkeypatch.setattr(sql_agent, "shared_client", lambda: client)
    monkeypatch.setattr("sys.argv", ["agent.py", "--database", database, "--model", "m", "How many?"])
    sql_agent.main()
    assert capsys.readouterr().out.splitlines() == ["SELECT 42, 'x'", "42 | x", "done"]
    assert client.requests[0]["model"] == "m"


def test_conversations_when_generated_run_every_way(database_dir: Path) -> None:
    from agentlightning.nano.conversations import HABITUAL, conversations

    seen = {len(m) for m in itertools.islice(conversations(random.Random(0), HABITUAL, database_dir), 300)}
    assert seen == {3, 5, 7}  # silent, one query, two queries

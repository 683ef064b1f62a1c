"""JSON files into tables: every record once, however often the run is killed; nothing is dropped without being said."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import bcrypt
import jsonschema
import pytest
import typer
from sqlalchemy import text
from typer.testing import CliRunner

from agentlightning.cli import migrate_json
from agentlightning.kit.errors import BadInputError, NotFoundError
from agentlightning.platform.database import Database, postgres_schema, sync_engine
from agentlightning.platform.jsonfiles.migrating import Migration
from agentlightning.platform.jsonfiles.reading import kind_of, sources
from agentlightning.platform.jsonfiles.shapes import KINDS, schema
from agentlightning.platform.jsonfiles.writing import Writer, slug_of
from agentlightning.platform.migrations import migrate
from tests.unit.platform.site import PASSWORD, Site, bearer, settings_for

AGL = [sys.executable, "-m", "agentlightning.cli.main"]
HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
PUBLISHED = Path(__file__).parents[4] / "docs/reference/migrate-json.schema.json"

USERS = [
    {"id": "user_1", "username": "Root", "password_hash": HASH, "role": "admin"},
    {"id": "user_123", "username": "john.doe", "hashed_password": HASH.replace("$2b$", "$2y$"), "role": "developer"},
    {"id": "user_9", "username": "gone", "password_hash": HASH, "is_active": False, "email": "gone@example.org"},
]
AGENTS = {
    "code_agent": {
        "id": 7,
        "type": "code",
        "description": "Writes code.",
        "config": {
            "system_prompt": "Write good code.",
            "temperature": 0.1,
            "max_tokens": 9,
            "tools": ["python", "tele"],
        },
        "performance_metrics": {"success_rate": 0.94},
        "created_at": "2025-01-27T10:30:00Z",
    },
    "Invoice Reader": {
        "id": "agent_001",
        "type": "finance_agent",
        "description": "Reads invoices.",
        "status": "Inactive",
    },
}
TASKS = [
    {
        "id": 1,
        "task_description": "Analyse the sales",
        "agent_id": 7,
        "user_id": "user_123",
        "status": "done",
        "priority": "high",
        "result": "42",
        "execution_time_ms": 1200,
        "created_at": 1706270400,
        "completed_at": "2024-01-26T12:00:05+00:00",
    },
    {"id": 2, "task": "Read them", "agent": "agent_001", "status": "running", "started_at": "2025-01-01T00:00:00"},
    {"id": 3, "task": "Break", "agent_name": "Invoice Reader", "status": "error", "error": "it broke", "priority": 9},
]
EXPORT = {
    "rl_experiments": [
        {
            "name": "ppo-1",
            "algorithm": "ppo",
            "config": {"lr": 1e-4, "huge": 1e152},
            "status": "running",
            "agent_id": 7,
        },
        {"name": "dqn-1", "algorithm": "dqn", "status": "completed", "metrics": {"reward": [0.1, 0.5]}},
    ],
    "sessions": {
        "s1": {
            "user": "john.doe",
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        }
    },
    "exported_at": "2025-02-01",
}


def knowledge(count, start=0):
    for number in range(start, start + count):
        yield {
            "id": number,
            "title": f"Item {number}",
            "content": f"Fact {number} about the cache of service {number * 7919}.",
            "category": "facts",
            "tags": ["a", f"t{number % 7}"],
            "metadata": {"n": number},
            "created_at": "2025-01-27T10:30:00",
            "created_by": "john.doe",
        }


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "old"
    made.mkdir()
    (made / "users.json").write_text(json.dumps(USERS))
    (made / "agents.json").write_text("\ufeff" + json.dumps(AGENTS), encoding="utf-8")
    (made / "knowledge_items.jsonl").write_text(lines(knowledge(250)) + "\n")
    (made / "tasks-2025.json").write_text(json.dumps(TASKS))
    (made / "export.json").write_text(json.dumps(EXPORT))
    (made / "notes.txt").write_text("none of ours")
    return made


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'platform.db'}"
    return request.getfixturevalue("fresh_postgres_url")


async def run(url, paths, tmp_path, owner=None, *, dry_run=False):
    migrate(url)
    database = Database(url)
    try:
        migration = Migration(database, Writer(settings_for(tmp_path), owner), dry_run=dry_run)
        return await migration.run(sources(paths))
    finally:
        await database.close()


def count(url, table):
    return rows(url, table, "count(*) AS found")[0]["found"]


def rows(url, table, what="*"):
    engine = sync_engine(url)
    with engine.connect() as connection:
        if url.startswith("postgres"):
            connection.execute(text(f'SET search_path = "{postgres_schema(url)}"'))
        found = connection.execute(text(f"SELECT {what} FROM {table}")).mappings().all()
    engine.dispose()
    return [dict(row) for row in found]


def agl(*arguments, **more):
    kept = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    done = subprocess.run(
        [*AGL, "migrate-json", *map(str, arguments)], capture_output=True, text=True, timeout=110, env={**kept, **more}
    )
    return done.returncode, done.stdout, done.stderr


async def test_all_kinds_become_rows_once(url, folder, tmp_path):
    trial = await run(url, [folder], tmp_path, dry_run=True)
    assert rows(url, "users") == rows(url, "json_records") == []
    first = await run(url, [folder], tmp_path)
    assert (first.refused, first.total.created) == ([], 3 + 2 + 250 + 3 + 2 + 1)
    assert trial.kinds == first.kinds
    assert [entry["reason"] for entry in first.ignored] == [
        "the key 'exported_at' is no kind of record",
        "its name says no kind of record",
    ]
    before = {
        table: rows(url, table) for table in ("users", "tasks", "knowledge_items", "rl_experiments", "json_records")
    }
    again = await run(url, [folder], tmp_path)
    assert (again.total.created, again.total.unchanged, again.total.refused) == (0, first.total.created, 0)
    assert {table: rows(url, table) for table in before} == before
    assert len(before["json_records"]) == first.total.created
    assert HASH not in json.dumps(before["json_records"], default=str)
    done, waiting, failed = sorted(before["tasks"], key=lambda row: row["id"])
    numbers = {user["username"]: user["id"] for user in before["users"]}
    assert (done["status"], done["owner_id"], done["urgency"]) == ("completed", numbers["john.doe"], 8)
    assert (waiting["status"], waiting["attempts"], waiting["owner_id"]) == ("pending", 0, numbers["root"])
    assert (failed["status"], failed["error_message"], failed["urgency"]) == ("failed", "it broke", 9)
    assert {row["name"]: row["status"] for row in before["rl_experiments"]} == {
        "ppo-1": "stopped",
        "dqn-1": "completed",
    }
    notes = [note for entry in first.notes for note in entry["notes"]]
    assert {"email is left out", "config.max_tokens is left out", "its name is invoice_reader now"} <= set(notes)


async def test_what_cannot_be_taken_over_is_said_with_its_place(url, tmp_path):
    secret = "hunter2-secret"
    bad = tmp_path / "bad"
    bad.mkdir()
    users = [
        {"username": "eve", "password": secret},
        {"username": "eve2"},
        {"username": "eve3", "password_hash": f"md5:{secret}"},
        {"username": "eve4", "password_hash": HASH.replace("$04$", "$31$")},
        {"username": "eve5", "password_hash": HASH, "role": secret},
        {"username": "ok", "password_hash": HASH, "role": "admin"},
        {"username": "OK", "password_hash": HASH},
        [1],
        {"username": "nul\0", "password_hash": HASH},
    ]
    (bad / "users.json").write_text(json.dumps(users))
    agents = [
        {"name": "hot_agent", "type": "x", "config": {"system_prompt": "x", "temperature": 9}},
        {"name": "status", "type": "x", "description": "Its name is taken by a path."},
        {"name": "empty_agent", "type": "x"},
        {"name": "good_agent", "type": "x", "description": "Is good."},
        {"name": "good agent", "type": "x", "description": "Has the same name."},
    ]
    (bad / "agents.json").write_text(json.dumps(agents))
    (bad / "tasks.jsonl").write_text(
        '{broken\n\n{"task": "x", "agent": 99}\n{"task": "x", "agent": "good_agent", "user": "nobody"}\n'
        '{"task": "x", "agent": "good_agent", "status": "flying"}\n'
        '{"task": "x", "agent": "good_agent", "execution_time_ms": 99999999999}\n'
    )
    (bad / "knowledge.json").write_text("[1, 2")
    (bad / "conversations.json").write_text('{"s": {"user": "ok", "messages": []}}')
    (bad / "all.json").write_text('{"tasks": [], "memories": [{"a": 1}]}')
    report = await run(url, [bad], tmp_path)
    said = {(Path(entry["file"]).name, entry["index"]): entry["reason"] for entry in report.refused}
    assert set(said) == {
        *(("users.json", place) for place in (0, 1, 2, 3, 4, 6, 7, 8)),
        *(("agents.json", place) for place in (0, 1, 2, 4)),
        *(("tasks.jsonl", line) for line in (1, 3, 4, 5, 6)),
        ("knowledge.json", 0),
        ("conversations.json", 0),
        ("all.json", 0),
    }
    assert "plain text" in said["users.json", 0]
    assert "bcrypt" in said["users.json", 2]
    assert "There is a user 'ok'" in said["users.json", 6]
    assert "temperature" in said["agents.json", 0]
    assert "99" in said["tasks.jsonl", 3]
    assert secret not in json.dumps(report.as_dict())
    counts = report.total
    assert counts.read == counts.created + counts.refused
    assert [row["username"] for row in rows(url, "users")] == ["ok"]


async def test_what_is_nobodys_needs_somebody(tmp_path, url):
    (tmp_path / "agents.json").write_text('{"name": "good_agent", "type": "x", "description": "Is good."}')
    (tmp_path / "tasks.json").write_text('[{"task": "x", "agent": "good"}]')
    report = await run(url, [tmp_path / "agents.json", tmp_path / "tasks.json"], tmp_path)
    assert "create-admin" in report.refused[0]["hint"]
    (tmp_path / "users.json").write_text(json.dumps({"bob": {"password_hash": HASH}}))
    paths = [tmp_path / "users.json", tmp_path / "tasks.json"]
    report = await run(url, paths, tmp_path, owner="bob")
    assert (report.total.created, report.refused) == (2, [])


def test_migrated_users_log_in_and_see_what_is_theirs(make_site, folder):
    site: Site = make_site()
    done = run(site.settings.location, [folder], site.settings.home)
    report = site.run(done)
    assert report.refused == []
    assert report.kinds["agents"].updated == 1  # the shipped code_agent has a new version
    headers = bearer(site.login("john.doe")["access_token"])
    assert site.client.post("/auth/login", json={"username": "gone", "password": PASSWORD}).status_code == 401
    (task,) = site.client.get("/api/v2/tasks", headers=headers).json()["data"]["tasks"]
    assert (task["result"], task["agent"], task["created_at"]) == (
        {"output": "42"},
        "code_agent",
        "2024-01-26T12:00:00.000Z",
    )
    agent = site.client.get("/api/v2/agents/code_agent", headers=headers).json()["data"]
    assert agent["definition"]["system_prompt"] == "Write good code."
    back = site.client.post("/api/v2/agents/code_agent/rollback", headers=headers, json={"shipped": True, "version": 2})
    assert back.json()["data"]["version"] == 3
    found = site.client.get("/api/v2/knowledge/search", headers=headers, params={"q": "fact 17", "mode": "text"})
    assert any(entry["item"]["title"] == "Item 17" for entry in found.json()["data"]["items"])
    said = site.client.get("/api/v2/memory/sessions/s1", headers=headers).json()["data"]["entries"]
    assert [message["content"] for message in said] == ["hi", "ho"]
    experiments = site.client.get("/api/v2/rl/experiments", headers=headers).json()["data"]["experiments"]
    assert [entry["config"] for entry in experiments] == [{}, {"lr": 1e-4, "huge": 1e152}]  # JSONB has it as an integer


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("url", "times"),
    [("sqlite", 1), *(pytest.param(kind, 4, marks=pytest.mark.slow) for kind in ("sqlite", "postgres"))],
    indirect=["url"],
)
def test_killed_anywhere_it_goes_on_and_nothing_is_there_twice(folder, tmp_path, url, times):
    (folder / "knowledge_items.jsonl").write_text(lines(knowledge(1_500)))
    migrate(url)
    command, kept = [*AGL, "migrate-json", str(folder), "--home", str(tmp_path)], {**os.environ, "DATABASE_URL": url}
    kills, chance = 0, random.Random(1)
    for _ in range(times):
        process = subprocess.Popen(command, env=kept, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        known = count(url, "json_records")
        deadline = time.monotonic() + 100
        while process.poll() is None and count(url, "json_records") <= known and time.monotonic() < deadline:
            time.sleep(0.02)  # another process: only its rows tell how far it is
        time.sleep(chance.random() / 4)  # somewhere in a batch
        process.kill()
        kills += process.wait(60) == -signal.SIGKILL
    assert kills
    code, said, errors = agl(folder, "--home", tmp_path, "--json", DATABASE_URL=url)
    assert code == 0, errors
    counts = json.loads(said)["kinds"]
    assert counts["knowledge"]["read"] == 1_500
    assert {name: count(url, name) for name in ("users", "tasks", "knowledge_items", "rl_experiments")} == {
        "users": 3,
        "tasks": 3,
        "knowledge_items": 1_500,
        "rl_experiments": 2,
    }
    assert len({row["title"] for row in rows(url, "knowledge_items")}) == 1_500
    assert count(url, "json_records") == 1_511
    assert count(url, "conversation_messages") == 2


@pytest.mark.slow
def test_the_command_says_what_it_did(folder, tmp_path):
    home, report = tmp_path / "home", tmp_path / "report.json"
    code, said, _ = agl(folder, "--home", home, "--dry-run")
    assert (code, "nothing was changed" in said, home.exists()) == (0, True, False)
    (folder / "tasks-2025.json").write_text(json.dumps([*TASKS, {"task": "x", "agent": 99}]))
    code, said, errors = agl(folder, "--home", home, "--report", report)
    assert code == 1
    assert "tasks-2025.json [3]: Its agent 99 is not there" in errors
    written = json.loads(report.read_text())
    assert written["kinds"]["tasks"] == {"read": 4, "created": 3, "updated": 0, "unchanged": 0, "refused": 1}
    assert written["refused"][0]["index"] == 3


@pytest.mark.parametrize("arguments", [[], ["missing"], [".", "--report", "no/report.json"]])
def test_what_the_command_cannot_do_is_said_before_anything_is_changed(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    migrate_json.register(app)
    done = CliRunner().invoke(app, [*arguments, "--home", "home"])
    assert isinstance(done.exception, BadInputError | NotFoundError)
    assert not (tmp_path / "home").exists()


def test_the_published_schema_is_that_of_the_records():
    assert json.loads(PUBLISHED.read_text()) == json.loads(json.dumps(schema()))
    jsonschema.Draft202012Validator.check_schema(schema())
    good = {
        "users": USERS[:1],
        "tasks": TASKS[:1],
        "experiments": EXPORT["rl_experiments"],
        "knowledge": [*knowledge(1)],
    }
    good["tasks"] = [{**TASKS[0], "agent": 7}]
    jsonschema.validate(good, schema())
    for kind, record in (("users", {"username": "x"}), ("knowledge", {"title": "x"}), ("tasks", {"status": "flying"})):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({kind: [record]}, schema())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("users.json", "users"),
        ("rl_experiments.json", "experiments"),
        ("Knowledge-Items.2025.jsonl", "knowledge"),
        ("tasks_backup.json", "tasks"),
        ("agents/code.json", "agents"),
        ("tasksheet.json", None),
        ("package.json", None),
    ],
)
def test_names_say_what_files_hold(name, kind):
    assert kind_of(Path(name)) == kind
    assert kind in (None, *KINDS)


def test_names_of_agents_become_ours():
    assert [slug_of(name) for name in ("Code Agent", "codeAgent", "code_agent", " API-2 ")] == [
        "code_agent",
        "code_agent",
        "code_agent",
        "api_2",
    ]

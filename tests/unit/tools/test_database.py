"""The tool `database`: what is let through, what the databases themselves refuse, limits; SQLite and PostgreSQL."""

import os
import sqlite3

import pytest

from agentlightning.kit.errors import BadInputError
from agentlightning.tools import ToolContext, ToolSettings, toolbox
from agentlightning.tools.base import ToolDeniedError
from agentlightning.tools.database import postgres, sqlite
from agentlightning.tools.database.statements import checked
from agentlightning.tools.settings import DatabaseSettings

SCHEMA = f"agl_tools_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
CONTEXT = ToolContext(permissions=frozenset({"agent:assign"}))
SCRIPT = """
create table people (id integer primary key, name text, salary numeric);
insert into people values (1, 'Ada', 10.5), (2, 'Bob', null), (3, 'Eve', 7);
create table secrets (value text);
insert into secrets values ('canary');
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some data.db"
    connection = sqlite3.connect(path)
    connection.executescript(SCRIPT)
    connection.close()
    return path


@pytest.fixture
def server(postgres_server):
    """URL with a schema of these tests' own."""
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(
            f"drop schema if exists {SCHEMA} cascade; create schema {SCHEMA}; set search_path = {SCHEMA}"
        )
        connection.execute(SCRIPT)
    yield f"{postgres_server}{'&' if '?' in postgres_server else '?'}schema={SCHEMA}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"drop schema {SCHEMA} cascade")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request):
    if request.param == "postgres":
        return request.getfixturevalue("server")
    return f"sqlite:///{request.getfixturevalue('file')}"


def tool_for(url, **more):
    return toolbox(ToolSettings(databases={"main": DatabaseSettings(url=url, **more)}))["database"]


async def ask(url, sql, **more):
    return await tool_for(url, **more).run({"sql": sql}, CONTEXT)


async def test_a_query_gives_rows(url):
    result = await ask(url, "select name, salary from people where name like 'A%' or id > 1 order by id")
    assert not result.is_error, result.text
    assert result.data["columns"] == ["name", "salary"]
    assert [row[0] for row in result.data["rows"]] == ["Ada", "Bob", "Eve"]
    assert result.text.splitlines()[3] == "| Bob | NULL |"


async def test_schema_and_list(url):
    tool = tool_for(url, description="Who works here")
    assert (await tool.run({"action": "list"}, CONTEXT)).text == "main: Who works here"
    schema = await tool.run({"action": "schema"}, CONTEXT)
    assert {"people", "secrets"} <= {one["table"] for one in schema.data}
    assert "Who works here" in tool.description


@pytest.mark.parametrize(
    "sql",
    [
        "insert into people values (9, 'x', 1)",
        "update people set name = 'x'",
        "delete from people",
        "drop table people",
        "create table made (x int)",
        "alter table people add column x int",
        "select 1; drop table people",
        "with gone as (delete from people returning *) select * from gone",
        "select * into made from people",
        "truncate people",
        "begin; delete from people; commit",
        "vacuum",
        "",
        "not sql at all (",
        "select " + "(" * 5000 + "1" + ")" * 5000,
        "select 1" + " " * 30_000,
        "select '\0'",
    ],
)
async def test_nothing_is_written(url, sql):
    result = await ask(url, sql)
    assert result.is_error, result.text
    assert len((await ask(url, "select * from people")).data["rows"]) == 3


async def test_rows_and_bytes_are_limited(url):
    few = await ask(url, "select * from people order by id", max_rows=2)
    assert (len(few.data["rows"]), few.data["more"]) == (2, True)
    assert "only the first 2 rows" in few.text
    long = "select " + " || ".join(["'" + "x" * 500 + "'"] * 30) + " from people"
    short = await ask(url, long, max_bytes=1500)
    assert short.data["more"]
    assert "more]" in (await ask(url, long)).data["rows"][0][0]


async def test_time_is_limited(url):
    endless = "with recursive n(x) as (select 1 union all select x + 1 from n) select count(*) from n"
    result = await ask(url, endless, timeout_s=0.5)
    assert result.data["code"] == "TOOL_TIMEOUT", result.text


async def test_tables_can_be_limited(url):
    result = await ask(url, "select * from secrets", tables=("people",))
    assert result.data["code"] == "TOOL_DENIED"
    for sql in (
        "select (select value from secrets) from people",
        "with s as (select * from secrets) select * from s",
        "select * from people where name in (select value from secrets)",
        "with secrets as (select 1) select * from people join main.secrets on 1 = 1",
        "with a as (select * from secrets), secrets as (select 1 as value) select * from a",
        "select * from (with secrets as (select 1 as value) select * from secrets) x, secrets",
        "select (with secrets as (select 1) select 1), value from secrets",
        "select * from people union select 1, value, 2 from secrets",
    ):
        result = await ask(url, sql, tables=("people",))
        assert result.is_error
        assert "canary" not in result.text
    for sql in (
        "with s as (select * from people) select * from s",
        "with s as (select * from people), t as (select * from s) select t.name, p.id from t join people p on true",
        "select name from people where id in (with s as (select 1 as id) select id from s)",
        "select count(*) from (select * from people) as x",
    ):
        result = await ask(url, sql, tables=("people",))
        assert not result.is_error, result.text
    schema = await tool_for(url, tables=("people",)).run({"action": "schema"}, CONTEXT)
    assert [one["table"] for one in schema.data] == ["people"]


async def test_writing_when_it_is_allowed(url):
    changed = await ask(url, "update people set name = '100% Zoe' where id < 3", writable=True)
    assert changed.text == "2 rows changed."
    assert changed.data["changed"] == 2
    assert (await ask(url, "drop table people", writable=True)).is_error
    assert (await ask(url, "select name from people where id = 1")).data["rows"] == [["100% Zoe"]]


async def test_the_databases_say_what_is_wrong(url):
    result = await ask(url, "select nothing from people")
    assert result.data["code"] == "BAD_INPUT"
    assert "nothing" in result.text


SQLITE_REFUSED = [
    "pragma table_info(people)",
    "attach 'x' as y",
    "select load_extension('x')",
    "select readfile('/etc/passwd')",
    "select writefile('/tmp/x', 'y')",
    "select * from pragma_database_list; select 1",
]


@pytest.mark.parametrize("sql", SQLITE_REFUSED)
async def test_sqlite_refuses(file, sql):
    assert (await ask(f"sqlite:///{file}", sql)).is_error


@pytest.mark.parametrize(
    "sql",
    [
        "insert into people values (9, 'x', 1)",
        "drop table people",
        "create temp table made (x int)",
        "attach ':memory:' as other",
        "pragma journal_mode = off",
        "select load_extension('x')",
        "select randomblob(100000000)",
        "select * from secrets",
        "select * from (with secrets as (select 1 as value) select * from secrets) x, secrets",
    ],
)
def test_sqlite_itself_holds_without_the_check(file, sql):
    """The second wall: the statement goes to SQLite unchecked."""
    with pytest.raises((ToolDeniedError, BadInputError)):
        sqlite.run(file, sql, False, DatabaseSettings(url="sqlite:///x", tables=("people",)))


async def test_postgres_itself_holds_without_the_check(server):
    settings = DatabaseSettings(url=server, timeout_s=1.0)
    for sql in (
        "create table made (x int)",
        "select 1; create table made (x int)",
        "set transaction read write",
        "select set_config('transaction_read_only', 'off', false), nextval('x')",
        "select pg_sleep(30)",
    ):
        with pytest.raises(Exception, match=r"refused|says|longer"):
            await postgres.run(server, sql, False, settings)


@pytest.mark.parametrize(
    "sql",
    [
        "select pg_read_file('/etc/passwd')",
        "select pg_catalog.pg_read_file('/etc/passwd')",
        "select * from pg_ls_dir('/')",
        "select lo_import('/etc/passwd')",
        "select * from dblink('host=evil', 'select 1') as t(x int)",
        "select query_to_xml('delete from people', true, true, '')",
        "select pg_sleep(100)",
        "select pg_terminate_backend(1)",
        "select set_config('a', 'b', false)",
        "copy people to '/tmp/x'",
        "copy people from program 'id'",
        "do $$ begin delete from people; end $$",
        "set role postgres",
        "explain analyze delete from people",
        "call anything()",
        "select * from people for update",
        "merge into people using people p on true when matched then delete",
        "listen x",
        "prepare x as select 1",
        "grant all on people to public",
        "select \"pg_read_file\"('/etc/passwd')",
    ],
)
def test_postgres_statements_that_are_refused(sql):
    with pytest.raises((ToolDeniedError, BadInputError)):
        checked(sql, "postgres", writable=False, tables=None)


@pytest.mark.parametrize(
    "sql",
    [
        "select 1",
        "select a, count(*) from t group by a having count(*) > 1 order by 2 desc limit 5",
        "with x as (select 1 as a) select * from x union all select 2",
        "select coalesce(a, 'x'), extract(year from d), d::date, a || b from t where a ilike '%x%'",
        "select sum(x) over (partition by y order by z) from t",
        "values (1, 2), (3, 4)",
        "(select 1)",
        "select * from t where a in (1, 2) and b between 1 and 2 and exists (select 1 from u)",
        "select json_agg(t) from t; ",
    ],
)
def test_statements_that_pass(sql):
    assert checked(sql, "postgres", writable=False, tables=None)[0]


async def test_urls_come_from_the_settings_only(file, monkeypatch, tmp_path):
    tool = toolbox(ToolSettings(databases={"a": DatabaseSettings(url_env="A_URL"), "b": DatabaseSettings(url="x")}))[
        "database"
    ]
    assert "Set A_URL" in (await tool.run({"sql": "select 1", "database": "a"}, CONTEXT)).text
    monkeypatch.setenv("A_URL", f"sqlite:///{file}")
    assert not (await tool.run({"sql": "select 1", "database": "a"}, CONTEXT)).is_error
    assert "neither sqlite" in (await tool.run({"sql": "select 1", "database": "b"}, CONTEXT)).text
    for name in (None, "c", f"sqlite:///{file}"):
        result = await tool.run({"sql": "select 1", "database": name}, CONTEXT)
        assert result.data["code"] == "NOT_FOUND"
    gone = await ask(f"sqlite:///{tmp_path / 'none.db'}", "select 1")
    assert gone.data["code"] == "TOOL_UNAVAILABLE"
    assert not (tmp_path / "none.db").exists()


async def test_an_address_that_does_not_answer_keeps_its_password():
    pytest.importorskip("psycopg")
    result = await ask("postgresql://user:canary@127.0.0.1:1/x", "select 1")
    assert result.data["code"] == "TOOL_UNAVAILABLE"
    assert "canary" not in result.text


def test_without_databases_it_is_off():
    assert "[databases.NAME]" in toolbox(ToolSettings())["database"].unavailable

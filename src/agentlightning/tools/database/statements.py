"""Which SQL is let through: one statement of a known kind, printed anew from its parsed form. Runs nothing.

What is executed is what was checked, since it is written from the tree and not taken from the text.
"""

from __future__ import annotations

from typing import Any, cast

from agentlightning.kit.errors import BadInputError, MissingExtraError
from agentlightning.tools.base import ToolDeniedError

_LONGEST = 20_000
_READING = ("Select", "SetOperation", "Subquery", "Values")
_WRITING = ("Insert", "Update", "Delete")
_NEVER = """
Create Drop Alter AlterColumn TruncateTable Command Set SetItem Use Copy Pragma Attach Detach Transaction Commit
Rollback Kill Grant Revoke Merge LoadData Into Lock Analyze Describe Show Comment Refresh Cache Uncache Export
"""
# Functions that read files, reach other machines or processes, run text as SQL, or change settings.
_REFUSED = """
pg_read_ pg_ls_ pg_stat_file pg_sleep pg_terminate_ pg_cancel_ pg_reload_ pg_rotate_ pg_switch_ pg_promote
pg_logical_ pg_replication_ pg_create_ pg_drop_ pg_notify pg_advisory_ pg_try_advisory_ pg_file_ pg_log_ pg_backup_
pg_export_ pg_current_logfile lo_ dblink dblink_ query_to_ table_to_ schema_to_ database_to_ cursor_to_ set_config
setval nextval copy_ load_extension readfile writefile edit fts3_tokenizer system shell xmlparse xpath current_setting
inet_server_
"""


def checked(sql: str, dialect: str, *, writable: bool, tables: tuple[str, ...] | None) -> tuple[str, bool]:
    """The statement to execute, and whether it writes.

    Raises:
        BadInputError: It cannot be parsed, or is not one statement.
        ToolDeniedError: It does something that is not allowed.
        MissingExtraError: sqlglot is missing.
    """
    exp, tree = _parsed(sql, dialect)
    kinds = tuple(getattr(exp, name) for name in (*_READING, *(_WRITING if writable else ())))
    if not isinstance(tree, kinds):
        allowed = "SELECT, INSERT, UPDATE and DELETE" if writable else "SELECT"
        raise ToolDeniedError(f"Only {allowed} can be run, not {type(tree).__name__.upper()}.")
    writing = tuple(getattr(exp, name) for name in _WRITING)
    never = tuple(kind for name in _NEVER.split() if (kind := getattr(exp, name, None)) is not None)
    for node in tree.walk():
        if isinstance(node, never) or (isinstance(node, writing) and not (writable and node is tree)):
            raise ToolDeniedError(f"{type(node).__name__.upper()} is not allowed in a query.")
        if isinstance(node, exp.Func):
            _check_function(node, exp)
    if tables is not None:
        _check_tables(tree, exp, tables)
    return tree.sql(dialect=dialect), isinstance(tree, writing)


def _parsed(sql: str, dialect: str) -> tuple[Any, Any]:
    try:
        import sqlglot
        from sqlglot import exp
        from sqlglot.errors import SqlglotError
    except ImportError as error:
        raise MissingExtraError(
            "Checking SQL needs the package sqlglot.", hint="Run: pip install 'agentlightning[tools]'"
        ) from error
    if len(sql) > _LONGEST or "\0" in sql:
        raise BadInputError(f"A query may have {_LONGEST} characters, and no NUL.")
    try:
        found = [tree for tree in sqlglot.parse(sql, dialect=dialect) if tree is not None]
    except (SqlglotError, RecursionError, ValueError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise BadInputError(
            f"The query cannot be read: {reason}", hint=f"Write one SELECT in {dialect}'s SQL."
        ) from error
    if len(found) != 1:
        raise BadInputError(f"One statement at a time; these are {len(found)}.")
    return exp, found[0]


def _check_function(node: Any, exp: Any) -> None:
    name = (node.name if isinstance(node, exp.Anonymous) else node.sql_name()).lower()
    if any(name == refused or (refused.endswith("_") and name.startswith(refused)) for refused in _REFUSED.split()):
        raise ToolDeniedError(f"The function {name} is not allowed.")


def _check_tables(tree: Any, exp: Any, tables: tuple[str, ...]) -> None:
    """A name is that of a common table expression only where its scope says so; elsewhere it is a table's."""
    from sqlglot.optimizer.scope import Scope, traverse_scope

    known = {name.lower() for name in tables}
    scopes = traverse_scope(tree) if isinstance(tree, exp.Query) else []
    own = {
        id(node)
        for scope in scopes
        for node, source in cast("dict[str, tuple[Any, Any]]", scope.selected_sources).values()
        if isinstance(source, Scope) and isinstance(node, exp.Table) and not node.db
    }
    for table in tree.find_all(exp.Table):
        whole = f"{table.db}.{table.name}".lower() if table.db else table.name.lower()
        if id(table) not in own and (whole not in known or table.catalog):
            hint = f"These can: {', '.join(sorted(known))}."
            raise ToolDeniedError(f"The table {whole!r} cannot be read here.", hint=hint)

"""Right answers of the SQL agent as whole conversations, to fine-tune on. Knows nothing of models or training."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from agentlightning.nano import chat
from agentlightning.nano.tasks import Task

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": chat.TOOL_NAME,
        "description": "Run one read-only SQL query and see its first rows.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "A SQLite SELECT statement."}},
            "required": ["query"],
        },
    },
}


def make_demonstrations(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """One conversation for each task: the question, the query that answers it, its rows, and the end.

    Returns:
        Rows with `messages` and `tools`, as `agl.SFT` and `agl train --algorithm sft --data` take them.
    """
    return [{"messages": _conversation(task), "tools": [TOOL]} for task in tasks]


def _conversation(task: Task) -> list[chat.Message]:
    with closing(sqlite3.connect(f"file:{task['database']}?mode=ro", uri=True)) as connection:
        messages = chat.first_messages(task["question"], chat.read_schema(connection))
        result, _ = chat.run_query(task["gold_sql"], connection)
    call = chat.call_message(task["gold_sql"])
    return [
        *messages,
        {**call, "content": ""},
        {"role": "tool", "tool_call_id": "call_0", "content": result},
        {"role": "assistant", "content": chat.FINAL_TEXT},
    ]

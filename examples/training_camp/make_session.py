"""Lets four versions of the SQL agent answer real questions, scores them, and writes the session as an export.

    python make_session.py session.json

The model is the embedded one, served by `agl serve`; every call is captured by its gateway, and the spans of the export
are what the gateway recorded. Scores are given by comparing the rows that were found with those that are right.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

import agentlightning as agl
from agentlightning import nano

sys.path.insert(0, str(Path(__file__).parents[1] / "sql_agent"))
import agent as sql_agent  # pyright: ignore[reportMissingImports]  # the agent of the other example, as it is

CYCLES = 8
NEED = "Answer questions about small databases with one right query."
OPENINGS = {
    "A": sql_agent.INSTRUCTIONS,
    "B": "You write SQLite queries. Use every condition of the question in WHERE. Call the sql tool once.\nTables:\n",
    "C": "You answer questions about a SQLite database with the sql tool. Mind the sort order.\nTables:\n",
    "D": "Database expert. Query first, then answer in one sentence.\nTables:\n",
}
REVISED = "Read the question twice: every filter and the right order count. "
LARGE_CHARS = 400


class Session:
    """The export as it grows."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.agents: list[dict[str, Any]] = []
        self.payloads: dict[str, str] = {}

    def add(self, kind: str, **payload: Any) -> None:
        """One event, now."""
        number = len(self.events) + 1
        self.events.append({"id": f"ev-{number}", "eventType": kind, "createdAt": now(), "payload": payload})

    def kept(self, text: str) -> Any:
        """A text, or where it stands if it is large."""
        if len(text) < LARGE_CHARS:
            return text
        name = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
        self.payloads[name] = text
        return {"$payload": name}

    def define(self, letter: str, version: int, prompt: str) -> None:
        """A version of a lineage's agent."""
        self.agents.append(
            {
                "id": f"sql-{letter.lower()}",
                "version": version,
                "name": f"SQL agent {letter}",
                "description": "Answers a question about a database by one query.",
                "systemPrompt": prompt,
                "tools": [sql_agent.SQL_TOOL["function"]],
                "model": "nano",
                **({"parentVersion": version - 1} if version > 1 else {}),
            }
        )

    def content(self, started: str) -> dict[str, Any]:
        """The whole export."""
        return {
            "format": "training-camp",
            "version": 1,
            "exportedAt": now(),
            "session": {"id": "sql-questions", "name": "SQL questions", "need": NEED, "createdAt": started},
            "lineages": [{"id": letter, "label": letter, "agentId": f"sql-{letter.lower()}"} for letter in OPENINGS],
            "agents": self.agents,
            "payloads": self.payloads,
            "events": self.events,
        }


def now() -> str:
    """As exports write it."""
    return datetime.now(UTC).isoformat()


def moment(seconds: float) -> str:
    """As exports write it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


async def attempt(
    session: Session,
    store: agl.LightningStoreClient,
    url: str,
    task: dict[str, Any],
    letter: str,
    version: int,
    cycle: int,
) -> tuple[float, str]:
    """One agent answers one question; what it did goes into the session. Returns its score and why."""
    name = f"{letter}{cycle}"
    prompt = next(item["systemPrompt"] for item in reversed(session.agents) if item["id"] == f"sql-{letter.lower()}")
    rollout = await store.start_rollout({"question": task["question"]}, rollout_id=f"sql-questions-{name}")
    attempt_id = rollout.attempt.attempt_id
    client = AsyncOpenAI(base_url=f"{url}/rollout/{rollout.rollout_id}/attempt/{attempt_id}/v1", api_key="none")
    started = now()
    sql_agent.INSTRUCTIONS = prompt
    found = await sql_agent.answer(task["question"], task["database"], model="nano", client=client)
    await client.close()
    await store.update_attempt(rollout.rollout_id, attempt_id, status="succeeded")
    calls = [span for span in await store.query_spans(rollout.rollout_id) if span.name == "openai.chat.completion"]
    spans = [exported(session, span) for span in calls]
    for number, query in enumerate(found.queries):
        result = sql_agent.run_call(json.dumps({"query": query}), task["database"], sql_agent.Answer())
        when = spans[min(number, len(spans) - 1)]
        spans.append(
            {
                "id": f"tool-{number + 1}",
                "parentId": when["id"],
                "name": "sql",
                "kind": "tool",
                "startedAt": when["endedAt"],
                "endedAt": when["endedAt"],
                "input": {"query": query},
                "output": result,
            }
        )
    session.add(
        "attempt.completed",
        attemptId=name,
        lineageId=letter,
        agentId=f"sql-{letter.lower()}",
        agentVersion=version,
        cycle=cycle,
        input={"question": task["question"]},
        output=found.text,
        status="succeeded",
        startedAt=started,
        endedAt=now(),
        spans=spans,
        artifacts=[{"id": f"query-{name}", "kind": "sql", "content": found.sql or ""}],
    )
    return judged(found, task)


def exported(session: Session, span: agl.Span) -> dict[str, Any]:
    """A captured model call as a span of the export."""
    said = span.attributes
    return {
        "id": span.span_id,
        "name": "chat",
        "kind": "llm",
        "startedAt": moment(span.start_time or 0),
        "endedAt": moment(span.end_time or 0),
        "model": str(said["gen_ai.request.model"]),
        "inputTokens": said["gen_ai.usage.input_tokens"],
        "outputTokens": said["gen_ai.usage.output_tokens"],
        "input": [
            {**message, "content": session.kept(message.get("content") or "")}
            for message in json.loads(said["gen_ai.input.messages"])
        ],
        "output": json.loads(said["gen_ai.output.messages"])[0],
    }


def judged(found: Any, task: dict[str, Any]) -> tuple[float, str]:
    """From 0 to 10, and a comment."""
    if found.rows is None:
        return 0, f"no query ran: {found.error or 'none was asked for'}"
    right = sql_agent.run_query(task["gold_sql"], task["database"])
    if nano.grade(task, found.rows) == 1:
        return 10, "right"
    if len(found.rows) != len(right):
        return 3, f"{len(found.rows)} rows where {len(right)} are right: look at the conditions"
    return 5, "as many rows as there should be, but not these"


async def develop(url: str, folder: Path) -> dict[str, Any]:
    """Eight cycles: all answer, all are scored, the best one is locked, the others get another prompt."""
    session, started = Session(), now()
    for letter, prompt in OPENINGS.items():
        session.define(letter, 1, prompt)
    tasks = nano.make_tasks("val", CYCLES, 7, folder)
    store = agl.LightningStoreClient(url)
    free, versions = set(OPENINGS), dict.fromkeys(OPENINGS, 1)
    for cycle, task in enumerate(tasks, start=1):
        scores: dict[str, float] = {}
        for letter in sorted(free):
            scores[letter], why = await attempt(session, store, url, task, letter, versions[letter], cycle)
            session.add(
                "artifact.scored",
                artifactId=f"query-{letter}{cycle}",
                score=scores[letter],
                comment=why,
                author="checker",
            )
        best = max(sorted(scores), key=lambda letter: scores[letter])
        if scores[best] == 10 and len(free) > 1:
            session.add("lineage.locked", lineageId=best, author="checker")
            free.discard(best)
        for letter in sorted(free) if cycle < CYCLES else ():
            versions[letter] += 1
            session.define(
                letter, versions[letter], re.sub(r"\nTables:\n$", f" {REVISED}\nTables:\n", OPENINGS[letter])
            )
    await store.close()
    return session.content(started)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make a session by running a real agent.")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "agentlightning.cli.main", "serve", "--model", "nano", "--port", "0"]
        server = subprocess.Popen(
            [*command, "--store", str(folder / "store.db")], stdout=subprocess.PIPE, text=True, cwd=folder
        )
        try:
            assert server.stdout is not None
            first = next((line for line in server.stdout if line.startswith("listening on ")), "")
            if not first:
                sys.exit("agl serve did not start; run it by hand to see why")
            for line in server.stdout:
                if "OPENAI_BASE_URL" in line:
                    break
            content = asyncio.run(develop(first.split()[2], folder))
        finally:
            server.terminate()
            server.wait(30)
            server.stdout.close() if server.stdout else None
    options.output.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{options.output}: {len(content['events'])} events")


if __name__ == "__main__":
    main()

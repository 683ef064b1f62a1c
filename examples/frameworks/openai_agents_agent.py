"""A text-to-SQL agent on the OpenAI Agents SDK.

    pip install openai-agents
    OPENAI_BASE_URL=... OPENAI_API_KEY=... OPENAI_MODEL=... python openai_agents_agent.py --database shop.sqlite "..."

It asks the Responses API; with `OPENAI_API=chat_completions` the other one. The SDK sends its own traces to OpenAI;
`OPENAI_AGENTS_DISABLE_TRACING=1` stops that.
"""

from __future__ import annotations

import asyncio
import os

from agents import Agent, MaxTurnsExceeded, Runner, function_tool, set_default_openai_api
from sql_database import MAX_TURNS, Answer, Database, run_program

set_default_openai_api(os.environ.get("OPENAI_API", "responses"))  # pyright: ignore[reportArgumentType]


async def answer(question: str, database: str) -> Answer:
    """Let the model query the database until it stops asking for queries."""
    files = Database(database)

    @function_tool
    def sql(query: str) -> str:
        """Run one read-only SQL query and see its first rows."""
        return files.query(query)

    agent = Agent(
        name="analyst",
        instructions=files.instructions(),
        tools=[sql],
        model=os.environ.get("OPENAI_MODEL", "default"),
    )
    try:
        result = await Runner.run(agent, question, max_turns=MAX_TURNS)
        files.found.text = str(result.final_output)
    except MaxTurnsExceeded:
        pass  # what it found until then counts
    return files.found


if __name__ == "__main__":
    run_program(lambda question, database: asyncio.run(answer(question, database)))

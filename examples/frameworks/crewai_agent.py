"""A text-to-SQL agent on CrewAI: a crew of one.

    pip install crewai
    OPENAI_BASE_URL=... OPENAI_API_KEY=... OPENAI_MODEL=... python crewai_agent.py --database shop.sqlite "How many?"

CrewAI reports its use to its makers; `CREWAI_DISABLE_TELEMETRY=true` stops that.
"""

from __future__ import annotations

import os

from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool
from sql_database import MAX_TURNS, Answer, Database, run_program


def answer(question: str, database: str) -> Answer:
    """Let the model query the database until it stops asking for queries."""
    files = Database(database)

    @tool("sql")
    def sql(query: str) -> str:
        """Run one read-only SQL query and see its first rows."""
        return files.query(query)

    analyst = Agent(
        role="analyst",
        goal="answer the question with the rows of one query",
        backstory=files.instructions(),
        tools=[sql],
        llm=LLM(model=os.environ.get("OPENAI_MODEL", "default"), provider="openai"),
        max_iter=MAX_TURNS,
    )
    task = Task(description=question, expected_output="a short answer", agent=analyst)
    files.found.text = Crew(agents=[analyst], tasks=[task]).kickoff().raw
    return files.found


if __name__ == "__main__":
    run_program(answer)

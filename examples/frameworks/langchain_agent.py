"""A text-to-SQL agent on LangChain: `create_agent`, a LangGraph loop of model and tool.

pip install langchain langchain-openai
OPENAI_BASE_URL=... OPENAI_API_KEY=... OPENAI_MODEL=... python langchain_agent.py --database shop.sqlite "How many?"
"""

from __future__ import annotations

import asyncio
import os

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.errors import GraphRecursionError
from sql_database import MAX_TURNS, Answer, Database, run_program

model = ChatOpenAI(model=os.environ.get("OPENAI_MODEL", "default"))


async def answer(question: str, database: str) -> Answer:
    """Let the model query the database until it stops asking for queries."""
    files = Database(database)

    @tool
    def sql(query: str) -> str:
        """Run one read-only SQL query and see its first rows."""
        return files.query(query)

    agent = create_agent(model, tools=[sql], system_prompt=files.instructions())
    messages = {"messages": [{"role": "user", "content": question}]}
    try:
        state = await agent.ainvoke(messages, {"recursion_limit": 2 * MAX_TURNS})
        files.found.text = str(state["messages"][-1].content)
    except GraphRecursionError:
        pass  # it would have gone on; what it found counts
    return files.found


if __name__ == "__main__":
    run_program(lambda question, database: asyncio.run(answer(question, database)))

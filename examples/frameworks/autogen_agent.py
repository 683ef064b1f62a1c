"""A text-to-SQL agent on AutoGen.

pip install autogen-agentchat 'autogen-ext[openai]'
OPENAI_BASE_URL=... OPENAI_API_KEY=... OPENAI_MODEL=... python autogen_agent.py --database shop.sqlite "How many?"
"""

from __future__ import annotations

import asyncio
import os

from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import ModelFamily, ModelInfo
from autogen_ext.models.openai import OpenAIChatCompletionClient
from sql_database import MAX_TURNS, Answer, Database, run_program

ABILITIES = ModelInfo(
    vision=False, function_calling=True, json_output=True, structured_output=True, family=ModelFamily.UNKNOWN
)


async def answer(question: str, database: str) -> Answer:
    """Let the model query the database until it stops asking for queries."""
    files = Database(database)

    async def sql(query: str) -> str:
        """Run one read-only SQL query and see its first rows."""
        return files.query(query)

    client = OpenAIChatCompletionClient(model=os.environ.get("OPENAI_MODEL", "default"), model_info=ABILITIES)
    agent = AssistantAgent(
        "analyst", client, tools=[sql], system_message=files.instructions(), max_tool_iterations=MAX_TURNS
    )
    try:
        result = await agent.run(task=question)
    finally:
        await client.close()
    files.found.text = str(getattr(result.messages[-1], "content", ""))
    return files.found


if __name__ == "__main__":
    run_program(lambda question, database: asyncio.run(answer(question, database)))

"""An agent with one client for the whole module, which knows nothing of us but the reward."""

from __future__ import annotations

import os

import openai

CLIENT = openai.AsyncOpenAI(max_retries=0)
"""Made when the module is imported, as real agents do: it must find the gateway's address in the environment."""


async def honest(question: str) -> float:
    """Asks the model twice."""
    for _ in range(2):
        answer = await CLIENT.chat.completions.create(
            model=os.environ["OPENAI_MODEL"], messages=[{"role": "user", "content": question}]
        )
    return float(len(answer.choices[0].message.content or ""))

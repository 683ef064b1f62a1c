"""The agent whose prompt is optimised; the same file for our trainer and for 0.3's."""

from __future__ import annotations

from openai import OpenAI
from prompts_simulator import grade

import agentlightning as agl

client = OpenAI()


@agl.rollout
def router(task: dict, prompt_template: agl.PromptTemplate) -> float:
    text = prompt_template.format(ticket=task["ticket"])
    answer = client.chat.completions.create(model="task", messages=[{"role": "user", "content": text}], temperature=0)
    return grade(task, answer.choices[0].message.content or "")

"""Agents of the tests with prompt optimizers; in a module of their own, so that runner processes can import them."""

from __future__ import annotations

from typing import Any

import httpx

import agentlightning as agl


async def ask(llm: agl.LLM, text: str) -> str:
    async with httpx.AsyncClient(timeout=30) as client:
        body = {"model": llm.model, "messages": [{"role": "user", "content": text}]}
        response = await client.post(f"{llm.endpoint}/chat/completions", json=body)
        response.raise_for_status()
        return response.json()["choices"][0]["message"]["content"]


@agl.rollout
async def answering(task: dict[str, Any], prompt_template: agl.PromptTemplate, llm: agl.LLM) -> float:
    return float(await ask(llm, prompt_template.format(question=task["question"])) == task["expected"])


@agl.rollout
async def answering_unlabelled(task: dict[str, Any], prompt_template: agl.PromptTemplate, llm: agl.LLM) -> float:
    """As `answering`, but no task has a reference answer: right is the value that the question names."""
    right = task["question"].rpartition("=")[2]
    return float(await ask(llm, prompt_template.format(question=task["question"])) == right)


@agl.rollout
async def answering_thrice(task: dict[str, Any], prompt_template: agl.PromptTemplate, llm: agl.LLM) -> float:
    """As `answering`, with three calls."""
    text = prompt_template.format(question=task["question"])
    return float([await ask(llm, text) for _ in range(3)][-1] == task["expected"])


@agl.rollout
async def two_steps(task: dict[str, Any], resources: agl.NamedResources, llm: agl.LLM) -> float:
    """Two prompts: the first one's answer is thrown away, both have to hold the rule for the reward to be whole."""
    rewards = [
        await ask(llm, resources[name].format(question=task["question"])) == task["expected"]
        for name in ("first", "second")
    ]
    return sum(rewards) / 2

"""An agent of the platform as something a trainer can run: its evaluation cases are the tasks. Knows no database."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from agentlightning.agent import LitAgent
from agentlightning.algorithm.evaluators import Checker
from agentlightning.platform.agents.sandboxed import sandboxed
from agentlightning.platform.learning.service import SYSTEM_PROMPT
from agentlightning.platform.tasks.react import Answer, Setting, load, react
from agentlightning.schemas import PromptTemplate
from agentlightning.schemas.agent import AgentDefinition
from agentlightning.schemas.evaluator import EvaluationCase
from agentlightning.tools.base import Tool, ToolContext

_MARKS = ("{{", "{%", "{#")


def as_template(prompt: str) -> PromptTemplate:
    """A prompt as it is: its braces are braces, and no optimizer takes them for placeholders."""
    if not any(mark in prompt for mark in _MARKS):
        return PromptTemplate(template=prompt, engine="jinja")
    return PromptTemplate(template=prompt.replace("{", "{{").replace("}", "}}"), engine="f-string")


def as_prompt(template: PromptTemplate) -> str:
    """The prompt again."""
    text = template.template
    return text if template.engine == "jinja" else text.replace("{{", "{").replace("}}", "}")


class DefinitionAgent(LitAgent[dict[str, Any]]):
    """Works on an evaluation case with the system prompt of the resources; its reward is the evaluator's score.

    Args:
        definition: The agent.
        tools: Those that are there, by name.
        permissions: What its tools may do.
        workspace: Folder for files.
    """

    def __init__(
        self,
        definition: AgentDefinition,
        tools: Mapping[str, Tool],
        *,
        permissions: frozenset[str],
        workspace: Path,
    ) -> None:
        super().__init__()
        self._definition = definition
        found = [tools[name] for name in definition.tools if name in tools]
        self._tools = [tool for tool in found if not tool.unavailable]
        self._permissions = permissions
        self._workspace = workspace

    async def rollout_async(self, task: dict[str, Any], resources: Any, rollout: Any) -> float | None:
        """The score of the answer; `None` when nobody can tell."""
        await load()
        definition, case = self._definition, EvaluationCase.model_validate(task["case"])
        llm = resources["llm"]
        attempt = getattr(rollout, "attempt", None)
        base_url = llm.endpoint if attempt is None else llm.get_base_url(rollout.rollout_id, attempt.attempt_id)
        headers = {"Authorization": f"Bearer {llm.api_key}"} if llm.api_key else {}
        async with httpx.AsyncClient(timeout=definition.timeout_s, headers=headers) as client:
            setting = Setting(
                model=llm.model,
                base_url=base_url,
                client=client,
                temperature=definition.temperature,
                max_steps=definition.max_steps,
            )
            messages: list[dict[str, str]] = []
            for example in definition.few_shot:
                messages += [
                    {"role": "user", "content": example.input},
                    {"role": "assistant", "content": example.output},
                ]
            messages.append({"role": "user", "content": case.input})
            answer = Answer()
            context = ToolContext(
                workspace=self._workspace, permissions=self._permissions, deadline_s=definition.timeout_s
            )
            await react(setting, as_prompt(resources[SYSTEM_PROMPT]), messages, self._tools, context, answer)

            async def ask(question: str) -> str:
                said = Answer()
                await react(setting, "You judge answers.", [{"role": "user", "content": question}], [], context, said)
                return said.output

            verdict = await Checker(run_python=sandboxed, ask=ask).check(
                definition.evaluator, case, answer.output, [use.tool for use in answer.uses]
            )
        return verdict.score

"""An agent of the platform as something a trainer can run: its evaluation cases are the tasks. Knows no platform."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from agentlightning.agent import LitAgent
from agentlightning.algorithm.evaluators import Ask, Checker
from agentlightning.nano.tasks import grade
from agentlightning.platform.agents.sandboxed import sandboxed
from agentlightning.platform.learning.algorithms import SYSTEM_PROMPT
from agentlightning.platform.tasks.react import Answer, NoAnswerError, Setting, StepLimitError, load, react
from agentlightning.platform.tasks.text_to_sql import SampleDatabase
from agentlightning.schemas import PromptTemplate
from agentlightning.schemas.agent import AgentDefinition
from agentlightning.schemas.evaluator import EvaluationCase
from agentlightning.tools.base import Tool, ToolContext, usable

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
        judge: Answers an evaluator that asks a model; by default the agent's own model does.
    """

    def __init__(
        self,
        definition: AgentDefinition,
        tools: Mapping[str, Tool],
        *,
        permissions: frozenset[str],
        workspace: Path,
        judge: Ask | None = None,
    ) -> None:
        super().__init__()
        self._definition = definition
        self._tools = usable(definition.tools, tools)
        self._context = ToolContext(workspace=workspace, permissions=permissions, deadline_s=definition.timeout_s)
        self._judge = judge

    async def rollout_async(self, task: dict[str, Any], resources: Any, rollout: Any) -> float | None:
        """The score of the answer; `None` when nobody can tell."""
        await load()
        llm = resources["llm"]
        attempt = getattr(rollout, "attempt", None)
        base_url = llm.endpoint if attempt is None else llm.get_base_url(rollout.rollout_id, attempt.attempt_id)
        headers = {"Authorization": f"Bearer {llm.api_key}"} if llm.api_key else {}
        async with httpx.AsyncClient(timeout=self._definition.timeout_s, headers=headers) as client:
            setting = Setting(
                model=llm.model,
                base_url=base_url,
                client=client,
                temperature=self._definition.temperature,
                max_steps=self._definition.max_steps,
            )
            return await self._score(task, resources, setting)

    async def _score(self, task: dict[str, Any], resources: Any, setting: Setting) -> float | None:
        messages: list[dict[str, str]] = []
        for example in self._definition.few_shot:
            messages += [{"role": "user", "content": example.input}, {"role": "assistant", "content": example.output}]
        messages.append({"role": "user", "content": task["input"]})
        answer = Answer()
        await react(setting, as_prompt(resources[SYSTEM_PROMPT]), messages, self._tools, self._context, answer)
        return await self._checked(task, answer.output, answer, setting)

    async def _checked(self, task: dict[str, Any], said: str, answer: Answer, setting: Setting) -> float | None:
        async def ask(question: str) -> str:
            judged = Answer()
            asked = [{"role": "user", "content": question}]
            await react(setting, "You judge answers.", asked, [], self._context, judged)
            return judged.output

        case = EvaluationCase.model_validate(task["case"])
        checker = Checker(run_python=sandboxed, ask=self._judge or ask)
        uses = [use.tool for use in answer.uses]
        return (await checker.check(self._definition.evaluator, case, said, uses)).score


class LearnerAgent(DefinitionAgent):
    """As it is when its model is trained: having no answer is a wrong answer, as in evaluations."""

    async def _score(self, task: dict[str, Any], resources: Any, setting: Setting) -> float | None:
        try:
            return await super()._score(task, resources, setting)
        except (StepLimitError, NoAnswerError):
            return 0.0


class SampleAgent(LearnerAgent):
    """On the embedded model: asks the sample database in the conversation that this model knows.

    Args:
        definition: The agent.
        database: The sample database's file.
        permissions: What its tools may do.
    """

    def __init__(self, definition: AgentDefinition, database: Path, *, permissions: frozenset[str]) -> None:
        super().__init__(definition, {}, permissions=permissions, workspace=database.parent)
        self._path = database

    async def _score(self, task: dict[str, Any], resources: Any, setting: Setting) -> float | None:
        database, answer = SampleDatabase(self._path), Answer()
        question = [{"role": "user", "content": task["input"]}]
        try:
            await react(setting, await database.instructions(), question, [database], self._context, answer)
        except (StepLimitError, NoAnswerError):
            if database.rows is None:
                return 0.0  # what the last query found counts, as in the task's own answer
        if "sample" in task:
            return grade(task["sample"], database.rows)
        said = f"```sql\n{database.query}\n```\n{database.said()}" if database.rows is not None else ""
        return await self._checked(task, said, answer, setting)

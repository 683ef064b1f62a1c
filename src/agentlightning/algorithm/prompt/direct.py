"""`optimizer.optimize(data)`: from data to the best prompt in one call, also without an agent.

Without an agent the prompt is tried as the system prompt of one chat call. Without a reward the references of the tasks
are compared, and where there are none a model judges, shown what people scored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import httpx

from agentlightning.algorithm.asking import DEFAULT_MODEL, HttpProposer
from agentlightning.algorithm.base import Algorithm
from agentlightning.algorithm.prompt.candidate import Candidate
from agentlightning.algorithm.prompt.demonstrations import input_text
from agentlightning.algorithm.prompt.placeholders import literal
from agentlightning.algorithm.prompt.result import OptimizationResult
from agentlightning.kit.errors import BadInputError, ConfigError
from agentlightning.schemas import LLM, NamedResources, PromptTemplate

_SHOWN = 6
_MAX_SHOWN = 600
_IDS = ("id", "rollout_id", "rolloutId", "attempt_id", "attemptId")
"""Under which rollouts of an export are named; their rewards name them by all but the first."""


@dataclass(frozen=True)
class Judged:
    """An output that people scored, from 0 to 1."""

    task: Any
    output: Any
    score: float
    comment: str = ""


@dataclass
class OptimizationData:
    """What an optimisation starts from."""

    tasks: list[Any]
    prompts: dict[str, PromptTemplate] = field(default_factory=dict[str, PromptTemplate])
    judged: list[Judged] = field(default_factory=list[Judged])


@runtime_checkable
class OptimizationSource(Protocol):
    """Anything that knows what an optimisation starts from, e.g. a Training Camp session."""

    def optimization_data(self) -> OptimizationData:
        """Tasks, prompts, and outputs that people scored."""
        ...


def literal_prompt(text: str) -> PromptTemplate:
    """A text without placeholders, whatever braces it has."""
    return PromptTemplate(template=literal(text, "f-string"))


def read_data(data: Any) -> OptimizationData:
    """Data in any of the accepted shapes.

    Args:
        data: A list of tasks; a mapping of `rollouts` (`input`, `output`, `score` from 0 to 10, `comment`), `rewards`
            (scores that stand apart, with the `rolloutId` or `attemptId` of theirs) and `resources` (prompts by name or
            a list of `name` and `systemPrompt` or `template`), as exports for Agent Lightning have them; or an
            `OptimizationSource`.

    Raises:
        BadInputError: It is something else.
    """
    if isinstance(data, OptimizationData):
        return data
    if isinstance(data, OptimizationSource):
        return data.optimization_data()
    if isinstance(data, Mapping):
        return _from_mapping(data)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, str):
        return OptimizationData([data[index] for index in range(len(data))])
    raise BadInputError(
        f"{type(data).__name__} is no data to optimise by.", hint="Give a list of tasks, or an export that was loaded."
    )


def _from_mapping(data: Mapping[str, Any]) -> OptimizationData:
    rollouts = data.get("rollouts", data.get("tasks"))
    if not isinstance(rollouts, Sequence):
        raise BadInputError("The data have neither 'rollouts' nor 'tasks'.", hint=f"They have: {', '.join(data)}.")
    found = OptimizationData([])
    given = _given_scores(data.get("rewards") or (), rollouts)
    for number, rollout in enumerate(rollouts):
        task = rollout["input"] if isinstance(rollout, Mapping) and "input" in rollout else rollout
        if task not in found.tasks:
            found.tasks.append(task)
        if isinstance(rollout, Mapping):
            own = [rollout] if rollout.get("score") is not None else []
            for said in (*own, *given.get(number, ())):
                comment = str(said.get("comment") or "")
                found.judged.append(Judged(task, rollout.get("output"), _score_of(said) / 10, comment))
    resources = data.get("resources") or {}
    if not isinstance(resources, Mapping):
        resources = {r.get("name", "prompt"): r.get("systemPrompt", r.get("template")) for r in resources}
    for name, prompt in resources.items():
        found.prompts[name] = prompt if isinstance(prompt, PromptTemplate) else literal_prompt(str(prompt))
    return found


def _given_scores(rewards: Any, rollouts: Sequence[Any]) -> dict[int, list[Mapping[str, Any]]]:
    """Rewards that stand beside the rollouts, by the rollout's place."""
    places = {str(r[key]): n for n, r in enumerate(rollouts) if isinstance(r, Mapping) for key in _IDS if key in r}
    found: dict[int, list[Mapping[str, Any]]] = {}
    for reward in rewards:
        named = [str(reward[key]) for key in _IDS[1:] if key in reward] if isinstance(reward, Mapping) else []
        place = next((places[name] for name in named if name in places), None)
        if place is None:
            raise BadInputError(
                f"A reward belongs to none of the rollouts: {str(reward)[:200]}.",
                hint=f"Rollouts have one of {', '.join(_IDS)}, rewards one of {', '.join(_IDS[1:])}, and a score.",
            )
        found.setdefault(place, []).append(reward)
    return found


def _score_of(said: Mapping[str, Any]) -> float:
    score = said.get("score", said.get("value"))
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 10:
        raise BadInputError(f"{score!r} is no score.", hint="Scores are numbers from 0 to 10.")
    return float(score)


async def chat_once(task: Any, resources: NamedResources, llm: LLM) -> str:
    """The agent that is used when none is given: the prompt, the task, one answer."""
    prompts = {name: r for name, r in resources.items() if isinstance(r, PromptTemplate)}
    candidate = Candidate(prompts)
    name, prompt = next(iter(prompts.items()))
    names = candidate.placeholders(name)
    if names:
        values = task if isinstance(task, Mapping) else dict.fromkeys(names, task)
        messages = [{"role": "user", "content": prompt.format(**{n: values.get(n, "") for n in names})}]
    else:
        told = input_text(task, candidate)
        messages = [{"role": "system", "content": prompt.format()}, {"role": "user", "content": told}]
    headers = {"Authorization": f"Bearer {llm.api_key}"} if llm.api_key else {}
    async with httpx.AsyncClient(timeout=120, headers=headers, verify=llm.endpoint.startswith("https")) as client:
        body = {**llm.sampling_parameters, "model": llm.model, "messages": messages}
        response = await client.post(f"{llm.endpoint}/chat/completions", json=body)
        response.raise_for_status()
        return response.json()["choices"][0]["message"].get("content") or ""


def optimize(
    optimizer: Algorithm,
    data: Any,
    *,
    agent: Any = None,
    prompt: str | PromptTemplate | Mapping[str, PromptTemplate] | None = None,
    reward: Any = None,
    model: str | None = None,
    base_url: str | None = None,
    val_data: Any = None,
    test_data: Any = None,
    **trainer: Any,
) -> OptimizationResult:
    """See `PromptOptimizer.optimize`."""
    # The trainer is a room above this one; it is reached by its public name when somebody calls this.
    import agentlightning as agl

    found = read_data(data)
    prompts = _prompts(prompt) or found.prompts
    if not prompts:
        raise ConfigError("There is no prompt to optimise.", hint='Give prompt="...", or data with resources.')
    if agent is None and len(prompts) > 1:
        raise ConfigError(
            f"There are {len(prompts)} prompts ({', '.join(prompts)}), and no agent that uses them.",
            hint="Give agent=, or prompt= with the one that is meant.",
        )
    llm = _model(model, base_url, needed=agent is None)
    resources: NamedResources = {**prompts, **({"llm": llm} if llm else {})}
    runner = agl.Trainer(
        algorithm=optimizer,
        initial_resources=resources,
        evaluator=_reward(reward, found, llm, needed=agent is None),
        **{"strategy": "shm", "name": "optimize", **trainer},
    )
    tests = {} if test_data is None else {"test": read_data(test_data).tasks}
    val = None if val_data is None else read_data(val_data).tasks
    result = runner.fit(agent or chat_once, found.tasks, val_dataset=val, test_datasets=tests).optimization
    assert result is not None
    return result


def _prompts(prompt: Any) -> dict[str, PromptTemplate]:
    if prompt is None:
        return {}
    if isinstance(prompt, Mapping):
        return dict(prompt)
    return {"prompt_template": prompt if isinstance(prompt, PromptTemplate) else PromptTemplate(template=prompt)}


def _model(model: str | None, base_url: str | None, *, needed: bool) -> LLM | None:
    address, key = base_url or os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
    if address is None and key is None:
        if needed:
            raise ConfigError(
                "There is no model to try prompts on.",
                hint="Give base_url= and model=, set OPENAI_BASE_URL or OPENAI_API_KEY, or give agent=.",
            )
        return None
    named = model or os.environ.get("OPENAI_MODEL") or DEFAULT_MODEL
    return LLM(endpoint=address or "https://api.openai.com/v1", model=named, api_key=key)


def _reward(reward: Any, data: OptimizationData, llm: LLM | None, *, needed: bool) -> Any:
    from agentlightning.algorithm.rewards import Judge, find_reward, reference_of

    if reward is not None:
        return find_reward(reward)
    if not needed:
        return None
    if all(reference_of(task) is not None for task in data.tasks):
        return find_reward("exact")
    assert llm is not None  # there is no agent, so there is a model
    return Judge(rubric_of(data.judged), judge=HttpProposer(llm.endpoint, llm.model, llm.api_key))


def rubric_of(judged: Sequence[Judged]) -> str:
    """A rubric out of what people scored: the best, the worst, and what they said."""
    rubric = "Is the output correct and complete, and does it do what the task asks for?"
    if not judged:
        return rubric
    ranked = sorted(judged, key=lambda one: one.score)
    half = _SHOWN // 2
    shown = ranked if len(ranked) <= _SHOWN else [*ranked[:half], *ranked[-half:]]
    lines = [
        f"- {10 * one.score:g} of 10{f' ({one.comment})' if one.comment else ''}: {str(one.output)[:_MAX_SHOWN]}"
        for one in shown
    ]
    return f"{rubric}\nSo people scored other outputs of this agent:\n" + "\n".join(lines)

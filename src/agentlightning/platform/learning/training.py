"""Trains an agent's model in the process of an experiment: GRPO on its cases, or SFT on its well-rated tasks.

Compares it on held-out cases with what it was before, and registers it as a candidate whatever came out; who puts it
into production is decided elsewhere. Knows no database of the platform, and no torch: the engine is another process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from agentlightning.algorithm.base import Algorithm
from agentlightning.algorithm.evaluators import Ask, CannotTellError
from agentlightning.algorithm.prompt.result import Comparison
from agentlightning.algorithm.supervised import SFT
from agentlightning.algorithm.weights import GRPO
from agentlightning.config import Settings
from agentlightning.kit.stats import paired_interval
from agentlightning.nano.recipe import RECIPE
from agentlightning.platform.learning.algorithms import SYSTEM_PROMPT
from agentlightning.platform.learning.cases import Cases, cases_of
from agentlightning.platform.learning.order import Job, Trained
from agentlightning.platform.learning.trainable import DefinitionAgent, LearnerAgent, SampleAgent, as_template
from agentlightning.platform.tasks.text_to_sql import sample_path
from agentlightning.schemas import Rollout
from agentlightning.schemas.agent import AgentDefinition
from agentlightning.tools import toolbox
from agentlightning.trainer import RunResult, Trainer
from agentlightning.trainer.runlog import MetricsLog

Tell = Callable[[dict[str, Any]], None]

HELD_OUT = "held_out"
_STEPS, _PROMPTS_PER_STEP, _MAX_TOKENS = 20, 16, 512
_WELL_RATED = 0.75
_EMBEDDED_RATE = 5e-4
_JUDGE_TOKENS = 400
_RARELY_RANDOM = 0.5
"""Agents that ask at temperatures below are compared by the most likely answers, others by samples."""


def train(job: Job, tell: Tell) -> dict[str, Any]:
    """What came out: `metrics`, and the `checkpoint` that names the registered version.

    Args:
        job: What to do; repeated with the same run id it goes on.
        tell: Called with how far it is.

    Raises:
        SignalError: There is nothing to learn from.
        RunStopped: It was asked to stop; nothing was registered.
        AgentLightningError: Anything else that is known.
    """
    weights = job.weights
    assert weights is not None
    cases = cases_of(job.definition, weights.style, job.home)
    with tempfile.TemporaryDirectory(prefix="agl-experiment-") as folder:
        trainer = Trainer(
            algorithm=algorithm_of(job, cases),
            model=weights.path,
            strategy="shm",
            initial_resources={SYSTEM_PROMPT: as_template(job.definition.system_prompt)},
            settings=Settings(home=job.home, store=job.store),
            name=weights.name,
            run_id=job.run_id,
            seed=job.config.seed,
            device=weights.device,
            register="always",
            on_event=Progress(tell),
        )
        agent = _agent(job, weights, Path(folder))
        rows = None if job.algorithm == "sft" else cases.train
        watched = cases.held_out if job.algorithm == "grpo" else None
        result = trainer.fit(agent, rows, val_dataset=watched, test_datasets={HELD_OUT: cases.held_out})
    return described(result, job, cases)


def algorithm_of(job: Job, cases: Cases) -> Algorithm:
    """With the settings that fit the agent, and over them those of the experiment."""
    is_embedded = job.weights is not None and job.weights.style is not None
    given = {"seed": job.config.seed, **job.config.settings}
    if job.algorithm == "sft":
        known = {"learning_rate": _EMBEDDED_RATE, "max_tokens": RECIPE["max_tokens"]} if is_embedded else {}
        return SFT(
            {"min_reward": _WELL_RATED, "feedback": True, "max_tokens": _MAX_TOKENS, **known, **given},
            leave_out=leaves_out(job.definition, cases),
        )
    known = dict(RECIPE) if is_embedded else {"steps": _STEPS, "max_tokens": _MAX_TOKENS}
    # Held-out cases may be watched on request; nothing is chosen by what is seen there.
    known |= {"eval_every": 0, "rollout_timeout_s": job.definition.timeout_s}
    known["prompts_per_step"] = min(known.get("prompts_per_step", _PROMPTS_PER_STEP), len(cases.train))
    return GRPO({**known, **given})


def leaves_out(definition: AgentDefinition, cases: Cases) -> Callable[[Rollout], str | None]:
    """Only the agent's own tasks are learnt from, and none that asks what a held-out case asks."""
    held_out = {_folded(task["input"]) for task in cases.held_out}
    held_out |= {_folded(case.input) for case in definition.cases("held_out")}

    def why(rollout: Rollout) -> str | None:
        if (rollout.metadata or {}).get("agent") != definition.name:
            return "other_agent"
        asked = rollout.input.get("task", "") if isinstance(rollout.input, Mapping) else rollout.input
        return "held_out" if _folded(str(asked)) in held_out else None

    return why


class Progress:
    """Tells how far a run is, all of it each time.

    Args:
        tell: Called with it.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._known: dict[str, Any] = {}
        self._rewards: dict[int, float | None] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        """An event of a trainer."""
        kind = event["type"]
        if kind == "phase":
            self._known["phase"] = " ".join(str(event[part]) for part in ("name", "detail") if part in event)
        elif kind in ("started", "resumed", "step"):
            told = ("step", "steps", "reward", "loss", "groups_with_variance", "tokens_trained")
            self._known |= {name: event[name] for name in told if name in event}
            if "reward" in event:
                self._rewards[event["step"]] = event["reward"]
                self._known["rewards"] = [[step, reward] for step, reward in sorted(self._rewards.items())]
        elif kind == "eval":
            self._known["score"] = event["accuracy"]
        elif kind == "compare":
            scores = {**self._known.get("scores", {}), f"{event['when']}/{event['name']}": event["accuracy"]}
            self._known |= {"scores": scores, "score": event["accuracy"]}
        else:
            return
        self._tell(dict(self._known))


def comparisons_of(result: RunResult, temperature: float) -> list[Comparison]:
    """Held-out cases before and after, case by case; first the comparison that decides.

    Args:
        result: Of the run.
        temperature: At which the agent asks its model.
    """
    found: list[Comparison] = []
    for name, before in result.before.items():
        after = result.after.get(name, {"rewards": []})
        pairs = [
            (b, a) for b, a in zip(before["rewards"], after["rewards"], strict=False) if b is not None and a is not None
        ]
        if pairs:
            olds, news = zip(*pairs, strict=True)
            found.append(
                Comparison(
                    name, True, len(pairs), sum(olds) / len(pairs), sum(news) / len(pairs), paired_interval(pairs)
                )
            )
    by = "greedy" if temperature < _RARELY_RANDOM else "sampled"
    return sorted(found, key=lambda each: not each.data.endswith(by))


def described(result: RunResult, job: Job, cases: Cases) -> dict[str, Any]:
    """What the platform keeps of a run."""
    assert job.weights is not None
    temperature = 0.0 if job.weights.style is not None else job.definition.temperature
    comparisons = comparisons_of(result, temperature)
    ref = None if result.model is None else result.model.ref
    is_improved = bool(comparisons) and comparisons[0].is_shown
    metrics: dict[str, Any] = {
        "comparisons": [each.as_dict() for each in comparisons],
        "is_improved": is_improved,
        "why": _verdict(comparisons, is_improved),
        "model": ref,
        "run_id": result.run_id,
        "data": {"source": cases.source, "train": len(cases.train), "held_out": len(cases.held_out)},
        "rewards": _rewards(result.directory),
        "seconds": round(result.seconds, 1),
    }
    if result.learning is not None:
        metrics["learning"] = result.learning.as_dict()
        metrics["data"]["train"] = result.learning.train
        metrics["data"]["source"] = "rated tasks"
    if result.model is None:
        return {"metrics": metrics, "checkpoint": None}
    version = result.model
    made = {"kind": "model", "model": ref, "run_id": version.run_id, "step": version.step, "parent": version.parent}
    return {"metrics": metrics, "checkpoint": made}


def _rewards(run: Path) -> list[list[Any]]:
    """Mean reward of each step, those before a restart, too."""
    events = MetricsLog(run, tensorboard=False).read()
    return [[each["step"], each["reward"]] for each in events if each["type"] == "step" and "reward" in each]


def _verdict(comparisons: list[Comparison], is_improved: bool) -> str:
    if not comparisons:
        return "Nothing can be said: no held-out case has a score before and after."
    first = comparisons[0]
    mean, low, high = first.gain
    said = "Better" if is_improved else "Not shown to be better"
    change = f"{first.before:.3f} -> {first.after:.3f}, {mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"{said} on {first.n} held-out cases ({first.data}): {change}."


def _agent(job: Job, weights: Trained, folder: Path) -> DefinitionAgent:
    permissions = frozenset(job.permissions)
    if weights.style is not None:
        return SampleAgent(job.definition, sample_path(job.home), permissions=permissions)
    return LearnerAgent(job.definition, toolbox(), permissions=permissions, workspace=folder, judge=judge_of(job))


def judge_of(job: Job) -> Ask:
    """Asks the platform's model, not the one in training, past the run: a verdict is no answer to learn from."""

    async def ask(question: str) -> str:
        if not job.model:
            raise CannotTellError("there is no model to judge besides the one in training")
        body = {
            "model": job.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": _JUDGE_TOKENS,
            "temperature": 0.0,
        }
        headers = {"Authorization": f"Bearer {job.api_key}"}
        try:
            async with httpx.AsyncClient(timeout=job.definition.timeout_s, headers=headers) as client:
                answered = await client.post(f"{job.base_url}/chat/completions", json=body)
            answered.raise_for_status()
            return str(answered.json()["choices"][0]["message"].get("content") or "")
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise CannotTellError(f"the judge does not answer: {error}") from error

    return ask


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())

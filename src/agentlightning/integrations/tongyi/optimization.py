"""An optimisation over what was kept: prompts by search, weights by reinforcement, and by examples.

Each mode does what it says or says what is missing. Knows no command line.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from agentlightning.algorithm import GRPO, SFT
from agentlightning.algorithm.prompt import Budget, OptimizationResult, make_optimizer
from agentlightning.config import Settings
from agentlightning.integrations.tongyi.config import Mode
from agentlightning.integrations.tongyi.finetuning import best_rated, examples_of, tasks_beside, write_examples
from agentlightning.integrations.tongyi.optimized_agent import OptimizedAgent
from agentlightning.integrations.tongyi.recording import ResearchRollout
from agentlightning.integrations.tongyi.records import Interaction
from agentlightning.kit.errors import AgentLightningError, BadInputError
from agentlightning.kit.files import write_atomic
from agentlightning.trainer import RunResult, Trainer

MIN_INTERACTIONS = 10
HINTS = (
    "Check you have enough training data (10+ interactions)",
    "Verify training configuration",
    "Try fewer iterations: `--optimize-iterations 50`",
)
_HELD_OUT_FROM = 12
_GROUP = 4
_PROMPTS_PER_STEP = 4
_AT_ONCE = 4
_CUT = ("RUN_STOPPED", "UPSTREAM_FAILED")
Report = Callable[[dict[str, Any]], None]


class OptimizationError(AgentLightningError):
    """Nothing can be optimised; the message says why."""

    code = "OPTIMIZATION_FAILED"
    status = 409


@dataclass
class Outcome:
    """What an optimisation did."""

    mode: Mode
    """What was asked for."""
    success: bool = False
    message: str = ""
    """In a sentence or two: what was done, what was found, what is missing."""
    run_id: str | None = None
    queries: int = 0
    version: int | None = None
    """Of the new prompts, when there are any."""
    on_trial: bool = False
    gain: tuple[float, float, float] | None = None
    """Change of the reward and the bounds of its 95 % interval."""
    held_out: bool = False
    """Whether the gain was measured on queries that nothing was chosen on."""
    spent: dict[str, Any] = field(default_factory=dict[str, Any])
    dataset: Path | None = None
    """The answers that were chosen, as conversations."""
    model: str | None = None
    """The registered version of trained weights."""
    reason: str = ""
    """Why it failed."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**self.__dict__, "dataset": str(self.dataset) if self.dataset else None}


async def optimize(
    agent: OptimizedAgent, *, iterations: int, queries: Sequence[str] | None = None, report: Report | None = None
) -> Outcome:
    """Optimise by the agent's mode.

    Args:
        agent: With its history.
        iterations: Runs of the agent that may be paid for.
        queries: What to optimise on; by default those of the history.
        report: Told of progress, see `Trainer(on_event=...)`.

    Raises:
        RunStopped: Ctrl-C; what was paid for is kept.
    """
    mode = agent.optimization_mode
    outcome = Outcome(mode)
    try:
        agent.save()
        history = agent.data.read()
        work = {"prompt": _prompts, "rl": _weights, "sft": _examples}[mode]
        await work(outcome, agent, _Given(history, _queries(agent, history, queries), iterations, report))
        agent.trials.optimized()
    except AgentLightningError as error:
        if error.code == "RUN_STOPPED":
            raise
        outcome.success, outcome.reason = False, str(error)
        if not isinstance(error, OptimizationError):
            agent.trials.optimized()  # a schedule does not pay for the same failure after every query
    return outcome


@dataclass(frozen=True)
class _Given:
    history: list[Interaction]
    queries: list[str]
    iterations: int
    report: Report | None


def _queries(agent: OptimizedAgent, history: list[Interaction], given: Sequence[str] | None) -> list[str]:
    section = agent.config.prompt_optimization
    if given:
        return list(dict.fromkeys(given))
    if not history:
        raise OptimizationError("No training data found. Run with --train to generate training data first.")
    if len(history) < MIN_INTERACTIONS:
        raise OptimizationError(f"There are {len(history)} interactions; {MIN_INTERACTIONS} or more are needed.")
    if not section.use_history:
        raise OptimizationError(
            "use_history = false, and no queries were given.", hint="Set use_history = true in [prompt_optimization]."
        )
    return list(dict.fromkeys(entry.query for entry in history[-section.history_size :]))


class Unfinished:
    """The run of an optimisation that was cut: the same one again continues it, and pays for nothing twice.

    Args:
        agent: Whose optimisation it is.
        what: All that makes it the same one, beside the prompts at work and the target.
    """

    def __init__(self, agent: OptimizedAgent, *what: str) -> None:
        self._path = agent.data.folder / "unfinished.json"
        target = agent.config.prompt_optimization.optimization_target
        text = orjson.dumps([*what, agent.agent_type, target, agent.book.active])
        self._key = hashlib.sha256(text).hexdigest()

    @property
    def run_id(self) -> str | None:
        """Of the run to continue, if there is one."""
        try:
            kept = orjson.loads(self._path.read_bytes())
            return str(kept["run_id"]) if kept["key"] == self._key else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None  # worth no more than beginning anew

    @contextmanager
    def running(self, run_id: str) -> Generator[None]:
        """Within the block the run counts as cut, and after it, too, when it was stopped or a server was away."""
        write_atomic(self._path, orjson.dumps({"run_id": run_id, "key": self._key}))
        try:
            yield
        except AgentLightningError as error:
            if error.code not in _CUT:
                self._path.unlink(missing_ok=True)
            raise
        self._path.unlink(missing_ok=True)


# -- prompts


async def _prompts(outcome: Outcome, agent: OptimizedAgent, given: _Given) -> None:
    section = agent.config.prompt_optimization
    llm = await agent.find_model()
    train, val, test = split(given.queries)
    optimizer = make_optimizer(section.optimizer, budget=Budget(calls=given.iterations * _calls_per_run(given.history)))
    unfinished = Unfinished(agent, "prompt", section.optimizer, llm.model, *given.queries)
    trainer = Trainer(
        algorithm=optimizer,
        run_id=unfinished.run_id,
        strategy="shm",
        max_concurrency=_AT_ONCE,
        initial_resources={"llm": llm, **agent.book.prompts(agent.book.active)},
        settings=Settings(),
        name="tongyi",
        on_event=given.report,
    )
    outcome.run_id, outcome.queries = trainer.run_id, len(given.queries)
    with unfinished.running(trainer.run_id):
        result = await trainer.fit_async(
            ResearchRollout(agent), train, val_dataset=val, test_datasets={"test": test} if test else None
        )
    found = result.optimization
    if found is None:
        raise OptimizationError("The optimiser gave no result.")
    _take(outcome, agent, found)


def _take(outcome: Outcome, agent: OptimizedAgent, found: OptimizationResult) -> None:
    outcome.success, outcome.gain, outcome.spent = True, found.gain, dict(found.spent)
    outcome.held_out = bool(found.comparisons) and found.comparisons[0].held_out
    if found.best == found.start or found.gain is None or not found.gain[0] > 0:
        outcome.message = f"No better prompt was found; the present one stays. {found.stopped_because}".strip()
        return
    on_trial = agent.config.experiments.enable_ab_testing
    evidence = {"gain": list(found.gain), "held_out": outcome.held_out, "n": found.comparisons[0].n}
    outcome.version = agent.book.add(
        {name: prompt.template for name, prompt in found.best_prompts.items()},
        run_id=found.run_id,
        optimizer=found.optimizer,
        evidence=evidence,
        on_trial=on_trial,
    )
    outcome.on_trial = on_trial
    gain, low, high = found.gain
    where = f"{found.comparisons[0].n} {'held-out' if outcome.held_out else 'validation'} queries"
    told = f"Better by {gain:+.3f} [{low:+.3f}, {high:+.3f}] on {where}"
    shown = "" if low > 0 else "; the interval includes zero, so that this may be chance"
    place = "on trial against the standard prompts" if on_trial else "at work from now on"
    outcome.message = f"{told}{shown}. Version {outcome.version} of the prompts is {place}."


def split(queries: Sequence[str]) -> tuple[list[dict[str, str]], list[dict[str, str]], list[dict[str, str]]]:
    """Training, validation and, from 12 queries on, held-out tasks; the same query always lands in the same order.

    Raises:
        BadInputError: There are fewer than four different ones.
    """
    if len(queries) < 4:
        raise BadInputError(
            f"{len(queries)} different queries are too few to see whether a prompt is better on others.",
            hint="Four or more are needed.",
        )
    order = sorted(queries, key=lambda query: hashlib.sha256(query.encode()).digest())
    tasks = [{"query": query} for query in order]
    if len(tasks) < _HELD_OUT_FROM:
        half = len(tasks) // 2
        return tasks[:half], tasks[half:], []
    third = len(tasks) // 3
    return tasks[: len(tasks) - 2 * third], tasks[len(tasks) - 2 * third : len(tasks) - third], tasks[-third:]


def _calls_per_run(history: list[Interaction]) -> int:
    """Model calls of a typical interaction."""
    known = [entry.model_calls for entry in history if entry.model_calls]
    return max(1, math.ceil(math.fsum(known) / len(known))) if known else 4


# -- weights


async def _weights(outcome: Outcome, agent: OptimizedAgent, given: _Given) -> None:
    local = agent.config.training.local_model
    if local is None:
        await _prompts(outcome, agent, given)
        outcome.message = (
            "Weights were not trained: reinforcement learning needs an open model on this machine, and local_model in "
            f"[training] names none. The prompts were optimised instead. {outcome.message}"
        )
        return
    train, val, test = split(given.queries)
    steps = max(1, given.iterations // (_GROUP * _PROMPTS_PER_STEP))
    algorithm: GRPO = GRPO(
        steps=steps,
        prompts_per_step=min(_PROMPTS_PER_STEP, len(train)),
        group_size=_GROUP,
        learning_rate=1e-5,
        max_tokens=512,
        eval_every=0,
        rollout_timeout_s=agent.config.agent.timeout_s,
    )
    unfinished = Unfinished(agent, "rl", local, str(steps), *given.queries)
    trainer = _trainer(algorithm, local, agent, given, unfinished)
    outcome.run_id, outcome.queries = trainer.run_id, len(given.queries)
    with unfinished.running(trainer.run_id):
        result = await trainer.fit_async(ResearchRollout(agent), train, test_datasets={"test": test or val})
    outcome.success, outcome.gain, outcome.held_out = True, result.gain, True
    outcome.model = result.model.ref if result.model else None
    told = "No gain could be measured." if result.gain is None else f"Change of the reward {_interval(result.gain)}."
    outcome.message = f"{steps} steps of GRPO on {local}. {told} {_kept(outcome, result)}"


def _trainer(
    algorithm: GRPO | SFT, local: str, agent: OptimizedAgent, given: _Given, unfinished: Unfinished
) -> Trainer:
    """Of the weights of `local`, with the prompts that are in use."""
    return Trainer(
        algorithm=algorithm,
        model=_path(local),
        run_id=unfinished.run_id,
        strategy="shm",
        max_concurrency=_AT_ONCE * _GROUP,
        initial_resources=dict(agent.book.prompts(agent.book.active)),
        settings=Settings(),
        name="tongyi",
        on_event=given.report,
    )


def _interval(gain: tuple[float, float, float]) -> str:
    return f"{gain[0]:+.3f} [{gain[1]:+.3f}, {gain[2]:+.3f}]"


def _path(name: str) -> str:
    if name != "nano":
        return name
    from agentlightning import nano

    return str(nano.model_path())


# -- examples


async def _examples(outcome: Outcome, agent: OptimizedAgent, given: _Given) -> None:
    chosen = best_rated(given.history)
    if not chosen:
        raise OptimizationError("No interaction has both an answer and a reward to choose examples by.")
    path = write_examples(agent, chosen)
    outcome.dataset, outcome.queries = path, len(chosen)
    local = agent.config.training.local_model
    told = (
        f"{len(chosen)} of {len(given.history)} interactions, the best rated, were written to {path} as conversations."
    )
    if local is None:
        outcome.success = True
        outcome.message = (
            f"{told} Weights were not trained: that needs an open model on this machine, and local_model in [training] "
            f"names none. To train one by hand: agl train --algorithm sft --data {path} --model PATH_OR_HUB_ID."
        )
        return
    learn, held_out = await examples_of(agent, chosen)
    tasks = tasks_beside(given.history, chosen, given.iterations)
    unfinished = Unfinished(agent, "sft", local, str(len(tasks)), *(entry.id for entry in chosen))
    trainer = _trainer(SFT(learning_rate=1e-5, held_out=0.0, max_tokens=512), local, agent, given, unfinished)
    outcome.run_id = trainer.run_id
    with unfinished.running(trainer.run_id):
        result = await trainer.fit_async(
            ResearchRollout(agent) if tasks else None,
            learn,
            val_dataset=held_out or None,
            test_datasets={"others": tasks} if tasks else None,
        )
    outcome.success, outcome.gain = True, result.gain
    outcome.held_out = bool(tasks or held_out)
    outcome.model = result.model.ref if result.model else None
    outcome.message = f"{told} {_learned(local, result)} {_kept(outcome, result)}"


def _learned(local: str, result: RunResult) -> str:
    learning = result.learning
    if learning is None:
        raise OptimizationError("The fine-tuning gave no result.")
    left_out = ", ".join(f"{count} {reason}" for reason, count in learning.data["skipped"].items())
    told = f"{local} was fine-tuned on {learning.train} answers in {learning.steps} steps"
    told += f" (left out: {left_out})." if left_out else "."
    if learning.gain is not None:
        before, after = learning.before["loss"], learning.after["loss"]
        told += f" Loss on {learning.held_out} held-out answers {before:.3f} before, {after:.3f} after."
    if result.gain is not None:
        told += f" Change of the reward on queries that were not learned {_interval(result.gain)}."
    return told


def _kept(outcome: Outcome, result: RunResult) -> str:
    kept = (
        f"Registered; serve it with: agl serve {outcome.model}."
        if outcome.model
        else "Not shown to be better, hence not registered."
    )
    return f"{kept} Weights: {result.directory / 'model'}"

"""`python -m agentlightning.platform.learning.job`: runs one experiment; what to do comes as JSON on standard input.

It says how far it is, and in the end what came out, as JSON lines on standard output. Repeated with the same run id it
goes on where it was cut, and pays for nothing twice. Knows no database of the platform.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

from agentlightning.algorithm.agent_rewards import tasks_of
from agentlightning.algorithm.prompt import Budget, OptimizationResult, make_optimizer
from agentlightning.config import Settings
from agentlightning.kit.errors import AgentLightningError
from agentlightning.platform.learning.algorithms import SYSTEM_PROMPT
from agentlightning.platform.learning.order import STOPPED_CODE, Job
from agentlightning.platform.learning.trainable import DefinitionAgent, as_prompt, as_template
from agentlightning.schemas import LLM
from agentlightning.tools import toolbox

_TOLD = ("step", "eval", "comparison")


def main() -> None:
    """Run what standard input says."""
    # Libraries print what they like: from here on to standard error.
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        job = Job.model_validate_json(sys.stdin.buffer.read())
        _say(out, "result", **_run(job, out))
    except AgentLightningError as error:
        _say(out, "error", **error.as_dict())
        sys.exit(STOPPED_CODE if error.code == "RUN_STOPPED" else 1)


def _run(job: Job, out: TextIO) -> dict[str, Any]:
    if job.weights is None:
        return _described(_optimize(job, out))
    from agentlightning.platform.learning.training import train

    return train(job, lambda event: _say(out, "progress", event=event))


def _optimize(job: Job, out: TextIO) -> OptimizationResult:
    from agentlightning.trainer import Trainer

    def told(event: dict[str, Any]) -> None:
        if event["type"] in _TOLD:
            _say(out, "progress", event=event)

    config = job.config
    optimizer = make_optimizer(
        job.algorithm,
        budget=Budget(calls=config.budget_calls, tokens=config.budget_tokens),
        proposer_model=config.proposer_model,
        **config.settings,
    )
    with tempfile.TemporaryDirectory(prefix="agl-experiment-") as folder:
        agent = DefinitionAgent(
            job.definition, toolbox(), permissions=frozenset(job.permissions), workspace=Path(folder)
        )
        trainer = Trainer(
            algorithm=optimizer,
            strategy="shm",
            initial_resources={
                "llm": LLM(endpoint=job.base_url, model=job.model, api_key=job.api_key),
                SYSTEM_PROMPT: as_template(job.definition.system_prompt),
            },
            settings=Settings(home=job.home, store=job.store),
            run_id=job.run_id,
            seed=config.seed,
            on_event=told,
        )
        held_out = tasks_of(job.definition, "held_out")
        tests = {"held_out": held_out} if held_out else None
        found = trainer.fit(agent, tasks_of(job.definition, "train"), test_datasets=tests).optimization
    assert found is not None
    return found


def _described(found: OptimizationResult) -> dict[str, Any]:
    said = found.as_dict()
    left_out = ("best", "start", "run_id")
    return {
        "metrics": {name: value for name, value in said.items() if name not in left_out},
        "checkpoint": {
            "kind": "best",
            "prompts": {name: as_prompt(prompt) for name, prompt in found.best_prompts.items()},
        }
        if found.best != found.start
        else None,
    }


def _say(out: TextIO, kind: str, **content: Any) -> None:
    out.write(json.dumps({"type": kind, **content}, default=str) + "\n")


if __name__ == "__main__":
    main()

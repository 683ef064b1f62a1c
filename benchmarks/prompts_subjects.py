"""One optimizer on one seed, in an interpreter of its own; prints a line of JSON. Started by `prompts.py`.

Each gets the same tickets, the same starting instruction and the same number of model calls at most. Settings of the
peers are chosen so that they end near the budget, by their own knobs; what each used is counted at the server.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI, OpenAI
from prompts_simulator import SEED_INSTRUCTION, SEED_PROMPT, grade


def apo_settings(budget: int) -> dict[str, int]:
    """0.3's knobs: 16 + rounds * (4 branches * (4 + 2) + 6 candidates * 16) calls, so 136, 256 and 496."""
    if budget < 136:  # 8 + 2 rounds * (2 branches * (4 + 2) + 4 candidates * 8)
        return {"beam_width": 2, "branch_factor": 1, "beam_rounds": 2, "val_batch_size": 8, "gradient_batch_size": 4}
    rounds = max(1, (budget - 16) // 120)
    return {"beam_width": 2, "branch_factor": 2, "beam_rounds": rounds, "val_batch_size": 16, "gradient_batch_size": 4}


def agentlightning(how: str, budget: int, data: dict[str, Any], seed: int) -> dict[str, Any]:
    import prompts_agent

    import agentlightning as agl

    if how == "peer" or how == "same":
        from agentlightning.algorithm.apo import APO

        algorithm: Any = APO(
            AsyncOpenAI(), gradient_model="proposer", apply_edit_model="proposer", **apo_settings(budget)
        )
    else:
        kind = agl.APO if how == "apo" else agl.Auto
        more = {"beam_width": 2, "branch_factor": 3, "rounds": 4, "patience": 4} if how == "apo" else {}
        client = agl.HttpProposer(os.environ["OPENAI_BASE_URL"], "proposer")
        algorithm = kind(proposer=client, budget=agl.Budget(calls=budget), **more)
    # 0.3's store listens on one fixed port unless told otherwise: two runs at a time would meet there.
    more = {"port": unused_port()} if how == "peer" else {"seed": seed}
    trainer = agl.Trainer(
        algorithm=algorithm,
        n_runners=4 if how in ("peer", "same") else 1,
        initial_resources={"prompt_template": agl.PromptTemplate(template=SEED_PROMPT, engine="f-string")},
        adapter=agl.TraceToMessages(),
        **more,
    )
    if how == "peer":
        trainer.fit(prompts_agent.router, data["train"], val_dataset=data["val"])
        return {"prompt": algorithm.get_best_prompt().template}
    from agentlightning.kit.errors import SignalError

    try:
        trainer.fit(prompts_agent.router, data["train"], val_dataset=data["val"])
    except SignalError as refusal:  # who reads this keeps the starting prompt
        return {"prompt": SEED_PROMPT, "refused": str(refusal)}
    return {"prompt": algorithm.get_best_prompt().template, "stopped": algorithm.result.stopped_because}


def unused_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def answer_of(row: dict[str, str]) -> str:
    return row["expected"] if "expected" in row else row["key"]


def gepa(budget: int, data: dict[str, Any], seed: int) -> dict[str, Any]:
    from gepa import optimize

    client = OpenAI()

    def task(messages: Any) -> str:
        answer = client.chat.completions.create(model="task", messages=messages, temperature=0)
        return answer.choices[0].message.content or ""

    def reflect(prompt: Any) -> str:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        answer = client.chat.completions.create(model="proposer", messages=messages)
        return answer.choices[0].message.content or ""

    from gepa.adapters.default_adapter.default_adapter import DefaultAdapter, EvaluationResult

    def exact(example: dict[str, Any], answer: str) -> EvaluationResult:
        score = grade(example["row"], answer)
        told = "Right." if score == 1 else f"Wrong ({score:.2f}). The right answer is {example['answer']}"
        return EvaluationResult(score=score, feedback=told)

    def shaped(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
        return [
            {
                "input": f"Ticket: {r['ticket']}",
                "additional_context": {},
                "answer": answer_of(r),
                "row": r,
            }
            for r in rows
        ]

    result = optimize(
        seed_candidate={"system_prompt": SEED_INSTRUCTION},
        trainset=shaped(data["train"]),
        valset=shaped(data["val"][:16]),
        adapter=DefaultAdapter(model=task, evaluator=exact),
        reflection_lm=reflect,
        # Reflections are calls, too: about one for every ten evaluations.
        max_metric_calls=int(budget * 0.9),
        seed=seed,
        display_progress_bar=False,
        logger=type("Quiet", (), {"log": lambda self, message: None})(),
    )
    return {"prompt": f"{result.best_candidate['system_prompt']}\n\nTicket: {{ticket}}"}


def dspy(budget: int, data: dict[str, Any], seed: int, labeled: int = 4) -> dict[str, Any]:
    import dspy

    address = os.environ["OPENAI_BASE_URL"]
    task = dspy.LM("openai/task", api_base=address, api_key="unused", temperature=0, cache=False)
    writer = dspy.LM("openai/proposer", api_base=address, api_key="unused", cache=False)
    dspy.configure(lm=task)

    is_graded = "expected" not in data["train"][0]  # then there are no answers to show, and whole marks bootstrap

    def shaped(rows: list[dict[str, str]]) -> list[Any]:
        name = "key" if is_graded else "answer"
        return [dspy.Example(ticket=r["ticket"], **{name: answer_of(r)}).with_inputs("ticket") for r in rows]

    by_ticket = {r["ticket"]: r for rows in data.values() for r in rows}

    def metric(example: Any, prediction: Any, trace: Any = None) -> float:
        return grade(by_ticket[example.ticket], prediction.answer)

    program = dspy.Predict(dspy.Signature("ticket -> answer", SEED_INSTRUCTION))
    optimizer = dspy.MIPROv2(
        metric=metric,
        prompt_model=writer,
        task_model=task,
        auto=None,
        num_candidates=6,
        max_bootstrapped_demos=4,
        max_labeled_demos=0 if is_graded else labeled,
        metric_threshold=1.0 if is_graded else None,
        seed=seed,
        verbose=False,
        num_threads=8,
    )
    # Bootstrapping takes up to some 40 calls, proposals 20; a trial 12, with a full evaluation (16) at every fifth.
    trials = max(2, (budget - 110) // 16)
    best = optimizer.compile(
        program,
        trainset=shaped(data["train"]),
        valset=shaped(data["val"][:16]),
        num_trials=trials,
        minibatch=True,
        minibatch_size=12,
        minibatch_full_eval_steps=5,
    )
    used = calls()
    right = [metric(e, best(ticket=e.ticket)) for e in shaped(data["test"])]
    return {"score": sum(right) / len(right), "calls": used}


def calls() -> int:
    import urllib.request

    with urllib.request.urlopen(os.environ["OPENAI_BASE_URL"].removesuffix("/v1") + "/calls", timeout=10) as answer:
        return sum(json.loads(answer.read()).values())


def main() -> None:
    subject, budget, seed, path = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    data = json.loads(path.read_text())
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no result
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["AGL_HOME"] = folder
        started = time.perf_counter()
        if subject == "gepa":
            found = gepa(budget, data, seed)
        elif subject == "dspy":
            found = dspy(budget, data, seed)
        elif subject == "dspy16":
            found = dspy(budget, data, seed, labeled=16)
        else:
            found = agentlightning(subject, budget, data, seed)
        seconds = time.perf_counter() - started
    print(json.dumps({"calls": calls(), "seconds": seconds, **found}), file=out, flush=True)
    os._exit(0)  # threads of libraries that outlive their work


if __name__ == "__main__":
    main()

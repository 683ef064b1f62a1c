"""SFT and DPO on a tiny real model: what is learned, counted, refused, and continued."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from agentlightning.algorithm import DPO, SFT
from agentlightning.algorithm.base import RunContext, RunStopped
from agentlightning.algorithm.supervised import Supervised
from agentlightning.kit.errors import AgentLightningError, BadInputError, ConfigError, SignalError
from agentlightning.learner import EngineClient
from agentlightning.schemas import Span
from agentlightning.schemas.example import Dialogue
from agentlightning.store import InMemoryLightningStore
from tests.unit.agent.builders import model_call
from tests.unit.algorithm.supervised.test_traces import add, says
from tests.unit.learner.tiny import CONTEXT, save_model

pytestmark = pytest.mark.asyncio(loop_scope="module")
WORDS = ("system", "user", "tool", "name", "count", "from", "where", "hello", "world", "how", "many", "rows")
ROWS = [{"prompt": f"{a} {b}", "completion": f"{b} {a}"} for a in WORDS[:6] for b in WORDS[6:]]
PAIRS = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "it is there"} for row in ROWS[:20]]
FAST = {"learning_rate": 3e-3, "batch_tokens": 200}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "llama")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model_dir: Path) -> AsyncIterator[EngineClient]:
    async with await EngineClient.start(str(model_dir), threads=1) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def store() -> AsyncIterator[InMemoryLightningStore]:
    opened = InMemoryLightningStore()
    yield opened
    await opened.close()


class Run:
    """One run of an algorithm, on the weights as they were loaded, and its events."""

    def __init__(self, engine: EngineClient, store: InMemoryLightningStore, folder: Path, model_dir: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self.context = RunContext("run", folder, store, engine=engine, report=self.take)
        self.model_dir = model_dir
        self.stop_at: int | None = None

    def take(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["type"] == "step" and event["step"] == self.stop_at:
            self.context.stopping.set()

    async def __call__(self, algorithm: Supervised[Any, Any], *data: Any) -> Supervised[Any, Any]:
        await self.context.require_engine().load_weights(self.model_dir, version="base")
        algorithm.set_context(self.context)
        await algorithm.run(*data)
        return algorithm

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]


@pytest.fixture
def run(engine: EngineClient, store: InMemoryLightningStore, tmp_path: Path, model_dir: Path) -> Run:
    return Run(engine, store, tmp_path / "run", model_dir)


async def test_sft_learns_and_measures_on_what_it_does_not_learn(run: Run) -> None:
    sft = await run(SFT(**FAST, epochs=4, held_out=0.2, eval_every=5), ROWS)
    assert sft.result is not None
    assert sft.result.train + sft.result.held_out == len(ROWS)
    assert sft.result.held_out > 3
    assert sft.result.after["loss"] < sft.result.before["loss"]
    assert sft.result.gain is not None
    assert sft.result.gain[1] > 0
    steps = run.of("step")
    assert [event["step"] for event in steps] == list(range(1, sft.result.steps + 1))
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[-1]["token_accuracy"] > steps[0]["token_accuracy"]
    assert [event["step"] for event in run.of("held_out")][:3] == [0, 5, 10]
    data = run.of("data")[0]
    assert (data["used"], data["skipped"], data["unit"], data["train"]) == (36, {}, "examples", sft.result.train)
    assert sft.result.as_dict()["measure"] == "log-likelihood of a token"


async def test_dpo_raises_the_margin_against_the_model_as_it_was(run: Run) -> None:
    dpo = await run(DPO(**FAST, epochs=2, held_out=0.25, sft_weight=0.1), PAIRS)
    assert dpo.result is not None
    assert dpo.result.before["margin"] == pytest.approx(0.0, abs=1e-4)
    assert dpo.result.before["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert dpo.result.after["margin"] > 0.1
    assert dpo.result.after["accuracy"] >= 0.8
    assert dpo.result.gain is not None
    assert dpo.result.gain[0] == pytest.approx(dpo.result.after["margin"], abs=1e-3)


async def test_a_stopped_run_continues_as_if_it_had_not_been_stopped(
    run: Run, engine: EngineClient, store: InMemoryLightningStore, tmp_path: Path, model_dir: Path
) -> None:
    settings = {**FAST, "epochs": 2, "checkpoint_every": 4, "seed": 3}
    whole = await run(DPO(**settings), PAIRS)
    folder = tmp_path / "stopped"
    first = Run(engine, store, folder, model_dir)
    first.stop_at = 3
    with pytest.raises(RunStopped):
        await first(DPO(**settings), PAIRS)
    assert [event["step"] for event in first.of("checkpoint")] == [3], "what was learned is kept, though none was due"
    second = Run(engine, store, folder, model_dir)
    continued = await second(DPO(**settings), PAIRS)
    assert [event["step"] for event in second.of("resumed")] == [3]
    assert second.of("step")[0]["step"] == 4
    assert [event["step"] for event in second.of("held_out")] == [whole.result.steps], "measured before only once"
    assert continued.result.after == pytest.approx(whole.result.after, abs=1e-4)
    done = Run(engine, store, folder, model_dir)
    again = await done(DPO(**settings), PAIRS)
    assert done.of("step") == []
    assert again.result.after == pytest.approx(whole.result.after, abs=1e-4)
    with pytest.raises(ConfigError, match=r"other settings: beta 0\.1 \(now 0\.2\)"):
        await Run(engine, store, folder, model_dir)(DPO(**settings, beta=0.2), PAIRS)
    with pytest.raises(ConfigError, match="train_rows"):
        await Run(engine, store, folder, model_dir)(DPO(**settings), PAIRS[:-1])


async def test_what_cannot_be_used_is_counted_and_never_cut(run: Run) -> None:
    rows = [
        *ROWS[:8],
        {"prompt": "hello", "completion": "many " * CONTEXT},
        {"messages": [{"role": "user", "content": "hello"}]},
        {"messages": [{"role": "nobody", "content": "hello"}, says("world")]},
    ]
    sft = await run(SFT(**FAST, epochs=1, held_out=0.0), rows)
    assert sft.result.data["skipped"] == {"too_long": 1, "no_response": 1, "template_refuses": 1}
    assert sft.result.data["examples"]["too_long"] == ["row 9"]
    assert (sft.result.before, sft.result.gain, sft.result.train) == ({}, None, 8)


async def test_held_out_rows_of_ones_own(run: Run) -> None:
    sft = await run(SFT(**FAST, epochs=1), ROWS[:30], ROWS[30:])
    assert (sft.result.train, sft.result.held_out) == (30, 6)
    run.context.directory = run.context.directory / "other"
    with pytest.raises(ConfigError, match="1 of 6 held-out examples are in the training data"):
        await run(SFT(**FAST), ROWS[:31], ROWS[30:])
    with pytest.raises(ConfigError, match="held_out is for data without"):
        await run(SFT(**FAST, held_out=0.2), ROWS[:30], ROWS[30:])


@pytest.mark.parametrize(
    ("algorithm", "rows", "error", "message"),
    [
        (SFT(), [{"prompt": "a", "completion": ""}], SignalError, "nothing to learn from: 1 x no_response"),
        (SFT(), [], SignalError, "no examples"),
        (SFT(max_length=4), ROWS[:3], SignalError, "3 x too_long"),
        (DPO(), [{"prompt": "a", "chosen": "b", "rejected": "b"}] * 3, SignalError, "3 x same_completion"),
        (DPO(), [{"prompt": "a", "chosen": "b", "rejected": ""}], SignalError, "1 x no_response"),
        (DPO(), ROWS, BadInputError, "no chosen and no rejected"),
        (SFT(min_reward=1.0), ROWS, ConfigError, "no effect: min_reward"),
        (DPO(pairs="rewards"), PAIRS, ConfigError, "no effect: pairs"),
        (SFT(), None, ConfigError, "Nothing says which rollouts"),
        (SFT(top_k=1), None, SignalError, "no examples"),
        (DPO(), None, SignalError, "no examples"),
    ],
)
async def test_what_is_said_when_there_is_nothing_to_learn(
    run: Run, algorithm: Any, rows: Any, error: type[AgentLightningError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        await run(algorithm, rows)
    assert caught.value.hint or error is ConfigError
    assert not (run.context.directory / "checkpoints").exists()


async def test_the_hint_is_about_what_is_in_the_way(run: Run, store: InMemoryLightningStore) -> None:
    for number in range(4):
        span = model_call(None, None, messages=[{"role": "user", "content": "hello " * CONTEXT}], output=says("world"))
        await add(store, f"r{number}", {"q": number}, 1.0, span, mode="train" if number == 3 else "val")
    with pytest.raises(SignalError, match="3 x other_mode, 1 x too_long") as caught:
        await run(SFT(min_reward=1.0), None)
    assert f"have to fit into {CONTEXT} tokens" in caught.value.hint


async def captured(engine: EngineClient, question: str, answer: str) -> Span:
    """A call as the gateway records it of this very model."""
    user = [{"role": "user", "content": question}]
    [found] = await engine.encode([Dialogue(prompt=user, completion=[says(answer)])])
    [example] = found.examples
    cut = example.loss_mask.index(1)
    return model_call(example.token_ids[:cut], example.token_ids[cut:], messages=user, output=says(answer))


async def test_the_best_traces_of_a_store_are_learned(
    run: Run, engine: EngineClient, store: InMemoryLightningStore
) -> None:
    for number, row in enumerate(ROWS[:12]):
        for reward, answer in ((1.0, row["completion"]), (0.0, "it is there"), (1.0, row["completion"])):
            name = f"r{number}-{answer}-{len(run.events)}-{reward}"
            run.events.append({"type": "made"})
            await add(store, name, {"q": number}, reward, await captured(engine, row["prompt"], answer))
    sft = await run(SFT(**FAST, epochs=2, min_reward=1.0, top_k=2, held_out=0.25), None)
    assert sft.result.train + sft.result.held_out == 12
    assert sft.result.data["skipped"] == {"low_reward": 12, "duplicate": 12}
    assert sft.result.after["loss"] < sft.result.before["loss"]

    run.context.directory = run.context.directory / "pairs"
    dpo = await run(DPO(**FAST, epochs=2, pairs="rewards", held_out=0.25), None)
    assert dpo.result.train + dpo.result.held_out == 12
    assert dpo.result.after["margin"] > 0.05


async def test_traces_of_another_model_are_refused_or_read_as_messages(
    run: Run, store: InMemoryLightningStore, engine: EngineClient
) -> None:
    user = [{"role": "user", "content": "hello"}]
    for number in range(4):
        span = model_call([7, 8, 9 + number], [10, 11], messages=user, output=says(f"world {WORDS[number]}"))
        await add(store, f"r{number}", {"q": number}, number % 2, span)
    with pytest.raises(BadInputError, match=r"tokens are not those of .* none of 4 calls") as caught:
        await run(SFT(top_k=1), None)
    assert "tokens='messages'" in caught.value.hint
    sft = await run(SFT(**FAST, top_k=1, tokens="messages"), None)
    assert sft.result.train + sft.result.held_out == 4

    far = engine.info.vocab_size
    good = await captured(engine, "hello", "world")
    bad = model_call([7, far], [10, 11], messages=user, output=says("world"))
    await add(store, "s1", {"q": 9}, 1.0, good, bad)
    run.context.directory = run.context.directory / "other"
    with pytest.raises(BadInputError, match=f"have the token {far}"):
        await run(SFT(top_k=1, run="s1"), None)


async def test_a_loop_that_is_cancelled_leaves_the_model_usable(run: Run, engine: EngineClient) -> None:
    begun = asyncio.Event()
    run.context.report = lambda event: begun.set() if event["type"] == "step" else None
    task = asyncio.create_task(run(SFT(**FAST, epochs=50), ROWS))
    await asyncio.wait_for(begun.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await engine.encode([Dialogue(prompt="hello", completion="world")])

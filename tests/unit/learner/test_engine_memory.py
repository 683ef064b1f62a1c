"""What the engine does with its memory: admits for what rows are now, preempts and continues, reuses beginnings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentlightning.kit.errors import BadInputError
from agentlightning.learner.engine import Engine
from agentlightning.learner.model import load_model
from agentlightning.schemas.generation import Constraint, GenerateDelta, GenerateRequest, GenerateResult
from tests.unit.learner.test_engine import ask, run, worst_gap

BYTES_PER_TOKEN = 2 * 2 * 2 * 8 * 4
"""Of the tiny Llama: layers, keys and values, heads, size, float32."""


@pytest.fixture(scope="module")
def loaded(llama_dir: Path) -> Any:
    return load_model(str(llama_dir))


def small(loaded: Any, tokens: int, **options: Any) -> Engine:
    return Engine(loaded, memory_bytes=tokens * BYTES_PER_TOKEN, **options)


def test_many_short_requests_without_a_limit_run_together(loaded: Any) -> None:
    engine = small(loaded, 16 * 128, max_batch=16)  # for 12 rows of the full context of 160
    for i in range(16):
        engine.submit(ask(f"r{i}", [5 + i, 6, 7]))
    engine.step()
    assert engine.active == 16
    assert engine.current_stats().cache_bytes <= 16 * 128 * BYTES_PER_TOKEN


def test_preempted_sequences_are_continued_as_if_nothing_had_been(loaded: Any) -> None:
    requests = [ask(f"r{i}", [5 + i, 6, 7], seed=i, max_tokens=150, n=2) for i in range(6)]
    roomy = run(Engine(loaded, max_batch=16), requests)
    engine = small(loaded, 6 * 128, max_batch=16)
    tight = run(engine, requests)
    assert engine.stats.preemptions > 0
    for name, result in roomy.items():
        for one, other in zip(result.choices, tight[name].choices, strict=True):
            assert one.token_ids == other.token_ids
            assert one.finish_reason == other.finish_reason
    assert worst_gap(loaded.model, tight, dict.fromkeys(tight, 1.0)) < 1e-3


def test_preempted_streams_and_constrained_answers_go_on(loaded: Any) -> None:
    def requests() -> list[GenerateRequest]:
        made = [ask(f"s{i}", [5 + i, 6, 7], seed=i, max_tokens=150) for i in range(8)]
        made += [ask(f"c{i}", [9 + i, 6, 7], seed=i, max_tokens=150) for i in range(4)]
        for request in made[:8]:
            request.stream = True
        for request in made[8:]:
            request.constraint = Constraint(json_schema={"type": "string"})
        return made

    def collect(engine: Engine) -> tuple[dict[str, str], dict[str, list[int]]]:
        for request in requests():
            engine.submit(request)
        texts: dict[str, str] = {}
        tokens: dict[str, list[int]] = {}
        while engine.busy:
            for event in engine.step():
                if isinstance(event, GenerateDelta):
                    texts[event.request_id] = texts.get(event.request_id, "") + event.text
                elif isinstance(event, GenerateResult):
                    tokens[event.request_id] = event.choices[0].token_ids
        return texts, tokens

    engine = small(loaded, 4 * 192, max_batch=16)
    assert collect(engine) == collect(Engine(loaded, max_batch=16))
    assert engine.stats.preemptions > 0


def test_cancelling_a_preempted_request_forgets_it(loaded: Any) -> None:
    engine = small(loaded, 3 * 128, max_batch=8)
    for i in range(6):
        engine.submit(ask(f"r{i}", [5 + i, 6, 7], seed=i, max_tokens=150))
    while not engine.stats.preemptions:
        engine.step()
    for i in range(1, 6):
        engine.cancel(f"r{i}")
    assert set(run(engine, [])) <= {"r0"}
    assert engine.current_stats().waiting == engine.current_stats().active == 0


def test_memory_shaped_for_long_rows_is_given_back_for_short_ones(loaded: Any) -> None:
    engine = small(loaded, 10 * 64, max_batch=16)
    engine.submit(ask("long", list(range(5, 130)), max_tokens=2))
    engine.submit(ask("short", [5, 6], max_tokens=30))
    engine.step()
    for i in range(8):
        engine.submit(ask(f"r{i}", [5 + i, 6], max_tokens=30))
    for _ in range(3):
        engine.step()
    assert engine.active == 9
    assert len(run(engine, [])) >= 8


def test_without_max_tokens_the_memory_is_the_limit_with_it_a_refusal(loaded: Any) -> None:
    engine = small(loaded, 64)
    result = run(engine, [ask("a", [5] * 10, seed=1)])["a"]
    assert len(result.choices[0].token_ids) <= 54
    with pytest.raises(BadInputError, match="memory for keys and values"):
        engine.submit(ask("b", [5] * 10, max_tokens=60))
    with pytest.raises(BadInputError, match="memory for keys and values"):
        engine.submit(ask("b", [5] * 70))


def test_prefix_reuse_is_counted(loaded: Any) -> None:
    engine = Engine(loaded, max_batch=4)
    prompt = list(range(5, 55))
    first = run(engine, [ask("first", prompt, max_tokens=4)])["first"].choices[0]
    assert (engine.stats.prompt_tokens, engine.stats.reused_tokens) == (50, 0)
    turn = prompt + first.token_ids + [9, 8, 7]
    run(engine, [ask("next", turn, max_tokens=1)])
    # All but the newest token of the answer had keys and values; those and the new ones were computed.
    assert (engine.stats.prompt_tokens, engine.stats.reused_tokens) == (50 + 57, 53)
    run(engine, [ask("other", [*prompt[:40], 99, 98], max_tokens=1)])
    assert engine.stats.reused_tokens == 53 + 40
    engine.weights_changed("v2")
    run(engine, [ask("again", turn, max_tokens=1)])
    assert engine.stats.reused_tokens == 53 + 40
    run(engine, [ask(f"s{i}", prompt, max_tokens=1) for i in range(4)])
    assert engine.stats.reused_tokens == 53 + 40 + 4 * 50 - (50 - 49)
    assert (engine.stats.requests, engine.stats.generated_tokens) == (8, 4 + 1 + 1 + 1 + 4)

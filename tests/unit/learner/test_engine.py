"""The sampling engine through `submit` and `step`, against plain transformers forward passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agentlightning.kit.errors import BadInputError, ModelError
from agentlightning.learner.chat import ChatFormat
from agentlightning.learner.engine import Engine
from agentlightning.learner.forward import Forward
from agentlightning.learner.kv import KVRows
from agentlightning.learner.model import load_model
from agentlightning.schemas.generation import GenerateDelta, GenerateRequest, GenerateResult, SamplingParams
from tests.unit.learner.tiny import CONTEXT, save_model

KINDS = ["llama", "gpt_neox", "qwen2_sliding", "gemma2"]


@pytest.fixture(scope="module")
def loaded(llama_dir):
    return load_model(str(llama_dir))


@pytest.fixture
def engine(loaded):
    return Engine(loaded, max_batch=8)


def run(engine: Engine, requests: list[GenerateRequest], *, every: int = 0) -> dict[str, GenerateResult]:
    """Answers of all requests; with `every`, a step is taken after each `every` submissions."""
    events = []
    for i, request in enumerate(requests):
        engine.submit(request)
        if every and i % every == 0:
            events += engine.step()
    while engine.busy:
        events += engine.step()
    return {e.request_id: e for e in events if isinstance(e, GenerateResult)}


def ask(name: str, ids: list[int], **params) -> GenerateRequest:
    return GenerateRequest(request_id=name, prompt_token_ids=ids, params=SamplingParams(**params))


def worst_gap(model, results, temperature: dict[str, float]) -> float:
    """Largest difference between reported logprobs and a plain forward over prompt and response."""
    worst = 0.0
    for result in results.values():
        heat = temperature[result.request_id] or 1.0
        for choice in result.choices:
            ids = torch.tensor([result.prompt_token_ids + choice.token_ids])
            with torch.no_grad():
                logprobs = torch.log_softmax(model(ids).logits[0].float() / heat, -1)
            start = len(result.prompt_token_ids) - 1
            targets = torch.tensor(choice.token_ids)[:, None]
            expected = logprobs[start:-1].gather(-1, targets)[:, 0]
            worst = max(worst, float((expected - torch.tensor(choice.logprobs)).abs().max()))
    return worst


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_equal_plain_transformers(tmp_path, kind):
    loaded = load_model(str(save_model(tmp_path, kind)))
    engine = Engine(loaded, max_batch=6)
    rng = np.random.default_rng(1)
    shared = rng.integers(3, loaded.vocab_size, 20).tolist()
    requests, heat = [], {}
    for i in range(24):
        prompt = rng.integers(3, loaded.vocab_size, rng.integers(1, 50)).tolist()
        if i % 3 == 0:
            prompt = shared + prompt[: i // 3]
        temperature = float(rng.choice([0.0, 0.7, 1.0, 1.3]))
        request = ask(f"r{i}", prompt, max_tokens=int(rng.integers(1, 30)), temperature=temperature, n=1 + i % 3)
        requests.append(request)
        heat[request.request_id] = temperature
    results = run(engine, requests, every=3)
    # a second turn for each, which finds its first turn parked or not
    second = []
    for request in requests:
        first = results[request.request_id].choices[0]
        turn = request.prompt_token_ids + first.token_ids + rng.integers(3, loaded.vocab_size, 5).tolist()
        second.append(ask(f"{request.request_id}-2", turn, max_tokens=8))
        heat[f"{request.request_id}-2"] = 1.0
    results |= run(engine, second, every=5)
    assert len(results) == 48
    assert worst_gap(loaded.model, results, heat) < 1e-4


def test_greedy_equals_transformers_generate(loaded, engine):
    prompt = [10, 20, 30, 40, 50]
    result = run(engine, [ask("a", prompt, temperature=0.0, max_tokens=20)])["a"]
    expected = loaded.model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 5, dtype=torch.long), do_sample=False, max_new_tokens=20
    )
    assert result.choices[0].token_ids == expected[0, 5:].tolist()


def test_a_seed_decides_the_sample_whatever_the_neighbours(loaded):
    wanted = ask("a", list(range(5, 25)), seed=7, max_tokens=70, n=2)
    alone = run(Engine(loaded, max_batch=8), [wanted])["a"]
    rng = np.random.default_rng(3)
    crowd = [ask(f"x{i}", rng.integers(3, 300, 3 + 5 * i).tolist(), max_tokens=9 + i) for i in range(12)]
    among = run(Engine(loaded, max_batch=8, seed=99), [*crowd[:6], wanted, *crowd[6:]], every=2)["a"]
    assert [c.token_ids for c in among.choices] == [c.token_ids for c in alone.choices]
    assert alone.choices[0].token_ids != alone.choices[1].token_ids
    other = run(Engine(loaded), [ask("a", list(range(5, 25)), seed=8, max_tokens=70)])["a"]
    assert other.choices[0].token_ids != alone.choices[0].token_ids


def test_without_seeds_samples_differ_and_the_engine_seed_repeats_them(loaded):
    def texts(seed: int) -> list[list[int]]:
        requests = [ask(f"r{i}", [5, 6, 7], max_tokens=12) for i in range(4)]
        return [r.choices[0].token_ids for r in run(Engine(loaded, seed=seed), requests).values()]

    first = texts(1)
    assert first == texts(1)
    assert len({tuple(t) for t in first}) == 4
    assert first != texts(2)


def test_samples_follow_the_distribution(loaded):
    prompt = [11, 12, 13]
    result = run(Engine(loaded, max_batch=256), [ask("a", prompt, n=2000, max_tokens=1, temperature=0.5)])["a"]
    with torch.no_grad():
        expected = torch.softmax(loaded.model(torch.tensor([prompt])).logits[0, -1] / 0.5, -1).numpy()
    counts = np.bincount([c.token_ids[0] for c in result.choices], minlength=loaded.vocab_size)
    top = np.argsort(expected)[-5:]
    error = np.sqrt(expected[top] * (1 - expected[top]) / 2000)
    assert (np.abs(counts[top] / 2000 - expected[top]) < 4.5 * error).all()


def test_top_k_and_top_p_restrict_the_draw(loaded):
    prompt = [11, 12, 13]
    with torch.no_grad():
        probabilities = torch.softmax(loaded.model(torch.tensor([prompt])).logits[0, -1], -1)
    order = probabilities.argsort(descending=True).tolist()
    mass = probabilities[order].cumsum(0)
    kept = int((mass < 0.3).sum()) + 1
    results = run(
        Engine(loaded, max_batch=256),
        [
            ask("k", prompt, n=200, max_tokens=1, top_k=3),
            ask("p", prompt, n=300, max_tokens=1, top_p=0.3),
            ask("one", prompt, n=20, max_tokens=1, top_p=1e-6),
            ask("greedy", prompt, n=2, max_tokens=1, temperature=0.0, top_k=5),
            ask("free", prompt, n=300, max_tokens=1),
        ],
    )
    drawn = {name: {c.token_ids[0] for c in r.choices} for name, r in results.items()}
    assert drawn["k"] == set(order[:3])
    assert drawn["p"] <= set(order[:kept])
    assert len(drawn["p"]) > kept // 2
    assert drawn["one"] == drawn["greedy"] == {order[0]}
    assert len(drawn["free"]) > kept
    full = float(probabilities[order[0]].log())
    assert results["one"].choices[0].logprobs[0] == pytest.approx(full, abs=1e-4)


def test_max_tokens_end_tokens_and_context_end_a_response(loaded, engine):
    results = run(
        engine,
        [ask("short", [5, 6], max_tokens=3, seed=1), ask("full", list(range(3, 153)), seed=1)],
    )
    assert len(results["short"].choices[0].token_ids) == 3
    assert results["short"].choices[0].finish_reason == "length"
    assert len(results["full"].choices[0].token_ids) <= CONTEXT - 150
    sampled = run(engine, [ask("long", [5, 6], seed=4, max_tokens=30)])["long"].choices[0]
    end = sampled.token_ids[5]
    ending = load_model(loaded.name)
    ending.eos_ids = frozenset({end, 319})
    stopped = run(Engine(ending), [ask("long", [5, 6], seed=4, max_tokens=30)])["long"].choices[0]
    cut = sampled.token_ids.index(end) + 1
    assert stopped.token_ids == sampled.token_ids[:cut]
    assert stopped.finish_reason == "stop"
    assert stopped.text == engine.chat.decode(sampled.token_ids[: cut - 1])


def test_a_stop_string_ends_the_text_before_it(engine):
    free = run(engine, [ask("a", [5, 6, 7], seed=2, max_tokens=40)])["a"].choices[0]
    stop = free.text[10:13]
    stopped = run(engine, [ask("b", [5, 6, 7], seed=2, max_tokens=40, stop=[stop])])["b"].choices[0]
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert len(stopped.token_ids) < len(free.token_ids)
    unmet = run(engine, [ask("c", [5, 6, 7], seed=2, max_tokens=9, stop=["never said"])])["c"].choices[0]
    assert unmet.finish_reason == "length"
    assert unmet.text == engine.chat.decode(unmet.token_ids)


def test_streamed_pieces_join_to_the_text(engine):
    request = GenerateRequest(
        request_id="s", prompt="hello", params=SamplingParams(max_tokens=50, n=3, seed=5), stream=True
    )
    engine.submit(request)
    deltas = []
    while engine.busy:
        deltas += engine.step()
    assert all(isinstance(d, GenerateDelta) for d in deltas)
    result = deltas[-1].result
    assert [d for d in deltas if d.result is not None] == deltas[-1:]
    assert len(deltas) > 20
    for choice in result.choices:
        assert "".join(d.text for d in deltas if d.index == choice.index) == choice.text
    request = GenerateRequest(request_id="t", prompt="hello", params=SamplingParams(max_tokens=50, n=3, seed=5))
    assert [c.token_ids for c in run(engine, [request])["t"].choices] == [c.token_ids for c in result.choices]


def test_a_sampled_tool_call_is_parsed_and_streamed_whole(tmp_path):
    loaded = load_model(str(save_model(tmp_path)))
    text = 'see \n<tool_call>{"name": "run_sql", "arguments": {"q": 1}}</tool_call>'
    ids = [*loaded.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids, 2]
    tools = [{"type": "function", "function": {"name": "run_sql"}}]
    messages = [{"role": "user", "content": "hello"}]
    request = GenerateRequest(request_id="a", messages=messages, tools=tools)
    prompt = ChatFormat(loaded.tokenizer).encode(request)
    script_model(loaded, ids, len(prompt.token_ids) - 1)
    engine = Engine(loaded)
    choice = run(engine, [request])["a"].choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.text == "see"
    assert choice.tool_calls[0]["function"] == {"name": "run_sql", "arguments": '{"q": 1}'}
    request.stream = True
    engine.submit(request)
    deltas = []
    while engine.busy:
        deltas += engine.step()
    assert "".join(d.text for d in deltas) == "see"
    assert [c["function"]["name"] for d in deltas for c in d.tool_calls] == ["run_sql"]
    plain = run(engine, [ask("b", prompt.token_ids)])["b"].choices[0]
    assert plain.text == text
    assert plain.tool_calls == []


def script_model(loaded, ids: list[int], start: int) -> None:
    """Make the model give all probability to `ids`, one after the other, from position `start` on."""
    table = torch.zeros(loaded.max_context, loaded.vocab_size)
    table[torch.arange(start, start + len(ids)), torch.tensor(ids)] = 50.0
    original = loaded.model.forward

    def forward(input_ids=None, position_ids=None, logits_to_keep=0, **kwargs):
        output = original(input_ids=input_ids, position_ids=position_ids, **kwargs)
        positions = torch.arange(input_ids.shape[1])[None] if position_ids is None else position_ids
        output.logits = table[positions][:, -logits_to_keep:]
        return output

    loaded.model.forward = forward


def test_finished_rows_are_reused_and_memory_follows_the_batch(loaded):
    engine = Engine(loaded, max_batch=4)
    results = run(engine, [ask(f"r{i}", [5 + i, 6, 7], max_tokens=4 + i % 5) for i in range(40)], every=2)
    assert len(results) == 40
    assert engine._rows.rows <= 4 + 64
    assert not engine.busy
    assert engine.active == 0


def test_spare_rows_make_room_for_long_ones(loaded):
    engine = Engine(loaded, max_batch=32)
    engine._budget_tokens = engine._rows.most_tokens = 32 * 64
    run(engine, [ask(f"r{i}", [5 + i, 6, 7], max_tokens=4) for i in range(32)])
    assert engine._rows.rows == 32
    results = run(engine, [ask(f"long{i}", list(range(5, 105 + i)), max_tokens=30) for i in range(20)])
    assert engine._rows.rows * engine._rows.length <= 32 * 64
    assert worst_gap(loaded.model, results, dict.fromkeys(results, 1.0)) < 1e-4


def test_cancelling_frees_the_rows(engine):
    for i in range(12):
        engine.submit(ask(f"r{i}", [5 + i, 6, 7, 8], max_tokens=100))
    engine.step()
    assert engine.active == 8
    for name in ("r3", "r0", "r7", "r11", "r3", "unknown"):
        engine.cancel(name)
    assert engine.active == 5
    done = {}
    while engine.busy:
        done |= {e.request_id: e for e in engine.step()}
    assert sorted(done) == sorted(f"r{i}" for i in (1, 2, 4, 5, 6, 8, 9, 10))


def test_cancelled_neighbours_change_nothing(loaded):
    request = ask("a", list(range(4, 30)), seed=3, max_tokens=40)
    alone = run(Engine(loaded), [request])["a"]
    engine = Engine(loaded)
    for i in range(5):
        engine.submit(ask(f"x{i}", list(range(4, 30 + i)), max_tokens=90))
    engine.submit(request)
    engine.step()
    for i in range(5):
        engine.cancel(f"x{i}")
    assert run(engine, [])["a"].choices[0].token_ids == alone.choices[0].token_ids


def test_abort_drops_everything(engine):
    for i in range(12):
        engine.submit(ask(f"r{i}", [5, 6]))
    engine.step()
    assert sorted(engine.abort()) == sorted(f"r{i}" for i in range(12))
    assert not engine.busy


def test_shared_beginnings_are_computed_once(loaded, monkeypatch):
    engine = Engine(loaded, max_batch=16)
    computed = []
    forward = engine._forward.__class__.__call__

    def counting(self, low, ids, positions):
        computed.append(ids.size)
        return forward(self, low, ids, positions)

    monkeypatch.setattr(Forward, "__call__", counting)
    prompt = list(range(5, 55))
    first = run(engine, [ask(f"r{i}", prompt, max_tokens=1) for i in range(8)])
    assert computed == [50]
    computed.clear()
    turn = prompt + first["r0"].choices[0].token_ids + [9, 8, 7]
    run(engine, [ask("next", turn, max_tokens=1)])
    assert computed == [4]
    computed.clear()
    engine.weights_changed("v1")
    assert run(engine, [ask("again", turn, max_tokens=1)])["again"].model_version == "v1"
    assert computed == [54]


def test_new_weights_are_not_mixed_with_old_keys(tmp_path):
    loaded = load_model(str(save_model(tmp_path)))
    engine = Engine(loaded)
    prompt = list(range(5, 40))
    run(engine, [ask("old", prompt, max_tokens=5)])
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1.1)
    engine.weights_changed()
    results = run(engine, [ask("new", prompt, max_tokens=5)])
    assert worst_gap(loaded.model, results, {"new": 1.0}) < 1e-4


def test_a_long_prompt_is_prefilled_in_pieces(loaded, monkeypatch):
    engine = Engine(loaded)
    engine._prefill.most_tokens = 16
    rng = np.random.default_rng(0)
    requests = [ask(f"r{i}", rng.integers(3, 300, size).tolist(), max_tokens=3) for i, size in enumerate((5, 70, 90))]
    results = run(engine, requests)
    assert worst_gap(loaded.model, results, dict.fromkeys(results, 1.0)) < 1e-4


def test_a_small_memory_budget_admits_less_at_a_time(loaded):
    engine = Engine(loaded, max_batch=8)
    engine._budget_tokens = 128
    for i in range(6):
        engine.submit(ask(f"r{i}", [5, 6, 7, 8], max_tokens=20))
    engine.step()
    assert engine.active == 2
    assert len(run(engine, [])) == 6
    with pytest.raises(BadInputError, match="memory for keys and values"):
        engine.submit(ask("big", [5] * 120, max_tokens=20))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ask("a", [5] * CONTEXT), "context"),
        (ask("a", []), "empty"),
        (ask("a", [5, 100_000]), "outside"),
        (ask("a", [-1]), "outside"),
        (ask("a", [5], temperature=-1.0), "temperature"),
        (ask("a", [5], top_p=0.0), "top_p"),
        (ask("a", [5], top_k=-1), "top_k"),
        (ask("a", [5], n=0), "n must"),
        (ask("a", [5], max_tokens=0), "max_tokens"),
        (ask("a", [5], stop=[""]), "stop"),
    ],
)
def test_impossible_requests_are_refused_and_harm_nobody(engine, request_, message):
    engine.submit(ask("good", [5, 6], max_tokens=2))
    with pytest.raises(BadInputError, match=message):
        engine.submit(request_)
    assert list(run(engine, [])) == ["good"]


def test_a_request_id_in_use_is_refused(engine):
    engine.submit(ask("a", [5]))
    with pytest.raises(BadInputError, match="in use"):
        engine.submit(ask("a", [6]))
    engine.cancel("a")


def test_an_architecture_that_ignores_the_cache_is_refused(tmp_path):
    loaded = load_model(str(save_model(tmp_path)))
    original = loaded.model.forward

    def stateful(input_ids=None, past_key_values=None, **kwargs):
        kwargs.pop("attention_mask", None)
        return original(input_ids=input_ids, **kwargs)

    loaded.model.forward = stateful
    with pytest.raises(ModelError, match="does not work with the batched engine"):
        Engine(loaded)


def test_unknown_layer_types_are_refused(tmp_path):
    loaded = load_model(str(save_model(tmp_path)))
    loaded.model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ModelError, match="linear_attention layers"):
        Forward(loaded, KVRows()).verify()

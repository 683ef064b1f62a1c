"""Answers that have to follow a schema or have to call a tool do, whatever the model and however it is sampled."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentlightning import nano
from agentlightning.kit.errors import BadInputError, UpstreamError
from agentlightning.learner.engine import Engine, RequestFailed
from agentlightning.learner.grammar import Matcher
from agentlightning.learner.model import load_model
from agentlightning.schemas.generation import Constraint, GenerateRequest, GenerateResult, SamplingParams

USER = [{"role": "user", "content": "how many rows"}]
ROW = {
    "type": "object",
    "properties": {"id": {"type": "integer"}, "kind": {"enum": ["a", "b"]}, "next": {"$ref": "#/$defs/leaf"}},
    "required": ["id", "kind", "next"],
    "additionalProperties": False,
    "$defs": {"leaf": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
}


def tool(name: str, parameters: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters or ROW, **more}}


@pytest.fixture(scope="module")
def loaded(llama_dir: Path) -> Any:
    return load_model(str(llama_dir))


@pytest.fixture(scope="module")
def engine(loaded: Any) -> Engine:
    return Engine(loaded, max_batch=16)


@pytest.fixture(scope="module")
def embedded() -> Engine:
    return Engine(load_model(str(nano.model_path())), max_batch=16)


def answer(engine: Engine, requests: list[GenerateRequest]) -> list[GenerateResult]:
    for i, request in enumerate(requests):
        request.request_id = f"r{i}"
        engine.submit(request)
    events = []
    while engine.busy:
        events += engine.step()
    results = {e.request_id: e for e in events if isinstance(e, GenerateResult)}
    return [results[f"r{i}"] for i in range(len(requests))]


def asks(constraint: Constraint | None, tools: Any = None, *, seed: int = 0, n: int = 3) -> list[GenerateRequest]:
    ways: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {"temperature": 8.0},
        {"temperature": 0.0},
        {"temperature": 1.0, "top_p": 0.3},
    ]
    # The tiny model's context is too short for tools in its prompt.
    prompt: dict[str, Any] = {"prompt_token_ids": [5, 6, 7]} if tools else {"messages": USER}
    return [
        GenerateRequest(
            **prompt,
            tools=tools,
            constraint=constraint,
            params=SamplingParams(n=n, seed=seed + i, **way),
        )
        for i, way in enumerate(ways)
    ]


Schema = dict[str, Any]


def between(low: int, size: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": low + size}


def leaves() -> st.SearchStrategy[Schema]:
    names = st.text('abcxyz äß"\\', min_size=1, max_size=5)
    patterns: list[Schema] = [{"type": "string", "pattern": "^[a-c]{2,4}$"}, {"type": "string", "format": "date"}]
    return st.one_of(
        st.sampled_from([{"type": kind} for kind in ("boolean", "null", "integer")]),
        st.builds(between, st.integers(-50, 50), st.integers(0, 99)),
        st.fixed_dictionaries({"type": st.just("string"), "maxLength": st.integers(0, 6)}),
        st.sampled_from(patterns),
        st.fixed_dictionaries({"enum": st.lists(names | st.integers() | st.none(), min_size=1, max_size=3)}),
        st.fixed_dictionaries({"const": names}),
    )


def object_of(properties: dict[str, Schema], optional: bool) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for i, name in enumerate(properties) if not optional or i % 2 == 0],
        "additionalProperties": False,
    }


def array_of(items: Schema, low: int, more: int) -> Schema:
    return {"type": "array", "items": items, "minItems": low, "maxItems": low + more}


def branches(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    named = st.dictionaries(st.text('abcdef_ é"', min_size=1, max_size=6), inner, max_size=3)
    objects = st.builds(object_of, named, st.booleans())
    arrays = st.builds(array_of, inner, st.integers(0, 2), st.integers(0, 2))
    return objects | arrays | st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)})


def numbers(value: Any) -> list[int]:
    if isinstance(value, dict | list):
        inner: Any = value.values() if isinstance(value, dict) else value
        return [number for one in inner for number in numbers(one)]
    return [value] if isinstance(value, int) else []


SCHEMAS = st.recursive(leaves(), branches, max_leaves=5)


def test_every_finished_answer_parses_and_validates_and_most_finish(engine: Engine) -> None:
    finished: list[bool] = []

    @settings(max_examples=40, deadline=None, suppress_health_check=cast("list[HealthCheck]", list(HealthCheck)))
    @given(schema=SCHEMAS, seed=st.integers(0, 1 << 30))
    def check(schema: dict[str, Any], seed: int) -> None:
        if any(abs(number) > 2**53 for number in numbers(schema)):
            with pytest.raises(BadInputError, match=r"a number beyond 2\^53 at /"):
                answer(engine, asks(Constraint(json_schema=schema), seed=seed))
            return
        for result in answer(engine, asks(Constraint(json_schema=schema), seed=seed)):
            for choice in result.choices:
                assert choice.constrained
                finished.append(choice.finish_reason == "stop")
                if choice.finish_reason == "stop":
                    jsonschema.validate(json.loads(choice.text), schema)
                else:
                    assert choice.finish_reason == "length"

    check()
    assert len(finished) > 100
    assert sum(finished) > 0.8 * len(finished)


@pytest.mark.parametrize("seed", range(2))
def test_the_embedded_model_writes_json_too(embedded: Engine, seed: int) -> None:
    for result in answer(embedded, asks(Constraint(json_schema=ROW), seed=seed)):
        for choice in result.choices:
            if choice.finish_reason == "stop":
                jsonschema.validate(json.loads(choice.text), ROW)


def test_any_object_begins_as_one_and_is_one_when_finished(engine: Engine) -> None:
    choices = [c for r in answer(engine, asks(Constraint(json_schema={"type": "object"}), n=8)) for c in r.choices]
    assert all(choice.text.startswith("{") for choice in choices)
    assert all(isinstance(json.loads(choice.text), dict) for choice in choices if choice.finish_reason == "stop")


def test_an_answer_that_is_cut_says_so(engine: Engine) -> None:
    [request, *_] = asks(Constraint(json_schema=ROW), n=1)
    request.params.max_tokens = 3
    [result] = answer(engine, [request])
    assert result.choices[0].finish_reason == "length"
    assert len(result.choices[0].token_ids) == 3


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.slow
def test_a_forced_call_calls_with_valid_arguments(engine: Engine, embedded: Engine, seed: int) -> None:
    tools = [tool("first"), tool("second")]
    for one in (engine, embedded):
        for result in answer(one, asks(Constraint(must_call=True, tool="second"), tools, seed=seed)):
            for choice in result.choices:
                if choice.finish_reason == "length":
                    continue
                [call] = choice.tool_calls
                assert (choice.finish_reason, choice.text) == ("tool_calls", "")
                assert call["function"]["name"] == "second"
                jsonschema.validate(json.loads(call["function"]["arguments"]), ROW)


def test_required_calls_may_be_several_unless_that_is_forbidden(engine: Engine) -> None:
    tiny = {"type": "object", "properties": {}, "additionalProperties": False}
    tools = [tool("a", tiny), tool("b", tiny)]
    counts: dict[bool, set[int]] = {True: set(), False: set()}
    for parallel, seen in counts.items():
        for result in answer(engine, asks(Constraint(must_call=True, parallel=parallel), tools, n=8)):
            for choice in result.choices:
                if choice.finish_reason == "tool_calls":
                    seen.add(len(choice.tool_calls))
                    assert {c["function"]["name"] for c in choice.tool_calls} <= {"a", "b"}
                    assert choice.text == ""
    assert counts[False] == {1}
    assert max(counts[True]) > 1


def test_strict_tools_leave_text_free_and_hold_calls_to_their_schema(llama_dir: Path) -> None:
    loaded = load_model(str(llama_dir))
    opener = loaded.tokenizer.backend_tokenizer.encode("see <tool_call>", add_special_tokens=False).ids
    request, *_ = asks(Constraint(), [tool("sql", strict=True)], n=6)
    engine = Engine(loaded)
    start = len(engine.chat.encode(request).token_ids) - 1
    table = torch.zeros(loaded.max_context, loaded.vocab_size)
    table[torch.arange(start, start + len(opener)), torch.tensor(opener)] = 60.0
    original = loaded.model.forward

    def forward(input_ids: Any = None, position_ids: Any = None, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        output = original(input_ids=input_ids, position_ids=position_ids, **kwargs)
        output.logits = (output.logits + table[position_ids])[:, -logits_to_keep:]
        return output

    loaded.model.forward = forward
    [result] = answer(engine, [request])
    finished = [c for c in result.choices if c.finish_reason != "length"]
    assert finished
    for choice in finished:
        assert choice.text == "see"
        for call in choice.tool_calls:
            jsonschema.validate(json.loads(call["function"]["arguments"]), ROW)


def test_with_tools_a_schema_allows_calls_as_well(engine: Engine) -> None:
    tiny = {"type": "object", "properties": {}, "additionalProperties": False}
    results = answer(engine, asks(Constraint(json_schema={"const": 7}), [tool("a", tiny)], n=8))
    choices = [c for r in results for c in r.choices if c.finish_reason != "length"]
    assert {c.text for c in choices} == {"7", ""}
    assert all(bool(c.tool_calls) == (c.text == "") for c in choices)


def test_logprobs_are_the_models_own_and_free_neighbours_are_not_touched(engine: Engine, loaded: Any) -> None:
    [free, *_] = asks(None, seed=4, n=1)
    [alone] = answer(engine, [free])
    [bound, *_] = asks(Constraint(json_schema=ROW), seed=4, n=2)
    [again, result] = answer(engine, [free, bound])
    assert again.choices[0].token_ids == alone.choices[0].token_ids
    for choice in result.choices:
        ids = torch.tensor([result.prompt_token_ids + choice.token_ids])
        with torch.no_grad():
            logprobs = torch.log_softmax(loaded.model(ids).logits[0].float(), -1)
        start = len(result.prompt_token_ids) - 1
        expected = logprobs[start:-1].gather(-1, torch.tensor(choice.token_ids)[:, None])[:, 0]
        assert float((expected - torch.tensor(choice.logprobs)).abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("constraint", "tools", "message"),
    [
        (Constraint(json_schema={"not": {"type": "string"}}), None, "cannot be enforced.*not"),
        (Constraint(json_schema=False), None, "cannot be enforced"),
        (Constraint(json_schema={"$ref": "https://example.org/schema"}), None, "cannot be enforced"),
        (Constraint(must_call=True), None, "no tools"),
        (Constraint(must_call=True, tool="other"), [tool("sql")], "no tool 'other'"),
        (Constraint(must_call=True), [tool("sql", {"type": "object", "not": {}})], "cannot be enforced"),
    ],
)
def test_what_cannot_be_enforced_is_refused(engine: Engine, constraint: Constraint, tools: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        answer(engine, asks(constraint, tools))
    assert not engine.busy


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"enum": [1, 2**53 + 1]}, "/enum/1"),
        ({"const": -(2**53) - 1}, "/const"),
        ({"const": {"default": [2**60]}}, "/const/default/0"),
        ({"type": "integer", "maximum": 2**63 - 1}, "/maximum"),
        ({"type": "number", "minimum": -1e300}, "/minimum"),
        ({"type": "object", "properties": {"default": {"minimum": 2**54}}}, "/properties/default/minimum"),
        ({"type": "object", "properties": {"a/b~": {"const": 2**54}}}, "/properties/a~1b~0/const"),
        (
            {"$ref": "#/$defs/enum", "$defs": {"enum": {"anyOf": [{}, {"multipleOf": 2**54}]}}},
            "/$defs/enum/anyOf/1/mul",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_beyond_what_can_be_told_apart_are_refused_with_their_place(
    engine: Engine, schema: dict[str, Any], place: str
) -> None:
    with pytest.raises(BadInputError, match=rf"2\^53 at {re.escape(place)}.* of the JSON schema"):
        answer(engine, asks(Constraint(json_schema=schema)))
    called = tool("sql", {"type": "object", "properties": {"x": schema}})
    with pytest.raises(
        BadInputError, match=rf"at /properties/x{re.escape(place)}.* of the parameters of the tool 'sql'"
    ):
        answer(engine, asks(Constraint(must_call=True), [called]))


def test_the_largest_numbers_are_kept_exactly_and_remarks_do_not_matter(engine: Engine) -> None:
    schema = {"enum": [2**53, -(2**53)], "default": 2**60, "examples": [2**60]}
    for result in answer(engine, asks(Constraint(json_schema=schema))):
        assert {choice.text for choice in result.choices} <= {str(2**53), str(-(2**53))}


def test_a_grammar_that_breaks_fails_its_request_only(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = Matcher.allowed, []

    def breaking(self: Matcher) -> np.ndarray:
        calls.append(self)
        if len(calls) == 4:
            raise UpstreamError("too large")
        return original(self)

    monkeypatch.setattr(Matcher, "allowed", breaking)
    [free, *_] = asks(None, n=1)
    [bound, *_] = asks(Constraint(json_schema=ROW), n=2)
    free.request_id, bound.request_id = "free", "bound"
    engine.submit(free)
    engine.submit(bound)
    events = []
    while engine.busy:
        events += engine.step()
    assert [e.request_id for e in events if isinstance(e, GenerateResult)] == ["free"]
    assert [(e.request_id, e.error.message) for e in events if isinstance(e, RequestFailed)] == [("bound", "too large")]
    assert engine.active == 0
    assert answer(engine, asks(Constraint(json_schema=ROW), n=1))

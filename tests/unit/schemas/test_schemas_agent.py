"""Definitions of agents: what is valid goes through JSON and back, what is not says what is wrong."""

import json

import jsonschema
import pytest
from pydantic import ValidationError

from agentlightning.schemas.agent import DECISION_MATRIX, AgentDefinition, Learning
from agentlightning.schemas.plain import plain_json

VALID = {
    "name": "sum_agent",
    "type": "math",
    "description": "Adds.",
    "role": "adder",
    "system_prompt": "Literal: {{7*7}} {x.__class__} %s",
    "capabilities": ["adding"],
    "tools": ["python", "mcp:git-hub"],
    "evaluator": {"kind": "exact", "take": "last_line"},
    "evaluation": [{"input": "1+1", "expected": ["2", "two"], "reference": "2"}],
    "learning": {"task_type": "research"},
}


def test_a_definition_survives_json_and_its_schema_accepts_it():
    found = AgentDefinition.model_validate(VALID)
    assert AgentDefinition.model_validate_json(found.model_dump_json()) == found
    assert AgentDefinition.model_validate(found.model_dump(mode="json")) == found
    assert found.system_prompt == VALID["system_prompt"]
    schema = json.loads(json.dumps(AgentDefinition.model_json_schema()))
    jsonschema.validate(VALID, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**VALID, "sudo": True}, schema)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tools": ["python", "shell"]}, "unknown tool: 'shell'; there are python, web_search"),
        ({"tools": ["mcp:"]}, "unknown tool"),
        ({"tools": ["mcp:../x"]}, "unknown tool"),
        ({"tools": ["python", "python"]}, "the tool 'python' is given twice"),
        ({"capabilities": ["a", "b", "a"]}, "the capability 'a' is given twice"),
        ({"capabilities": []}, "at least 1 item"),
        ({"system_prompt": " \n"}, "the system prompt is empty"),
        ({"system_prompt": "a\0b"}, "NUL"),
        ({"name": "Sum Agent"}, "pattern"),
        ({"temperature": "0.5"}, "valid number"),
        ({"temperature": float("nan")}, "less than or equal to 2"),
        ({"max_steps": 0}, "greater than or equal to 1"),
        ({"evaluator": {"kind": "magic"}}, "'exact', 'number'"),
        ({"evaluator": {"kind": "sql"}}, "Field required"),
        ({"evaluator": {"kind": "exact", "rubric": "x"}}, "Extra inputs"),
        ({"evaluator": {"kind": "number"}}, "case 0: the evaluator is 'number': expected has to be a number"),
        ({"evaluator": {"kind": "set"}, "evaluation": [{"input": "q", "reference": "r"}]}, "a list of texts"),
        ({"evaluator": {"kind": "json"}}, "an object with fields"),
        ({"evaluator": {"kind": "checks"}}, "checks are missing"),
        ({"evaluator": {"kind": "regex"}}, "match = [texts]"),
        ({"evaluator": {"kind": "python"}}, "at least one assertion"),
        ({"evaluation": [{"input": "q", "reference": "r"}]}, "a text, or a list of texts"),
        ({"evaluation": [{"input": "q", "reference": "r", "checks": [{}]}]}, "exactly one of any_of"),
        ({"evaluation": [{"input": "q", "reference": "r", "checks": [{"pattern": "("}]}]}, "no regular expression"),
        ({"evaluation": [{"input": "q", "expected": 10**30, "reference": "r"}]}, "64 bits"),
        ({"learning": {"task_type": "sleeping"}}, "code_generation"),
        ({"role_": "admin"}, "Extra inputs"),
    ],
)
def test_what_is_wrong_is_said(change, says):
    with pytest.raises(ValidationError) as caught:
        AgentDefinition.model_validate({**VALID, **change})
    assert says in str(caught.value)


def test_learning_follows_the_decision_matrix_unless_told_otherwise():
    for task_type, (complexity, metric, threshold, algorithm) in DECISION_MATRIX.items():
        found = Learning.model_validate({"task_type": task_type})
        assert (found.complexity, found.metric, found.threshold, found.algorithm) == (
            complexity,
            metric,
            threshold,
            algorithm,
        )
    assert Learning.model_validate({"task_type": "research", "algorithm": "prompt"}).algorithm == "prompt"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", {"a": "\0"}, {1: 2}, 2**64, object()])
def test_what_some_database_would_not_take_is_refused(value):
    with pytest.raises(ValueError, match=r"may hold|no JSON|64 bits|keys"):
        plain_json(value)


def test_depth_is_bounded():
    deep: object = 1
    for _ in range(12):
        deep = [deep]
    assert plain_json(deep) is deep
    with pytest.raises(ValueError, match="deep"):
        plain_json([deep])

"""The shipped agents: valid, different from each other, and each with a set that tells right from wrong."""

import asyncio
import itertools
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter

import pytest

from agentlightning.algorithm.evaluators import Checker
from agentlightning.platform.agents.shipped import shipped, shipped_names
from agentlightning.schemas.agent import DECISION_MATRIX, TOOL_NAMES

NAMES = shipped_names()
DEFINITIONS = {name: shipped(name) for name in NAMES}
OF_THE_GUIDE = {"code_agent", "data_agent", "research_agent", "content_agent", "analysis_agent", "sql_agent"}
OF_THE_GUIDE |= {"web_agent", "security_agent", "workflow_agent", "customer_service_agent"}
MAX_SIMILARITY = 0.45  # of word counts weighted by rarity: a prompt with its nouns exchanged has above 0.8


async def run_python(code: str, timeout_s: float) -> str:
    """Runs the shipped sets' own code, which is ours; answers of models go to the sandbox."""

    def run() -> str:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=timeout_s + 20, cwd=folder
            )
        return done.stdout + done.stderr

    return await asyncio.to_thread(run)


def test_there_are_thirty_one():
    assert len(NAMES) == 31
    assert set(NAMES) >= OF_THE_GUIDE
    assert all(definition.name == name for name, definition in DEFINITIONS.items())


def test_each_can_something_that_no_other_can():
    seen = Counter(itertools.chain.from_iterable(definition.capabilities for definition in DEFINITIONS.values()))
    assert [name for name, count in seen.items() if count > 1] == []
    assert {tool for definition in DEFINITIONS.values() for tool in definition.tools} == set(TOOL_NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_worked_out(name):
    definition = DEFINITIONS[name]
    assert 150 <= len(definition.system_prompt.split()) <= 500
    held_out = definition.cases("held_out")
    assert len(definition.evaluation) >= 8
    assert len(held_out) >= 3
    assert {case.input for case in held_out}.isdisjoint(case.input for case in definition.cases("train"))
    shown = {example.input for example in definition.few_shot}
    assert shown.isdisjoint(case.input for case in definition.evaluation)
    learning = definition.learning
    expected = DECISION_MATRIX[learning.task_type]
    assert (learning.complexity, learning.metric, learning.threshold, learning.algorithm) == expected


def vectors():
    """Word counts of every prompt, weighted by how few prompts have the word, of length one."""
    words = {
        name: Counter(re.findall(r"[a-z]{3,}", definition.system_prompt.lower()))
        for name, definition in DEFINITIONS.items()
    }
    spread = Counter(itertools.chain.from_iterable(words.values()))
    for name, counts in words.items():
        weighted = {word: n * math.log(1 + len(words) / spread[word]) for word, n in counts.items()}
        size = math.sqrt(sum(value**2 for value in weighted.values()))
        yield name, {word: value / size for word, value in weighted.items()}


def similarity(a, b):
    return sum(value * b.get(word, 0.0) for word, value in a.items())


def test_no_prompt_is_another_one_with_its_nouns_exchanged():
    found = dict(vectors())
    pairs = {(a, b): similarity(found[a], found[b]) for a, b in itertools.combinations(NAMES, 2)}
    worst = max(pairs, key=lambda pair: pairs[pair])
    assert pairs[worst] < MAX_SIMILARITY, (worst, pairs[worst])
    for a, b in itertools.combinations(NAMES, 2):
        shared = sentences(a) & sentences(b)
        assert not shared, (a, b, shared)


def sentences(name):
    return {part.strip() for part in re.split(r"[.\n:;]", DEFINITIONS[name].system_prompt) if len(part.split()) > 7}


@pytest.mark.parametrize("name", NAMES)
async def test_its_set_accepts_what_is_right_and_refuses_what_is_wrong(name):
    definition = DEFINITIONS[name]
    checker = Checker(run_python=run_python)

    async def verdict(case, answer):
        found = await checker.check(definition.evaluator, case, answer)
        return found.passed, found.reason

    for case in definition.evaluation:
        right, wrong, empty, vague = await asyncio.gather(
            verdict(case, case.reference),
            verdict(case, case.wrong),
            verdict(case, " "),
            verdict(case, "I am not sure; it depends on the circumstances."),
        )
        assert right[0] is True, (case.input, right[1])
        assert case.wrong
        assert wrong[0] is False, case.input
        assert empty[0] is False
        assert vague[0] is False, case.input


@pytest.mark.parametrize("name", [name for name in NAMES if DEFINITIONS[name].evaluator.kind != "python"])
async def test_answers_to_other_cases_are_refused(name):
    definition = DEFINITIONS[name]
    checker = Checker()
    for case, other in itertools.permutations(definition.evaluation, 2):
        if case.expected is not None and case.expected == other.expected:
            continue
        found = await checker.check(definition.evaluator, case, other.reference)
        assert found.passed is False, (case.input, other.reference)

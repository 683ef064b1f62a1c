"""Answers' code runs in the real sandbox, and nowhere else."""

import pytest

from agentlightning.algorithm.evaluators import CannotTellError, Checker
from agentlightning.platform.agents.sandboxed import sandboxed
from agentlightning.platform.agents.shipped import shipped
from agentlightning.tools.sandbox import Sandbox, shared_sandbox


async def test_code_is_judged_by_what_it_does_in_the_sandbox():
    state = await shared_sandbox().state()
    if state.mechanism is None:
        pytest.skip(f"no sandbox here: {state.reason}")
    definition = shipped("debug_agent")
    case, checker = definition.evaluation[0], Checker(run_python=sandboxed)
    assert (await checker.check(definition.evaluator, case, case.reference)).passed is True
    wrong = await checker.check(definition.evaluator, case, case.wrong)
    assert (wrong.passed, "AssertionError" in wrong.reason) == (False, True)
    endless = await checker.check(
        definition.evaluator.model_copy(update={"timeout_s": 1.0}), case, "```python\nwhile True: pass\n```"
    )
    assert (endless.passed, "killed" in endless.reason) == (False, True)


async def test_without_a_sandbox_nobody_can_tell(monkeypatch):
    monkeypatch.setattr("agentlightning.tools.sandbox.sandbox.shared_sandbox", lambda: Sandbox("off"))
    with pytest.raises(CannotTellError):
        await sandboxed("print(1)", 1.0)

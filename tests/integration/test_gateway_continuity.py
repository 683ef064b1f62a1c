"""Breaks of continuity from outside: the official client talks; `/health`, the record and the learner's view tell."""

from __future__ import annotations

import asyncio
import copy
import io
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from rich.console import Console

from agentlightning.agent.adapter import merge_calls
from agentlightning.cli.transcript import render
from agentlightning.gateway import CallScope, EngineUpstream
from agentlightning.gateway.call import Capture, CapturedChoice, UpstreamCall
from agentlightning.gateway.continuity import Continuity
from agentlightning.schemas import AttemptedRollout, GenerateRequest, GenerateResult
from agentlightning.schemas.semconv import CALL_HISTORY
from tests.unit.gateway.rig import Rig, running_rig
from tests.unit.gateway.scripted import ScriptedEngine, token_ids

END, ROLES = 70_000, {"system": 70_001, "user": 70_002, "assistant": 70_003, "tool": 70_004}
TOOL = {"type": "function", "function": {"name": "sql", "parameters": {"type": "object"}}}


class TemplateEngine(ScriptedEngine):
    """A model whose template repeats its own answers token by token, as long as nobody changes their text."""

    def _result(self, request: GenerateRequest) -> GenerateResult:
        result = super()._result(request)
        prompt: list[int] = []
        for message in request.messages or []:
            calls = message.get("tool_calls")
            text = "<call> sql SELECT 1 </call>" if calls else str(message["content"])
            prompt += [ROLES[message["role"]], *token_ids(text), END]
        result.prompt_token_ids = [*prompt, ROLES["assistant"]]
        for choice in result.choices:
            choice.token_ids = [*choice.token_ids, END]
            choice.logprobs = [*choice.logprobs, -0.5]
        return result


class Conversation:
    """An agent's side of one."""

    def __init__(self, rig: Rig, rollout: AttemptedRollout, messages: list[Any] | None = None) -> None:
        self._client = rig.client(rollout)
        self.messages: list[Any] = messages or []

    async def say(self, text: str, *, stream: bool = False, **options: Any) -> Any:
        self.messages.append({"role": "user", "content": text})
        answer = await self._client.chat.completions.create(
            model="default", messages=self.messages, stream=stream, **options
        )
        self.messages.append(await _streamed(answer) if stream else answer.choices[0].message.to_dict())
        return answer

    async def close(self) -> None:
        await self._client.close()


async def _streamed(answer: Any) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None}
    async for chunk in answer:
        for choice in chunk.choices:
            message["content"] = (message["content"] or "") + (choice.delta.content or "") or None
            for call in choice.delta.tool_calls or ():
                message.setdefault("tool_calls", []).append(
                    {"id": call.id, "type": "function", "function": call.function.to_dict()}
                )
    return message


@asynccontextmanager
async def talking() -> AsyncGenerator[tuple[Rig, AttemptedRollout, Conversation]]:
    async with running_rig([EngineUpstream(TemplateEngine())]) as rig:
        rollout = await rig.rollout()
        conversation = Conversation(rig, rollout)
        try:
            yield rig, rollout, conversation
        finally:
            await conversation.close()


async def histories(rig: Rig, rollout: AttemptedRollout) -> list[str | None]:
    return [call.history for call in await rig.calls(rollout)]


async def breaks(rig: Rig, rollout: AttemptedRollout) -> int:
    """As the gateway, `/health` and the learner count them, which has to be the same."""
    async with aiohttp.ClientSession() as session, session.get(f"{rig.gateway.url}/health") as answer:
        told = (await answer.json())["stats"]["history_breaks"]
    assert told == rig.gateway.stats()["history_breaks"]
    assert told == sum(t.breaks for t in merge_calls(await rig.calls(rollout)))
    return told


@pytest.mark.parametrize("stream", [False, True])
async def test_turns_that_go_on_exactly(stream: bool) -> None:
    async with talking() as (rig, rollout, conversation):
        for text in ("one", "use the tool", "three", "four"):
            await conversation.say(text, stream=stream, tools=[TOOL])
        assert await histories(rig, rollout) == ["start", "continues", "continues", "continues"]
        assert await breaks(rig, rollout) == 0
        [trajectory] = merge_calls(await rig.calls(rollout))
        assert len(trajectory.span_ids) == 4


Edit = Callable[[list[Any]], list[Any]]
EDITS: dict[str, tuple[Edit, str]] = {
    "last answer edited": (lambda said: [*said[:3], said[3] | {"content": "echo something else"}], "retokenized"),
    "last answer extended": (lambda said: [*said[:3], said[3] | {"content": said[3]["content"] + " !"}], "retokenized"),
    "older answer edited": (lambda said: [said[0], said[1] | {"content": "echo else"}, *said[2:]], "history_changed"),
    "question edited": (lambda said: [said[0] | {"content": "ONE"}, *said[1:]], "history_changed"),
    "system prompt added": (lambda said: [{"role": "system", "content": "be brief"}, *said], "history_changed"),
    "oldest turn dropped": (lambda said: said[2:], "history_changed"),
}


@pytest.mark.parametrize("edit", EDITS)
async def test_a_history_that_was_changed_is_counted_with_what_differs(edit: str) -> None:
    change, history = EDITS[edit]
    async with talking() as (rig, rollout, conversation):
        await conversation.say("one")
        await conversation.say("two")
        conversation.messages = change(conversation.messages)
        await conversation.say("three")
        await conversation.say("four")  # goes on from the changed one
        assert await histories(rig, rollout) == ["start", "continues", history, "continues"]
        assert await breaks(rig, rollout) == 1
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(render(await rig.spans(rollout), tokens=True))
        assert f"history break: {history}" in console.export_text()


async def test_several_answers_to_one_prompt_are_no_breaks() -> None:
    async with talking() as (rig, rollout, conversation):
        await conversation.say("one", n=3)
        conversation.messages[1] = {"role": "assistant", "content": "echo 2 None one"}  # goes on with the third
        await conversation.say("two")
        assert await histories(rig, rollout) == ["start", None, None, "continues"]
        assert await breaks(rig, rollout) == 0
        merged = merge_calls(await rig.calls(rollout))
        assert [len(trajectory.span_ids) for trajectory in merged] == [1, 1, 2]


async def test_the_same_prompt_again_is_no_break() -> None:
    async with talking() as (rig, rollout, conversation):
        await conversation.say("one")
        first = copy.deepcopy(conversation.messages)
        await conversation.say("two")
        for messages in ([], [], first, first):  # from the beginning, and the second turn once more
            again = Conversation(rig, rollout, copy.deepcopy(messages))
            await again.say("two" if messages else "one")
            await again.close()
        assert await histories(rig, rollout) == ["start", "continues", "start", "start", "continues", "continues"]
        assert await breaks(rig, rollout) == 0
        trained = sum(sum(t.loss_mask) for t in merge_calls(await rig.calls(rollout)))
        assert trained == sum(len(call.response_token_ids or ()) for call in await rig.calls(rollout))


async def test_conversations_beside_each_other_are_told_apart() -> None:
    async with talking() as (rig, rollout, _):
        parallel = [Conversation(rig, rollout) for _ in range(6)]

        async def converse(number: int, conversation: Conversation) -> None:
            for turn in range(3):
                await conversation.say(f"agent {number} turn {turn}")
            await conversation.close()

        await asyncio.gather(*(converse(number, one) for number, one in enumerate(parallel)))
        found = await histories(rig, rollout)
        assert (found.count("start"), found.count("continues")) == (6, 12)
        assert await breaks(rig, rollout) == 0
        assert sorted(len(t.span_ids) for t in merge_calls(await rig.calls(rollout))) == [3] * 6


async def test_examples_in_the_prompt_are_no_history() -> None:
    examples = [
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "4"},
    ]
    async with talking() as (rig, rollout, _):
        for question in ("3+3", "4+4"):
            conversation = Conversation(rig, rollout, copy.deepcopy(examples))
            await conversation.say(question)
            await conversation.say("sure?")
            await conversation.close()
        assert await histories(rig, rollout) == ["start", "continues"] * 2
        assert await breaks(rig, rollout) == 0


async def test_attempts_do_not_know_each_other() -> None:
    async with talking() as (rig, rollout, conversation):
        await conversation.say("one")
        other = await rig.rollout()
        moved = Conversation(rig, other, copy.deepcopy(conversation.messages))
        await moved.say("two")
        await moved.close()
        assert await histories(rig, other) == ["start"]
        assert [span.attributes[CALL_HISTORY] for span in await rig.spans(rollout)] == ["start"]


def call(messages: list[Any], attempt: str = "at") -> UpstreamCall:
    return UpstreamCall(call_id="c", kind="chat", body={"messages": messages}, scope=CallScope("ro", attempt))


def capture(prompt: Any, answer: Any) -> Capture:
    return Capture(choices=[CapturedChoice(index=0, output={}, prompt_token_ids=prompt, token_ids=answer)])


def test_a_prompt_that_ends_before_the_answer_does() -> None:
    continuity = Continuity()
    history = [{"role": "assistant", "content": "x"}]
    assert continuity.check(call([]), capture([1, 2], [3, 4])) == "start"
    assert continuity.check(call(history), capture([1, 2, 3], [9])) == "prompt_shorter"
    assert continuity.check(call(history), capture([1, 2, 3, 5, 6], [9])) == "retokenized"


def test_without_token_ids_nothing_is_claimed() -> None:
    continuity = Continuity()
    for prompt in (None, ["a"], [-1], [2**40]):
        assert continuity.check(call([]), capture(prompt, [1])) is None


def test_memory_is_bounded_and_what_was_forgotten_counts_as_a_start() -> None:
    continuity = Continuity(max_bytes=20_000)
    history = [{"role": "assistant", "content": json.dumps("x")}]
    for number in range(100):
        assert continuity.check(call([], f"at{number}"), capture(list(range(500)), [1])) == "start"
    assert continuity.bytes <= 20_000
    assert continuity.check(call(history, "at0"), capture([9, 9], [1])) == "start"
    assert continuity.check(call(history, "at99"), capture([*range(500), 1, 7], [1])) == "continues"


def said(*texts: str) -> list[Any]:
    """A conversation in which user and model speak in turns, the user first."""
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


def test_branches_are_told_from_rewritten_answers() -> None:
    continuity = Continuity()
    assert continuity.check(call(said("q")), capture([1, 9], [2, 8])) == "start"
    assert continuity.check(call(said("q", "2", "r")), capture([1, 9, 2, 8, 3, 9], [4, 8])) == "continues"
    # The first answer again, with another question: a branch. What the model says here goes on from there.
    assert continuity.check(call(said("q", "2", "s")), capture([1, 9, 2, 8, 5, 9], [6, 8])) == "continues"
    branch = call(said("q", "2", "s", "6", "t"))
    assert continuity.check(branch, capture([1, 9, 2, 8, 5, 9, 6, 8, 7, 9], [7, 8])) == "continues"
    # The question of the second turn was rewritten below its answer: those are not the tokens that were sampled.
    rewritten = call(said("q", "2", "R", "4", "t"))
    assert continuity.check(rewritten, capture([1, 9, 2, 8, 33, 9, 4, 8, 7, 9], [7, 8])) == "history_changed"
    # And its answer, below the same question.
    other = call(said("q", "2", "r", "5", "t"))
    assert continuity.check(other, capture([1, 9, 2, 8, 3, 9, 5, 8, 7, 9], [7, 8])) == "retokenized"
    assert continuity.check(other, capture([1, 9, 2, 8, 3, 9, 5, 8, 7, 9], [7, 8])) == "retokenized"  # asked twice


def test_what_an_agent_adds_in_the_models_name_does_not_break_what_was_sampled() -> None:
    continuity = Continuity()
    assert continuity.check(call(said("q")), capture([1, 9], [2, 8])) == "start"
    added = [*said("q", "2"), {"role": "assistant", "content": "let me think"}, {"role": "user", "content": "r"}]
    for _ in range(2):
        assert continuity.check(call(added), capture([1, 9, 2, 8, 50, 8, 3, 9], [4, 8])) == "continues"


def test_more_turns_than_are_remembered() -> None:
    continuity = Continuity()
    for number in range(300):
        assert continuity.check(call(said(str(number))), capture([number, 9], [2, 8])) == "start"
    assert continuity.check(call(said("299", "2", "r")), capture([299, 9, 2, 8, 3, 9], [4, 8])) == "continues"
    assert continuity.bytes == 500 + 256 * (4 * 4 + 200) + 4 * 4  # the last turn is four tokens longer


def test_one_attempt_alone_is_bounded_too() -> None:
    continuity = Continuity(max_bytes=20_000)
    for number in range(20):
        assert continuity.check(call(said(str(number))), capture([number] * 500, [1])) == "start"
    assert continuity.bytes <= 20_000

"""A stand-in for a language model that does research: real HTTP, OpenAI's protocol, a script instead of a mind.

It plans, calls the tools that its script names one after another, then answers; it finds unsupported statements where
the draft says `MADE UP`. Its prompt decides how well it works: without the words that it needs it answers at once and
reads nothing. As a writer of prompts it adds just those words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from tests.scripted_model import ScriptedModel

PLAN = "1. Search the notes with Grep\n2. Read what was found"
NOTES = "# Dragons\n\nDragons sleep on gold.\nThe oldest dragon is Smaug, who is 171 years old.\n"
Step = tuple[str, dict[str, Any]]
STEPS: list[list[Step]] = [[("Grep", {"pattern": "dragon"})], [("Read", {"file_path": "notes/dragons.md"})]]
ANSWER = "The dragon asked about is Smaug, 171 years old, and dragons sleep on gold [S2]."
Message = dict[str, Any]


class ScriptedResearcher(ScriptedModel):
    """The server.

    Args:
        steps: Tool calls, turn by turn.
        answer: What it says in the end; markers may be in it.
        needs: Words that the system prompt has to have for the steps to be taken.
        override: Is asked first, with the body; `None` goes on as usual.
    """

    def __init__(
        self,
        steps: list[list[Step]] | None = None,
        answer: str = ANSWER,
        *,
        needs: str = "",
        override: Callable[[Message], Message | None] | None = None,
        delay_s: float = 0.0,
        status: int = 200,
    ) -> None:
        super().__init__(delay_s=delay_s, status=status)
        self.steps = STEPS if steps is None else steps
        self.final = answer
        self.needs = needs
        self.override = override

    def respond(self, handler: Any, body: Message) -> None:
        self.bodies.append(body)
        self.calls[body["model"]] += 1
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.status != 200:
            handler.send({"error": {"message": "out of order"}}, self.status)
            return
        message = self.override(body) if self.override else None
        if message is not None and "raw" in message:
            handler.send(message["raw"])
            return
        message = message or self.speak(body)
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        if body.get("stream"):
            stream(handler, body["model"], message, reason)
            return
        handler.send(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [{"index": 0, "finish_reason": reason, "message": {"role": "assistant", **message}}],
                "usage": {"prompt_tokens": 50, "completion_tokens": 10, "total_tokens": 60},
            }
        )

    def speak(self, body: Message) -> Message:
        messages = body["messages"]
        first, last = text_of(messages[0]), text_of(messages[-1])
        if "You improve the prompts" in first:
            return {"content": self.improve(last)}
        if "You plan research" in first:
            return {"content": PLAN}
        if "Check a draft answer" in first:
            return {"content": self.check(last)}
        taken = sum(message["role"] == "assistant" for message in messages)
        able = self.needs in first
        served = [tool["function"]["name"] for tool in body.get("tools") or []]
        if able and taken < len(self.steps) and body.get("tools"):
            return {
                "content": None,
                "tool_calls": [call(as_served(name, served), given, taken) for name, given in self.steps[taken]],
            }
        return {"content": self.final if able else "Dragons are big. [S1]"}

    def check(self, question: str) -> str:
        draft = question.rpartition("Draft:\n")[2]
        wrong = [part for part in draft.split(". ") if "MADE UP" in part]
        return json.dumps({"unsupported": wrong, "answer": ". ".join(p for p in draft.split(". ") if p not in wrong)})

    def improve(self, question: str) -> str:
        if "<critique>" not in question:
            return f"- The prompt does not say: {self.needs}."
        name, rest = "research_prompt", question.partition('<prompt name="research_prompt">\n')[2]
        return f'<prompt name="{name}">\n{rest.partition("</prompt>")[0].rstrip()}\n- {self.needs}.\n</prompt>'


def stream(handler: Any, model: str, message: Message, reason: str) -> None:
    """The answer as server-sent events, in two pieces."""
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model}
    calls = [{"index": index, **made} for index, made in enumerate(message.get("tool_calls") or [])]
    delta = {"role": "assistant", "content": message.get("content") or "", **({"tool_calls": calls} if calls else {})}
    usage = {"prompt_tokens": 50, "completion_tokens": 10, "total_tokens": 60}
    events = [
        {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
        {**base, "choices": [], "usage": usage},
    ]
    data = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    handler.send_response(200)
    handler.send_header("content-type", "text/event-stream")
    handler.send_header("content-length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data.encode())


def text_of(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return content or ""


def as_served(name: str, served: list[str]) -> str:
    """The Claude Agent SDK has the same tools under longer names."""
    return next((other for other in served if other.endswith(f"__{name}")), name)


def call(name: str, arguments: dict[str, Any] | str, turn: int) -> Message:
    given = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": f"call-{turn}-{name}", "type": "function", "function": {"name": name, "arguments": given}}

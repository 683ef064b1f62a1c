"""A model server for tests: real HTTP, OpenAI's chat completions, scripted answers, every call counted.

As a task model it knows the answer of each question (`value=…`) but tells it only when its prompt has the rule of the
question's category (`rule alpha`); questions of category `plain` it always answers. As a proposer it reads the failed
runs it is shown, names the rules they would have needed, and writes them into the prompt.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CATEGORIES = ("alpha", "beta", "gamma", "plain")
PROPOSER = "proposer"
SEED = "Answer the question {question}."

_PROMPT = re.compile(r'<prompt name="([^"]*)">\n(.*?)\n</prompt>', re.DOTALL)


def tasks(count: int, offset: int = 0) -> list[dict[str, Any]]:
    """Questions of all categories in turn, each with its expected answer."""
    return [
        {"question": f"category={CATEGORIES[n % 4]} value={n}", "expected": str(n)}
        for n in range(offset, offset + count)
    ]


def answer_task(text: str) -> str:
    """The task model."""
    asked = re.findall(r"category=(\w+) value=(\d+)", text)
    if not asked:
        return "what?"
    category, value = asked[-1]
    return value if category == "plain" or f"rule {category}" in text else "no idea"


def critique(text: str) -> str:
    """The critic: the rules that failed runs lacked."""
    failed = re.findall(r'<run reward="0">(.*?)</run>', text, re.DOTALL)
    needed = sorted({found for run in failed for found in re.findall(r"category=(\w+)", run)} - {"plain"})
    return "\n".join(f"- The prompt lacks rule {category}." for category in needed[:1])


def edit(text: str) -> str:
    """The editor: the prompt with the rules that the critique asks for."""
    name, prompt = _PROMPT.findall(text)[0]
    told = text.partition("<critique>")[2]
    rules = dict.fromkeys(re.findall(r"lacks (rule \w+)", told))
    added = "".join(f" Use {rule}." for rule in rules if rule not in prompt)
    return f'<prompt name="{name}">\n{prompt}{added}\n</prompt>'


def propose(text: str) -> str:
    """The proposer: critic or editor, whichever is asked."""
    return edit(text) if "<critique>" in text else critique(text)


class ScriptedModel:
    """The server. `calls` counts what it answered by model, `bodies` has what it was asked.

    Args:
        propose: Answers questions to the model `proposer`.
        delay_s: Time an answer takes.
        models: Those it has; any when empty.
    """

    def __init__(
        self,
        propose: Callable[[str], str] = propose,
        *,
        answer: Callable[[str], str] = answer_task,
        delay_s: float = 0.0,
        status: int = 200,
        models: Collection[str] = (),
    ) -> None:
        self.models = models
        self.calls: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.propose, self.answer, self.delay_s, self.status = propose, answer, delay_s, status
        self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.send({"object": "list", "data": [{"id": "task", "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.respond(self, body)

            def send(self, answer: Any, status: int = 200) -> None:
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: Any) -> None:
                pass  # clients are killed in the middle of their calls

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def total(self) -> int:
        return sum(self.calls.values())

    def __enter__(self) -> ScriptedModel:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def respond(self, handler: Any, body: dict[str, Any]) -> None:
        with self._lock:
            self.calls[body["model"]] += 1
            self.bodies.append(body)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.delay_s:
                time.sleep(self.delay_s)
            if self.models and body["model"] not in self.models:
                handler.send({"error": {"message": "no such model", "code": "model_not_found"}}, 404)
                return
            if self.status != 200:
                handler.send({"error": {"message": "out of order"}}, self.status)
                return
            text = "\n".join(m["content"] or "" for m in body["messages"])
            content = self.propose(text) if body["model"] == PROPOSER else self.answer(text)
            usage = {"prompt_tokens": len(text.split()), "completion_tokens": len(content.split())}
            message = {"role": "assistant", "content": content}
            handler.send(
                {
                    "id": "chatcmpl-1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": body["model"],
                    "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                    "usage": {**usage, "total_tokens": sum(usage.values())},
                }
            )
        finally:
            with self._lock:
                self.in_flight -= 1

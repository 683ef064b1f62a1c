"""A process that speaks vLLM's HTTP protocol and is started by the same command line: vLLM itself needs a GPU.

What it answers stands in the served directory (`weights.txt`); with it come prompt and response token ids and
processed log-probabilities, as `--logprobs-mode processed_logprobs` and `return_token_ids` have them. A prompt that
holds the word `crash` ends the process in the middle of the answer; one with `hold` waits for the file `--hold-file`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web

PROMPT_IDS = [11, 12, 13]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--logprobs-mode", required=True)
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--lora-modules")
    # of this double only
    parser.add_argument("--start-delay-s", type=float, default=0.0)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--chunk-delay-s", type=float, default=0.0)
    parser.add_argument("--hold-file", type=Path)
    parser.add_argument("--fail-start", action="store_true")
    parser.add_argument("--without-reload", action="store_true")
    return parser.parse_args()


class Server:
    """One served model."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.names = [given.served_model_name]
        if given.lora_modules:
            self.names.append(given.lora_modules.partition("=")[0])
        self.weights = self.read()

    def read(self) -> str:
        return (Path(self.given.model) / "weights.txt").read_text()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self.health)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/chat/completions", self.chat)
        if not self.given.without_reload:
            app.router.add_post("/collective_rpc", self.collective_rpc)
            app.router.add_post("/reset_prefix_cache", self.health)
        return app

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def models(self, request: web.Request) -> web.Response:
        self.check(request)
        data = [
            {"id": name, "object": "model", "owned_by": "vllm", "max_model_len": self.given.max_model_len}
            for name in self.names
        ]
        return web.json_response({"object": "list", "data": data})

    async def collective_rpc(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert os.environ["VLLM_SERVER_DEV_MODE"] == "1"
        assert body["method"] == "reload_weights"
        self.weights = self.read()
        return web.json_response({"results": [None]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.check(request)
        body = await request.json()
        if body["model"] not in self.names:
            error = {"message": f"The model `{body['model']}` does not exist.", "type": "NotFoundError", "code": 404}
            return web.json_response({"error": error}, status=404)
        text = json.dumps(body["messages"])
        crashes = "crash" in text
        pieces = self.pieces()
        while "hold" in text and not self.given.hold_file.exists():  # noqa: ASYNC110 - made by another process
            await asyncio.sleep(0.01)
        if not body.get("stream"):
            await asyncio.sleep(self.given.chunk_delay_s * len(pieces))
            if crashes:
                os._exit(9)
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(pieces)},
                "finish_reason": "stop",
                **self.tokens(body, 0, len(pieces)),
            }
            ids = {"prompt_token_ids": PROMPT_IDS} if body.get("return_token_ids") else {}
            return web.json_response(
                {**self.head("chat.completion"), **ids, "choices": [choice], "usage": self.usage()}
            )
        return await self.stream(request, body, pieces, crashes=crashes)

    async def stream(
        self, request: web.Request, body: dict[str, Any], pieces: list[str], *, crashes: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        head = self.head("chat.completion.chunk")
        for i, piece in enumerate(pieces):
            if crashes and i == len(pieces) // 2:
                os._exit(9)
            chunk: dict[str, Any] = {
                **head,
                "choices": [
                    {"index": 0, "delta": {"content": piece}, "finish_reason": None, **self.tokens(body, i, i + 1)}
                ],
            }
            if i == 0 and body.get("return_token_ids"):
                chunk["prompt_token_ids"] = PROMPT_IDS
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            await asyncio.sleep(self.given.chunk_delay_s)
        last = {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        await response.write(b"data: " + json.dumps(last).encode() + b"\n\n")
        if (body.get("stream_options") or {}).get("include_usage"):
            tail = {**head, "choices": [], "usage": self.usage()}
            await response.write(b"data: " + json.dumps(tail).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    def pieces(self) -> list[str]:
        return [f"{self.weights} " for _ in range(self.given.chunks)]

    def tokens(self, body: dict[str, Any], low: int, high: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if body.get("return_token_ids"):
            found["token_ids"] = list(range(100 + low, 100 + high))
        if body.get("logprobs"):
            entry = {"token": "x", "logprob": math.log(0.5), "bytes": None, "top_logprobs": []}
            found["logprobs"] = {"content": [entry] * (high - low)}
        return found

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{time.time_ns()}", "object": kind, "created": int(time.time()), "model": self.names[0]}

    def usage(self) -> dict[str, int]:
        given, made = len(PROMPT_IDS), self.given.chunks
        return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}

    def check(self, request: web.Request) -> None:
        if request.headers.get("Authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            raise web.HTTPUnauthorized


def main() -> None:
    given = arguments()
    if given.logprobs_mode != "processed_logprobs":
        sys.exit("log-probabilities would not be those of the sampling distribution")
    if given.fail_start:
        sys.exit("CUDA error: out of memory (scripted)")
    time.sleep(given.start_delay_s)
    server = Server(given)
    web.run_app(server.app(), host=given.host, port=given.port, print=None, shutdown_timeout=0.5)


if __name__ == "__main__":
    main()

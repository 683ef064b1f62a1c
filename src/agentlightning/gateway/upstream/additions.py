"""What the gateway asks a server for beyond the agent's request, and takes out of the answer again. Pure."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from agentlightning.gateway.call import UpstreamCall


class Additions(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask for: token ids with their logprobs (vLLM), usage of streamed answers (OpenAI)."""

    token_ids: bool
    usage: bool

    def add(self, call: UpstreamCall) -> dict[str, Any]:
        """A copy of the call's body with the additions."""
        body = dict(call.body)
        if self.token_ids:
            body["return_token_ids"] = True
            if not _wants_logprobs(call):
                body["logprobs"] = True if call.kind == "chat" else 0
        if self._adds_usage(call):
            body["stream_options"] = {**(call.body.get("stream_options") or {}), "include_usage": True}
        return body

    def strip(self, call: UpstreamCall, answer: dict[str, Any]) -> bool:
        """Take the additions out of a finished answer, in place; return whether there was anything to take out."""
        if not self.token_ids:
            return False
        if not call.body.get("return_token_ids"):
            answer.pop("prompt_token_ids", None)
        for choice in answer["choices"]:
            self._strip_choice(call, choice)
        return True

    def strip_chunk(self, call: UpstreamCall, chunk: dict[str, Any], event: bytes) -> bytes:
        """The bytes to pass on for a chunk: `event` itself where nothing was added, nothing where all of it was."""
        if self._adds_usage(call) and not chunk.get("choices") and "usage" in chunk:
            return b""
        is_asked_usage = not self._adds_usage(call)
        if not self.token_ids and (is_asked_usage or "usage" not in chunk):
            return event
        shown = dict(chunk)
        if not is_asked_usage:
            shown.pop("usage", None)
        if self.token_ids:
            if not call.body.get("return_token_ids"):
                shown.pop("prompt_token_ids", None)
            shown["choices"] = [dict(choice) for choice in chunk.get("choices") or ()]
            for choice in shown["choices"]:
                self._strip_choice(call, choice)
        return b"data: %b\n\n" % orjson.dumps(shown)

    def _adds_usage(self, call: UpstreamCall) -> bool:
        options = call.body.get("stream_options") or {}
        return self.usage and call.is_streamed and not options.get("include_usage")

    def _strip_choice(self, call: UpstreamCall, choice: dict[str, Any]) -> None:
        if not call.body.get("return_token_ids"):
            choice.pop("token_ids", None)
            choice.pop("prompt_token_ids", None)
        if not _wants_logprobs(call):
            choice["logprobs"] = None


def _wants_logprobs(call: UpstreamCall) -> bool:
    logprobs = call.body.get("logprobs")
    return bool(logprobs) if call.kind == "chat" else logprobs is not None

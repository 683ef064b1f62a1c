"""How model families write tool calls: reading them out of generated text, and the grammar that forces them.

Torch-free. Three families, told apart by the chat template:

* Hermes (also Qwen and the embedded model): `<tool_call>{"name": …, "arguments": {…}}</tool_call>`;
* Llama 3: the whole message is `{"name": …, "parameters": {…}}`, several separated by `;`;
* Mistral: `[TOOL_CALLS] [{"name": …, "arguments": {…}}]`, in newer versions `[TOOL_CALLS]name[ARGS]{…}`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any

from agentlightning.kit.ids import new_id

Call = dict[str, Any]
_DECODER = json.JSONDecoder()


class ToolFormat:
    """The Hermes form, and what the forms have in common."""

    tags: tuple[str, ...] = ("<tool_call>", "</tool_call>")
    """Texts that stay visible in decoded text even where they are special tokens."""
    openers: tuple[str, ...] = ("<tool_call>",)
    """What a call begins with."""
    arguments_key = "arguments"
    free_text = r"(.|\n)*"
    """What a message without calls looks like, as a regular expression."""

    def parse(self, text: str) -> tuple[str, list[Call]]:
        """Split generated text into content and OpenAI tool calls.

        A block that is no call stays visible in the content. Content beside calls loses its trailing white space.
        """
        opener, closer = self.tags
        if opener not in text:
            return text, []
        calls: list[Call] = []
        rest: list[str] = []
        position = 0
        for match in re.finditer(rf"{opener}(.*?)(?:{closer}|\Z)", text, re.DOTALL):
            call = self._read(match[1])
            if call is None:
                continue
            calls.append(call)
            rest.append(text[position : match.start()])
            position = match.end()
        rest.append(text[position:])
        return ("".join(rest).rstrip() if calls else text), calls

    def shown(self, text: str) -> str:
        """The part of a growing text that can be shown: nothing that may turn out a call."""
        for opener in self.openers:
            text = text.partition(opener)[0]
        held = max(overlap(text, opener) for opener in self.openers)
        return text[: len(text) - held].rstrip()

    def new_id(self) -> str:
        """An id for a call."""
        return new_id("call")

    def known_id(self, call_id: str) -> str:
        """The id under which the chat template accepts a call made elsewhere."""
        return call_id

    def rules(self, tools: list[tuple[str, str]], special: dict[str, int], *, most: int) -> list[str]:
        """Lark rules; `calls` is one or more calls.

        Args:
            tools: Name of each tool and of the rule of its arguments.
            special: Special tokens by text; a tag that is one is that token.
            most: Most calls.
        """
        objects = " | ".join(self._object(name, rule) for name, rule in tools)
        return [
            r"calls: lead /\n?/ body /\n?/ closer" + _repeated(r"/\n?/ opener /\n?/ body /\n?/ closer", most),
            f"closer: {self._tag(self.tags[1], special)}",
            f"body: {objects}",
        ]

    def opening(self, special: dict[str, int], *, free: bool) -> list[str]:
        """The Lark rules of what a call begins with: `lead` for the first, `opener` for the others.

        Args:
            special: Special tokens by text; an opener that is one is that token.
            free: Any text may stand before the first.
        """
        tag = self._tag(self.openers[0], special)
        lead = f"lead: {'TEXT ' if free else ''}{tag}"
        if free and self.openers[0] not in special:
            lead = f"lead[lazy]: /{self.free_text}/ {tag}"
        return [lead, f"opener: {tag}"]

    def _object(self, name: str, rule: str) -> str:
        head = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{self.arguments_key}": '
        return f'{self._literal(head)} {rule} "}}"'

    def _read(self, block: str) -> Call | None:
        try:
            call = json.loads(block)
        except ValueError:
            return None
        return self._call(call)

    def _call(self, call: Any) -> Call | None:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return None
        arguments = call.get("arguments", call.get("parameters", {}))
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return {"id": self.new_id(), "type": "function", "function": {"name": call["name"], "arguments": arguments}}

    def _tag(self, text: str, special: dict[str, int]) -> str:
        return f"<[{special[text]}]>" if text in special else self._literal(text)

    @staticmethod
    def _literal(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)


class LlamaFormat(ToolFormat):
    """Llama 3: a message is either text or calls."""

    tags = ("<|python_tag|>",)
    openers = ("<|python_tag|>", "{")
    arguments_key = "parameters"
    free_text = r"([^{\s](.|\n)*)?"

    def parse(self, text: str) -> tuple[str, list[Call]]:
        """Calls where the whole text consists of them, else all of it as content."""
        rest = text.strip().removeprefix(self.tags[0]).strip()
        calls: list[Call] = []
        while rest:
            try:
                value, end = _DECODER.raw_decode(rest)
            except ValueError:
                return text, []
            call = self._call(value)
            if call is None or not ({"parameters", "arguments"} & value.keys()):
                return text, []
            calls.append(call)
            rest = rest[end:].lstrip().removeprefix(";").lstrip()
        return ("", calls) if calls else (text, [])

    def shown(self, text: str) -> str:
        """All of it, unless it begins like a call."""
        start = text.lstrip()
        if not start or any(start.startswith(o) or o.startswith(start) for o in self.openers):
            return ""
        return text.rstrip()

    def rules(self, tools: list[tuple[str, str]], special: dict[str, int], *, most: int) -> list[str]:
        """As `ToolFormat.rules`."""
        objects = " | ".join(self._object(name, rule) for name, rule in tools)
        return ["calls: body" + _repeated('"; " body', most), f"body: {objects}"]


class MistralFormat(ToolFormat):
    """Mistral up to version 10 of its tokenizer: one list of calls."""

    tags = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
    openers = ("[TOOL_CALLS]",)

    def parse(self, text: str) -> tuple[str, list[Call]]:
        """As `ToolFormat.parse`."""
        content, opener, rest = text.partition(self.openers[0])
        if not opener:
            return text, []
        blocks = [block.strip() for block in rest.split(self.openers[0])]
        calls = [call for block in blocks for call in self._block(block)]
        return (content.rstrip(), calls) if calls else (text, [])

    def _block(self, block: str) -> list[Call]:
        named = re.match(r"([\w.:-]+)\s*(?:\[CALL_ID\]\w+)?\s*(?:\[ARGS\])?\s*(?=\{)", block)
        try:
            value, _ = _DECODER.raw_decode(block[named.end() :] if named else block)
        except ValueError:
            return []
        if named:
            value = {"name": named[1], "arguments": value}
        found = [self._call(item) for item in (value if isinstance(value, list) else [value])]
        return [call for call in found if call is not None]

    def new_id(self) -> str:
        """Nine letters and digits: the templates refuse anything else."""
        return os.urandom(5).hex()[:9]

    def known_id(self, call_id: str) -> str:
        """The same, for ids of other models."""
        if re.fullmatch(r"[a-zA-Z0-9]{9}", call_id):
            return call_id
        return hashlib.blake2b(call_id.encode(), digest_size=5).hexdigest()[:9]

    def rules(self, tools: list[tuple[str, str]], special: dict[str, int], *, most: int) -> list[str]:
        """As `ToolFormat.rules`."""
        objects = " | ".join(self._object(name, rule) for name, rule in tools)
        return ['calls: lead / ?/ "[" body' + _repeated('", " body', most) + ' "]"', f"body: {objects}"]


class NewMistralFormat(MistralFormat):
    """Mistral from version 11 of its tokenizer on: each call begins with the tag, its name is bare."""

    def rules(self, tools: list[tuple[str, str]], special: dict[str, int], *, most: int) -> list[str]:
        """As `ToolFormat.rules`; `args` is the tag between name and arguments."""
        objects = " | ".join(f"{self._literal(name)} args {rule}" for name, rule in tools)
        return [
            "calls: lead body" + _repeated("opener body", most),
            f"args: {self._tag('[ARGS]', special)}",
            f"body: {objects}",
        ]


HERMES = ToolFormat()


def detect_format(tokenizer: Any) -> ToolFormat:
    """The format of a model, by its chat template; Hermes where nothing tells."""
    template = tokenizer.chat_template or ""
    if not isinstance(template, str):  # several named templates
        template = "\n".join(str(t) for t in getattr(template, "values", lambda: [template])())
    if "[TOOL_CALLS]" in template:
        return NewMistralFormat() if "[ARGS]" in template else MistralFormat()
    if "<tool_call>" not in template and (
        "<|python_tag|>" in template or re.search(r"""["']parameters\\?["']:""", template)
    ):
        return LlamaFormat()
    return HERMES


def _repeated(rule: str, most: int) -> str:
    return "" if most == 1 else f" ({rule}){{0,{most - 1}}}"


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0

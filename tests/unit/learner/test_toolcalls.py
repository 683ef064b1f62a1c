"""Tool calls of the common model families: told apart, read, forced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentlightning.learner.chat import ChatFormat, safe_text
from agentlightning.learner.engine import Engine
from agentlightning.learner.model import load_model
from agentlightning.learner.toolcalls import (
    HERMES,
    LlamaFormat,
    MistralFormat,
    NewMistralFormat,
    ToolFormat,
    detect_format,
)
from agentlightning.schemas.generation import (
    Constraint,
    GenerateDelta,
    GenerateRequest,
    GenerateResult,
    SamplingParams,
)
from tests.unit.learner.tiny import make_tokenizer, save_model

LLAMA, MISTRAL, NEW_MISTRAL = LlamaFormat(), MistralFormat(), NewMistralFormat()
# As the model families' own templates write calls, shortened to what tells them apart.
TEMPLATES = {
    "hermes": "{{ '<tool_call>' }}",
    "llama": """{{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{ "<|python_tag|>" }}""",
    "llama-3.2": """{{- '"parameters": ' }}""",
    "mistral": """{{- "[TOOL_CALLS] [" }}""",
    "mistral-v11": """{{- "[TOOL_CALLS]" + name + "[ARGS]" }}""",
    "plain": "{{ messages }}",
}
KINDS = {
    "hermes": ToolFormat, "llama": LlamaFormat, "llama-3.2": LlamaFormat, "mistral": MistralFormat,
    "mistral-v11": NewMistralFormat, "plain": ToolFormat,
}  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {"q": {"enum": ["one", "two"]}},
    "required": ["q"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("sql", "web.search")]


def tokenizer_with(kind: str, *, special: tuple[str, ...] = ()) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATES[kind]
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def functions(calls: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


@pytest.mark.parametrize("kind", list(TEMPLATES))
def test_the_template_tells_the_family(kind: str) -> None:
    assert type(detect_format(tokenizer_with(kind))) is KINDS[kind]


def test_named_templates_and_none_at_all_are_looked_at() -> None:
    tokenizer = make_tokenizer(template=False)
    assert detect_format(tokenizer) is HERMES
    tokenizer.chat_template = {"default": "x", "tool_use": TEMPLATES["mistral"]}
    assert isinstance(detect_format(tokenizer), MistralFormat)


@pytest.mark.parametrize(
    ("form", "text", "content", "calls"),
    [
        (LLAMA, '{"name": "sql", "parameters": {"q": 1}}', "", [("sql", {"q": 1})]),
        (LLAMA, ' <|python_tag|>{"name": "sql", "arguments": {}}\n', "", [("sql", {})]),
        (LLAMA, '{"name": "a", "parameters": {}}; {"name": "b", "parameters": {"x": [1]}}', "",
         [("a", {}), ("b", {"x": [1]})]),
        (LLAMA, '{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 36}', []),
        (LLAMA, '{"name": "a", "parameters": {}} and so on', '{"name": "a", "parameters": {}} and so on', []),
        (LLAMA, "Hello.", "Hello.", []),
        (LLAMA, "", "", []),
        (MISTRAL, '[TOOL_CALLS] [{"name": "sql", "arguments": {"q": 1}}, {"name": "b", "arguments": {}}]', "",
         [("sql", {"q": 1}), ("b", {})]),
        (MISTRAL, 'Let me see.\n[TOOL_CALLS][{"name": "sql", "arguments": {"q": "[x]"}}]', "Let me see.",
         [("sql", {"q": "[x]"})]),
        (NEW_MISTRAL, '[TOOL_CALLS]sql[ARGS]{"q": 1}[TOOL_CALLS]b[ARGS]{}', "", [("sql", {"q": 1}), ("b", {})]),
        (NEW_MISTRAL, '[TOOL_CALLS]sql[CALL_ID]abc123def[ARGS]{"q": 1}', "", [("sql", {"q": 1})]),
        (MISTRAL, "[TOOL_CALLS] nonsense", "[TOOL_CALLS] nonsense", []),
        (MISTRAL, "no call", "no call", []),
    ],
)  # fmt: skip
def test_calls_are_read(form: ToolFormat, text: str, content: str, calls: list[Any]) -> None:
    found, parsed = form.parse(text)
    assert (found, functions(parsed)) == (content, calls)
    assert len({call["id"] for call in parsed}) == len(calls)


@pytest.mark.parametrize(
    ("form", "growing", "shown"),
    [
        (LLAMA, ["", " ", "<", "<|py", '{"', '{"name": "x"}'], ""),
        (LLAMA, ["He", "Hello {"], None),
        (MISTRAL, ["Let me [", "Let me [TOOL_CALLS", "Let me [TOOL_CALLS] [{"], "Let me"),
    ],
)
def test_what_may_become_a_call_is_held_back(form: ToolFormat, growing: list[str], shown: str | None) -> None:
    for text in growing:
        assert safe_text(text, [], form) == (text if shown is None else shown)


def test_mistrals_ids_are_nine_letters_and_digits() -> None:
    _, [call] = MISTRAL.parse('[TOOL_CALLS] [{"name": "sql", "arguments": {}}]')
    assert len(call["id"]) == 9
    assert MISTRAL.known_id(call["id"]) == call["id"]
    other = MISTRAL.known_id("call_made_by_another_model")
    assert len(other) == 9
    assert other == MISTRAL.known_id("call_made_by_another_model") != MISTRAL.known_id("call_2")
    tokenizer = tokenizer_with("mistral")
    tokenizer.chat_template = (
        "[TOOL_CALLS]{% for m in messages %}{{ m.tool_call_id or m.tool_calls[0].id }},{% endfor %}"
    )
    call = {"id": "call_1", "type": "function", "function": {"name": "sql", "arguments": "{}"}}
    messages = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "call_1", "content": ""}]
    text = ChatFormat(tokenizer).encode(GenerateRequest(messages=messages)).text
    name = MISTRAL.known_id("call_1")
    assert text == f"[TOOL_CALLS]{name},{name},"


CASES = [
    ("hermes", ()), ("hermes", ("<tool_call>", "</tool_call>")), ("llama", ()), ("llama", ("<|python_tag|>",)),
    ("mistral", ("[TOOL_CALLS]",)), ("mistral", ()), ("mistral-v11", ("[TOOL_CALLS]", "[ARGS]")), ("mistral-v11", ()),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "special"), CASES)
def test_forced_calls_are_written_as_the_family_does_and_read_back(
    tmp_path: Path, kind: str, special: tuple[str, ...]
) -> None:
    save_model(tmp_path)
    tokenizer = tokenizer_with(kind, special=special)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    loaded.model.resize_token_embeddings(len(loaded.tokenizer))
    loaded.vocab_size = len(loaded.tokenizer)
    engine = Engine(loaded, max_batch=32)
    for number, constraint in enumerate((Constraint(must_call=True), Constraint(must_call=True, tool="sql"))):
        request = GenerateRequest(
            request_id=f"r{number}", prompt_token_ids=[5, 6], tools=TOOLS, constraint=constraint, stream=True,
            params=SamplingParams(n=12, temperature=3.0, seed=1),
        )  # fmt: skip
        deltas = stream(engine, request)
        result = deltas[-1].result
        assert result is not None
        finished = [choice for choice in result.choices if choice.finish_reason == "tool_calls"]
        assert len(finished) > 6
        for choice in finished:
            assert choice.text == ""
            assert {call["function"]["name"] for call in choice.tool_calls} <= {"sql", "web.search"}
            assert all(arguments["q"] in ("one", "two") for _, arguments in functions(choice.tool_calls))
            streamed = [d for d in deltas if d.index == choice.index]
            assert [c for d in streamed for c in d.tool_calls] == choice.tool_calls
            assert "".join(d.text for d in streamed) == ""


@pytest.mark.parametrize(("kind", "special"), CASES)
def test_strict_tools_allow_text_or_calls(tmp_path: Path, kind: str, special: tuple[str, ...]) -> None:
    save_model(tmp_path)
    tokenizer_with(kind, special=special).save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    loaded.model.resize_token_embeddings(len(loaded.tokenizer))
    loaded.vocab_size = len(loaded.tokenizer)
    request = GenerateRequest(
        request_id="r", prompt_token_ids=[5, 6], tools=TOOLS, constraint=Constraint(),
        params=SamplingParams(n=12, temperature=3.0, max_tokens=40),
    )  # fmt: skip
    engine = Engine(loaded, max_batch=32)
    engine.submit(request)
    while engine.busy:
        for event in engine.step():
            assert isinstance(event, GenerateResult)
            for choice in event.choices:
                for _, arguments in functions(choice.tool_calls):
                    assert arguments["q"] in ("one", "two")


def stream(engine: Engine, request: GenerateRequest) -> list[GenerateDelta]:
    engine.submit(request)
    deltas: list[GenerateDelta] = []
    while engine.busy:
        deltas += [event for event in engine.step() if isinstance(event, GenerateDelta)]
    return deltas

import json

import pytest

from agentlightning.kit.errors import BadInputError
from agentlightning.learner.chat import ChatFormat, Detokenizer, cut_at_stop, safe_text
from agentlightning.learner.toolcalls import HERMES
from agentlightning.schemas.generation import GenerateRequest
from tests.unit.learner.tiny import make_tokenizer

TOOLS = [{"type": "function", "function": {"name": "run_sql", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def chat(tokenizer):
    return ChatFormat(tokenizer)


def ids_of(tokenizer, text):
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def test_messages_render_as_the_tokenizer_renders_them(chat, tokenizer):
    messages = [{"role": "user", "content": "hello world"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = chat.encode(GenerateRequest(messages=messages))
    assert prompt.token_ids == ids_of(tokenizer, expected)
    assert chat.encode(GenerateRequest(messages=messages)).token_ids == prompt.token_ids


def test_tool_call_arguments_reach_the_template_as_objects(chat):
    call = {"id": "c", "type": "function", "function": {"name": "run_sql", "arguments": '{"query": "select"}'}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "3"}]
    text = chat.encode(GenerateRequest(messages=messages, tools=TOOLS)).text
    assert '{"name": "run_sql", "arguments": {"query": "select"}}' in text
    assert "None" not in text


@pytest.mark.parametrize("arguments", ["{broken", '["a list"]', {"query": "a dict"}])
def test_unusual_tool_call_arguments_are_passed_on(chat, arguments):
    call = {"id": "c", "type": "function", "function": {"name": "run_sql", "arguments": arguments}}
    text = chat.encode(GenerateRequest(messages=[{"role": "assistant", "content": "", "tool_calls": [call]}])).text
    assert json.dumps(arguments) in text


def test_text_parts_are_joined_and_images_refused(chat):
    parts = [{"type": "text", "text": "hello "}, {"type": "text", "text": "world"}]
    assert "hello world" in chat.encode(GenerateRequest(messages=[{"role": "user", "content": parts}])).text
    with pytest.raises(BadInputError, match="text only"):
        chat.encode(GenerateRequest(messages=[{"role": "user", "content": [{"type": "image_url"}]}]))


def test_what_the_template_refuses_is_bad_input(chat):
    with pytest.raises(BadInputError, match="nobody may not speak"):
        chat.encode(GenerateRequest(messages=[{"role": "nobody", "content": "x"}]))


def test_without_a_template_only_raw_prompts_work():
    tokenizer = make_tokenizer(template=False)
    chat = ChatFormat(tokenizer)
    assert not chat.has_template
    with pytest.raises(BadInputError, match="no chat template"):
        chat.encode(GenerateRequest(messages=[{"role": "user", "content": "x"}]))
    assert chat.encode(GenerateRequest(prompt="hello")).token_ids == ids_of(tokenizer, "hello")


@pytest.mark.parametrize("request_", [GenerateRequest(), GenerateRequest(prompt="a", prompt_token_ids=[1])])
def test_exactly_one_prompt_is_needed(chat, request_):
    with pytest.raises(BadInputError, match="exactly one"):
        chat.encode(request_)


def test_a_continued_conversation_keeps_the_sampled_tokens(chat, tokenizer):
    first = [{"role": "user", "content": "hello"}]
    prompt = chat.encode(GenerateRequest(messages=first))
    unusual = [ids_of(tokenizer, c)[0] for c in "world"] + [tokenizer.eos_token_id]
    assert unusual != ids_of(tokenizer, "world<|im_end|>"), "the test needs a tokenisation that is not canonical"
    chat.remember(prompt, unusual)
    turns = [*first, {"role": "assistant", "content": "world"}, {"role": "user", "content": "count"}]
    second = chat.encode(GenerateRequest(messages=turns))
    assert second.token_ids[: len(prompt.token_ids) + len(unusual)] == prompt.token_ids + unusual
    assert tokenizer.decode(second.token_ids) == second.text
    other = chat.encode(GenerateRequest(messages=[*turns[:1], {"role": "assistant", "content": "other"}, turns[2]]))
    assert other.token_ids == ids_of(tokenizer, other.text)


def test_an_unfinished_response_is_not_remembered(chat, tokenizer):
    first = [{"role": "user", "content": "hello"}]
    prompt = chat.encode(GenerateRequest(messages=first))
    chat.remember(prompt, [ids_of(tokenizer, c)[0] for c in "world"])
    chat.remember(prompt, [])
    again = chat.encode(GenerateRequest(messages=[*first, {"role": "assistant", "content": "world"}]))
    assert again.token_ids == ids_of(tokenizer, again.text)


def test_memories_are_bounded(chat, tokenizer, monkeypatch):
    monkeypatch.setattr("agentlightning.learner.chat._RENDERED_MAX", 2)
    monkeypatch.setattr("agentlightning.learner.chat._CONVERSATIONS_MAX", 2)
    for word in ("a", "b", "c", "d"):
        prompt = chat.encode(GenerateRequest(messages=[{"role": "user", "content": word}]))
        chat.remember(prompt, [tokenizer.eos_token_id])
    assert len(chat._rendered) == 2
    assert len(chat._conversations) == 2


def test_a_tokenizer_without_an_end_token_remembers_nothing():
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    chat = ChatFormat(tokenizer)
    prompt = chat.encode(GenerateRequest(messages=[{"role": "user", "content": "a"}]))
    chat.remember(prompt, [2])
    assert not chat._conversations


def test_decode_leaves_out_special_tokens(chat, tokenizer):
    assert chat.decode([1, *ids_of(tokenizer, "hello"), 2]) == "hello"


def test_detokenizer_waits_for_whole_characters(chat, tokenizer):
    text = "how many ☕ rows 你好"
    detokenizer = Detokenizer(chat)
    seen = [detokenizer.push([t]) for t in ids_of(tokenizer, text)]
    assert all("\ufffd" not in s for s in seen)
    assert all(text.startswith(s) for s in seen)
    assert detokenizer.flush() == text


def test_detokenizer_shows_a_broken_character_at_the_end(chat, tokenizer):
    detokenizer = Detokenizer(chat)
    assert detokenizer.push(ids_of(tokenizer, "hello☕")[:-1]) == ""
    assert detokenizer.flush().startswith("hello\ufffd")


def test_tool_calls_are_parsed():
    text = 'Let me see.\n<tool_call>\n{"name": "run_sql", "arguments": {"query": "é"}}\n</tool_call>'
    content, calls = HERMES.parse(text)
    assert content == "Let me see."
    assert [c["function"] for c in calls] == [{"name": "run_sql", "arguments": '{"query": "é"}'}]
    assert calls[0]["type"] == "function"
    assert calls[0]["id"]


def test_several_tool_calls_an_unclosed_one_and_string_arguments():
    text = '<tool_call>{"name": "a"}</tool_call><tool_call>{"name": "b", "arguments": "{}"}'
    content, calls = HERMES.parse(text)
    assert content == ""
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in calls] == [("a", "{}"), ("b", "{}")]
    assert calls[0]["id"] != calls[1]["id"]


@pytest.mark.parametrize(
    "block", ['{"name": "a", "arguments": {', "no json", '["a"]', '{"name": 3}', '{"arguments": {}}']
)
def test_malformed_tool_calls_stay_visible(block):
    text = f"before <tool_call>{block}</tool_call> after "
    assert HERMES.parse(text) == (text, [])


def test_a_good_call_beside_a_malformed_one():
    content, calls = HERMES.parse('<tool_call>bad</tool_call><tool_call>{"name": "a"}</tool_call>')
    assert content == "<tool_call>bad</tool_call>"
    assert len(calls) == 1


def test_safe_text_holds_back_what_may_become_a_stop_or_a_tool_call():
    assert safe_text("count EN", ["END"], None) == "count "
    assert safe_text("count ENX", ["END"], None) == "count ENX"
    assert safe_text("see <tool", [], HERMES) == "see"
    assert safe_text("see <tool_call>{", [], HERMES) == "see"
    assert safe_text("see <tool", [], None) == "see <tool"


def test_cut_at_stop_takes_the_first():
    assert cut_at_stop("one two three", ["three", "two"]) == "one "
    assert cut_at_stop("one", ["two"]) is None

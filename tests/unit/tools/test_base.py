"""The contract of a tool: schema, permission, deadline, and errors that a model can read."""

import asyncio

import pytest
from pydantic import Field

from agentlightning.kit.errors import BadInputError
from agentlightning.tools import Tool, ToolArguments, ToolContext, ToolResult
from agentlightning.tools.base import MAX_TEXT_CHARS, cut

ALLOWED = ToolContext(permissions=frozenset({"agent:*"}))


class Echo(Tool):
    class Arguments(ToolArguments):
        text: str = Field(description="What to say")
        times: int = Field(default=1, ge=1, le=10**6)
        wait_s: float = 0
        fail: bool = False

    name = "mcp:some.server:echo"
    description = "Says it again."

    async def call(self, arguments, context):
        assert isinstance(arguments, self.Arguments)
        if arguments.fail:
            raise BadInputError("No.", hint="Ask otherwise.")
        await asyncio.sleep(arguments.wait_s)
        return ToolResult(arguments.text * arguments.times, {"times": arguments.times})


async def test_a_call_gives_text_and_data():
    result = await Echo().run('{"text": "hi", "times": 2}', ALLOWED)
    assert (result.text, result.data, result.is_error) == ("hihi", {"times": 2}, False)


async def test_the_definition_is_an_openai_function():
    function = Echo().definition()["function"]
    assert function["name"] == "mcp_some_server_echo"
    assert function["parameters"]["required"] == ["text"]
    assert function["parameters"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[1]", "JSON object"),
        ("null", "JSON object"),
        ("", "text: Field required"),
        ({"text": "a", "tmies": 2}, "tmies: Extra inputs"),
        ({"text": 3}, "text:"),
        ({"text": "a", "times": 0}, "times:"),
        ('{"text": "' + "a" * 5_000_000 + '"}', "the most"),
    ],
)
async def test_what_a_model_gets_wrong_is_told_to_it(raw, said):
    result = await Echo().run(raw, ALLOWED)
    assert result.is_error
    assert result.text.startswith("Error TOOL_FAILED: ")
    assert said in result.text


async def test_an_error_keeps_its_code_and_hint():
    result = await Echo().run({"text": "", "fail": True}, ALLOWED)
    assert result.text == "Error BAD_INPUT: No. Ask otherwise."
    assert result.data["hint"] == "Ask otherwise."


async def test_it_ends_in_time():
    result = await Echo().run({"text": "", "wait_s": 30}, ToolContext(permissions=frozenset({"*"}), deadline_s=0.05))
    assert result.data["code"] == "TOOL_TIMEOUT"


async def test_a_timeout_of_the_tools_own_is_not_taken_for_the_deadline():
    class Broken(Echo):
        async def call(self, arguments, context):
            raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await Broken().run({"text": ""}, ALLOWED)


@pytest.mark.parametrize("granted", [(), ("agent:read",), ("knowledge:*",), ("agent",), ("agent:assignment",)])
async def test_without_the_permission_nothing_runs(granted):
    result = await Echo().run({"text": "hi"}, ToolContext(permissions=frozenset(granted)))
    assert result.data["code"] == "TOOL_DENIED"


async def test_a_tool_that_is_off_says_why():
    tool = Echo()
    tool.unavailable = "no key. Set ECHO_KEY."
    result = await tool.run({"text": "hi"}, ALLOWED)
    assert result.data["code"] == "TOOL_UNAVAILABLE"
    assert "Set ECHO_KEY." in result.text
    await tool.close()


async def test_a_long_text_is_cut_in_the_middle():
    result = await Echo().run({"text": "ab", "times": 10**6}, ALLOWED)
    assert len(result.text) <= MAX_TEXT_CHARS
    assert result.text.endswith("b")
    assert "characters left out" in result.text
    assert cut("a" * 100, 10) == "\n[... 90 characters left out ...]\n"

"""The research loop with real tools, in front of a scripted model server."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from agentlightning.integrations.tongyi.agent import ResearchAgent
from agentlightning.integrations.tongyi.research import Research
from agentlightning.integrations.tongyi.tools import Toolset
from agentlightning.kit.errors import ConfigError
from agentlightning.schemas import LLM, PromptTemplate
from agentlightning.tools import ToolSettings, toolbox
from tests.scripted_researcher import NOTES, PLAN, ScriptedResearcher
from tests.unit.tools.sites import reply, site

QUESTION = "How old is the oldest dragon?"


def light() -> Toolset:
    """Without Python, whose sandbox takes a moment to be tried out."""
    return Toolset(".", {name: tool for name, tool in toolbox(ToolSettings()).items() if name != "python"})


async def research(server: ScriptedResearcher, toolset: Toolset | None = None, **options: Any) -> Research:
    with server:
        agent = ResearchAgent(toolset or light(), **options)
        return await agent.research(QUESTION, LLM(endpoint=server.url, model="scripted"))


async def test_it_plans_searches_reads_verifies_and_cites() -> None:
    server = ScriptedResearcher()
    found = await research(server)
    assert found.error == ""
    assert found.plan == ["Search the notes with Grep", "Read what was found"]
    assert found.tools_used == ["Grep", "Read"]
    assert found.read_locators == {"notes/dragons.md"}
    assert found.answer == (
        "The dragon asked about is Smaug, 171 years old, and dragons sleep on gold [1].\n\n"
        "Sources:\n[1] notes/dragons.md"
    )
    assert (found.flagged, found.unsupported, found.notes) == ([], [], [])
    assert found.model_calls == server.total == 5
    loop = server.bodies[1]
    assert [tool["function"]["name"] for tool in loop["tools"]][:3] == ["Read", "Grep", "Glob"]
    assert "1. Search the notes with Grep" in loop["messages"][0]["content"]
    shown = server.bodies[3]["messages"][-1]["content"]
    assert shown.startswith("[S2] notes/dragons.md\n1\t# Dragons")
    assert "171 years old" in shown


async def test_what_was_never_read_is_taken_out_of_the_answer() -> None:
    draft = (
        "Smaug is 171 [S2]. A search listed it [S1]. Others say so [S7][S2, S9], see https://example.com/d. And "
        "[here](https://example.org/x), doi:10.1000/abc.\n\nReferences:\n- https://invented.example"
    )
    found = await research(ScriptedResearcher(answer=draft))
    assert found.flagged == [
        "[S1]",
        "[S7]",
        "[S9]",
        "https://example.com/d",
        "https://example.org/x",
        "doi:10.1000/abc",
    ]
    assert [source.locator for source in found.cited] == ["notes/dragons.md"]
    assert "example" not in found.answer
    assert "10.1000" not in found.answer
    assert found.answer.startswith("Smaug is 171 [1]. A search listed it. Others say so [1], see (unread")


async def test_what_the_sources_do_not_say_is_taken_out_by_the_verification() -> None:
    found = await research(ScriptedResearcher(answer="Smaug is 171 [S2]. It is MADE UP that he is blue [S2]"))
    assert found.unsupported == ["It is MADE UP that he is blue [S2]"]
    assert found.answer.startswith("Smaug is 171 [1]")
    assert "blue" not in found.answer


@pytest.mark.parametrize("garbage", ["not JSON", "[1, 2]", '{"unsupported": "x", "answer": 7}', '{"broken": '])
async def test_a_verification_that_cannot_be_read_leaves_the_draft(garbage: str) -> None:
    def override(body: dict[str, Any]) -> dict[str, Any] | None:
        return {"content": garbage} if "Check a draft" in body["messages"][0]["content"] else None

    found = await research(ScriptedResearcher(override=override))
    assert found.is_success
    assert "[1] notes/dragons.md" in found.answer
    assert bool(found.notes) == (not garbage.startswith('{"unsupported'))


async def test_calls_that_make_no_sense_come_back_as_text_and_the_work_goes_on() -> None:
    steps: list[Any] = [
        [("Fly", {"to": "moon"}), ("Read", '{"file_path": '), ("Read", {"path": "x"}), ("Grep", {"pattern": ""})],
        [("Read", {"file_path": "../secret"}), ("Read", {"file_path": ".env"}), ("Read", {"file_path": "none.md"})],
        [("Read", {"file_path": "notes/dragons.md", "offset": 99}), ("WebSearch", {"query": "dragons"})],
        [("Read", {"file_path": "notes/dragons.md", "limit": 2})],
    ]
    server = ScriptedResearcher(steps, "Nothing but this: gold [S1].")
    found = await research(server)
    assert [call.is_error for call in found.calls] == [True] * 9 + [False]
    assert found.is_success
    assert found.cited[0].locator == "notes/dragons.md"
    told = [m["content"] for m in server.bodies[-2]["messages"] if m["role"] == "tool"]
    assert told[0].startswith("Error: There is no tool 'Fly'. There are: Read, Grep, Glob")
    assert "no JSON" in told[1]
    assert "file_path: Field required" in told[2]
    assert "hidden or leads out" in told[5]
    assert "SECRET" not in "".join(told)
    assert "has 4 lines" in told[7]
    assert "no search engine" in told[8]
    assert "2 more lines; go on with offset 3" in told[9]


async def test_hidden_files_are_neither_listed_nor_searched(place: Path) -> None:
    tools = Toolset(place, {})
    listed = await tools.use("Glob", {"pattern": "*"})
    assert listed.text == f"notes/dragons.md ({len(NOTES)} bytes)"
    assert (await tools.use("Glob", {"pattern": "**/*.md"})).text == listed.text
    assert (await tools.use("Glob", {"pattern": "*.py"})).text == "No file matches."
    (place / "binary.bin").write_bytes(b"dragon\0dragon")
    hits = await tools.use("Grep", {"pattern": "dragon"})
    assert hits.text.splitlines()[0] == "notes/dragons.md:1: # Dragons"
    assert "SECRET" not in hits.text
    assert "binary" not in hits.text
    assert (await tools.use("Grep", {"pattern": r"\d{3} years", "limit": 1})).text.startswith("notes/dragons.md:4:")
    assert (await tools.use("Grep", {"pattern": r"dragon", "limit": 1})).text.endswith("[there are more]")
    assert (await tools.use("Grep", {"pattern": r"(("})).is_error
    assert (await tools.use("Read", {"file_path": "binary.bin"})).is_error


async def test_it_ends_after_so_many_steps_with_an_answer() -> None:
    steps = [[("Grep", {"pattern": "dragon"})]] * 50
    server = ScriptedResearcher(steps, "That is all.")
    found = await research(server, max_steps=4)
    assert found.answer == "That is all."
    assert found.notes == ["The last step was reached."]
    assert len(found.calls) == 3
    assert "tools" not in server.bodies[-1]
    assert server.bodies[-1]["messages"][-1]["content"].startswith("This was the last call")


async def test_it_ends_when_its_time_is_over() -> None:
    found = await research(ScriptedResearcher(delay_s=0.4), timeout_s=0.6)
    assert found.error == "The query took longer than 0.6 s."
    assert not found.is_outage
    assert not found.is_success


@pytest.mark.parametrize("raw", [{}, {"choices": []}, {"choices": [{"message": None}]}, "what?", [1]])
async def test_a_server_that_answers_garbage_is_an_outage(raw: Any) -> None:
    found = await research(ScriptedResearcher(override=lambda body: {"raw": raw}))
    assert found.is_outage
    assert not found.is_success
    assert "no chat completion" in found.error or "does not answer" in found.error


async def test_a_model_that_says_nothing_has_a_second_chance_and_then_no_answer() -> None:
    server = ScriptedResearcher([], "")
    found = await research(server)
    assert found.error == "The model gave no answer."
    assert not found.is_outage
    assert "The first answer was empty." in found.notes
    assert server.bodies[-1]["messages"][-1]["content"].startswith("Your answer was empty")


async def test_a_plan_that_is_empty_is_replaced() -> None:
    def override(body: dict[str, Any]) -> dict[str, Any] | None:
        return {"content": " \n "} if "You plan" in body["messages"][0]["content"] else None

    found = await research(ScriptedResearcher(override=override))
    assert found.is_success
    assert found.plan == ["Search for sources, read them, and answer."]
    assert "The model wrote no plan." in found.notes


async def test_a_server_that_is_away_is_said_with_the_next_step() -> None:
    agent = ResearchAgent(light(), timeout_s=30)
    found = await agent.research(QUESTION, LLM(endpoint="http://127.0.0.1:9/v1", model="m"))
    assert found.is_outage
    assert "Check --base-url" in found.error


async def test_a_prompt_with_an_unknown_placeholder_is_refused() -> None:
    with ScriptedResearcher() as server:
        llm = LLM(endpoint=server.url, model="m")
        with pytest.raises(ConfigError, match=r"plan_prompt cannot be filled: KeyError 'topic'"):
            await ResearchAgent(light()).research("q", llm, {"plan_prompt": PromptTemplate(template="{topic}")})


async def test_the_web_is_searched_and_read_through_the_guarded_tools() -> None:
    page = "<html><head><title>Ages</title></head><body><article><p>Smaug is 171 years old, they say, and he "
    page += "has slept on his gold for a long time in the mountain.</p></article></body></html>"
    async with site() as web:
        hits = f'{{"results": [{{"title": "Ages", "url": "{web.url}/ages", "content": "about dragons"}}]}}'
        web.answers = {
            "/search": reply(hits, content_type="application/json"),
            "/ages": reply(page, content_type="text/html"),
        }
        settings = ToolSettings.model_validate(
            {"search": {"backend": "searxng", "url": web.url}, "web": {"private_hosts": [web.trusted]}}
        )
        steps: list[Any] = [
            [("WebSearch", {"query": "dragon ages"})],
            [("WebFetch", {"url": f"{web.url}/ages"}), ("WebFetch", {"url": "http://127.0.0.1:1/"})],
            [("Python", {"code": "print(171 * 2)"})],
        ]
        answer = f"171 [S2], see {web.url}/ages. Doubled 342 [S3]. Listed at {web.url}/search [S1]."
        found = await research(ScriptedResearcher(steps, answer), Toolset(".", toolbox(settings)))
    assert [call.is_error for call in found.calls] == [False, False, True, False]
    assert [source.kind for source in found.sources] == ["search", "web", "python"]
    assert found.sources[2].text.strip() == "342"
    assert found.flagged == ["[S1]", f"{web.url}/search"]
    assert found.answer.endswith(f"Sources:\n[1] {web.url}/ages\n[2] Python: print(171 * 2)")


async def test_python_sees_only_the_files_it_names_and_changes_none(place: Path) -> None:
    tools = Toolset(place, toolbox(ToolSettings()))
    await tools.start()
    if "Python" in tools.unavailable:
        pytest.skip(tools.unavailable["Python"])
    code = "import os; print(sorted(os.listdir('.')), open('notes/dragons.md').read()[:9]); open('new', 'w').write('x')"
    used = await tools.use("Python", {"code": code, "files": ["notes/dragons.md"]})
    assert "# Dragons" in used.text
    assert ".env" not in used.text
    assert sorted(os.listdir(place)) == [".env", "notes"]
    hidden = await tools.use("Python", {"code": "1", "files": [".env"]})
    assert hidden.is_error
    assert "hidden" in hidden.text
    await tools.close()


async def test_many_at_once_do_not_mix() -> None:
    with ScriptedResearcher() as server:
        agent = ResearchAgent(light())
        llm = LLM(endpoint=server.url, model="m")
        found = await asyncio.gather(*(agent.research(f"{QUESTION} {n}", llm) for n in range(6)))
    assert all(one.tools_used == ["Grep", "Read"] and one.is_success for one in found)
    assert PLAN.splitlines()[0].endswith(found[0].plan[0])

"""The tools that fetch: search, browse, http. The sites are stand-ins that answer as the real ones do."""

import json

import pytest

from agentlightning.tools import ToolContext, ToolSettings, toolbox
from agentlightning.tools.settings import HttpSecret, HttpSettings, SearchSettings, WebSettings, host_matches
from tests.unit.tools.sites import moved, reply, site

CONTEXT = ToolContext(permissions=frozenset({"agent:assign"}))

# The answers' shapes are those of the engines' documentation.
SEARXNG = {
    "query": "ada",
    "number_of_results": 2,
    "results": [
        {"url": "https://a.example/", "title": "Ada", "content": "A  snippet\n", "engine": "x", "score": 1.0},
        {"url": "https://b.example/", "title": None, "content": None, "engine": "y"},
    ],
    "answers": [],
    "unresponsive_engines": [],
}
BRAVE = {
    "type": "search",
    "query": {"original": "ada"},
    "web": {
        "type": "search",
        "results": [
            {"title": "Ada", "url": "https://a.example/", "description": "A snippet"},
            {"title": "B", "url": "https://b.example/", "description": ""},
        ],
    },
}
TAVILY = {
    "query": "ada",
    "answer": None,
    "results": [
        {"title": "Ada", "url": "https://a.example/", "content": "A snippet", "score": 0.9},
        {"title": "B", "url": "https://b.example/", "content": "", "score": 0.1},
    ],
    "response_time": 0.5,
}


@pytest.fixture
async def here():
    async with site() as made:
        yield made


@pytest.mark.parametrize(("backend", "answer"), [("searxng", SEARXNG), ("brave", BRAVE), ("tavily", TAVILY)])
async def test_searching(here, monkeypatch, backend, answer):
    monkeypatch.setenv("BRAVE_API_KEY", "brave-key")
    monkeypatch.setenv("TAVILY_API_KEY", "tavily-key")
    url = here.url + ("" if backend == "searxng" else "/api")
    here.answers["/search" if backend == "searxng" else "/api"] = reply(json.dumps(answer))
    settings = ToolSettings(search=SearchSettings(backend=backend, url=url))
    tool = toolbox(settings)["web_search"]
    assert tool.unavailable == ""
    result = await tool.run({"query": "ada & co", "count": 2}, CONTEXT)
    assert not result.is_error, result.text
    assert result.data[0] == {"title": "Ada", "url": "https://a.example/", "snippet": "A snippet"}
    assert result.text.startswith("1. Ada\n   https://a.example/\n   A snippet\n2. ")
    asked = here.seen[0]
    if backend == "tavily":
        assert json.loads(asked.body) == {"query": "ada & co", "max_results": 2}
        assert asked.headers["authorization"] == "Bearer tavily-key"
    else:
        assert "q=ada+%26+co" in asked.target
    if backend == "brave":
        assert asked.headers["x-subscription-token"] == "brave-key"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (reply("no", "429 Too Many Requests"), "Try again later"),
        (reply("no", "401 Unauthorized"), "key"),
        (reply("<html>"), "cannot be read"),
        (reply("[1]"), "cannot be read"),
        (reply('{"results": [{"title": "no url"}]}'), "cannot be read"),
        (moved("/elsewhere"), "redirects"),
    ],
)
async def test_an_engine_that_fails_is_told(here, answer, said):
    here.answers["/search"] = answer
    tool = toolbox(ToolSettings(search=SearchSettings(backend="searxng", url=here.url)))["web_search"]
    result = await tool.run({"query": "x"}, CONTEXT)
    assert result.is_error
    assert said in result.text


def test_search_without_an_engine_or_key_is_off(monkeypatch):
    for name in ("BRAVE_API_KEY", "MY_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert "SEARXNG_URL" in toolbox(ToolSettings())["web_search"].unavailable
    settings = ToolSettings(search=SearchSettings(backend="brave", key_env="MY_KEY"))
    assert "Set MY_KEY" in toolbox(settings)["web_search"].unavailable


PAGE = """<!doctype html><html><head><title> A  page </title><script>evil()</script><style>x{}</style></head><body>
<nav><a href="/menu">Menu</a></nav><article><h1>On lightning</h1>
<p>Lightning is a giant spark of electricity in the atmosphere between clouds, the air, or the ground. In the initial
stages of development, air acts as an insulator between the positive and negative charges in the cloud.</p>
<p>When the opposite charges build up enough, this insulating capacity of the air breaks down and there is a rapid
discharge of electricity that we know as lightning. <a href="next.html#x">Read on</a>
<a href="javascript:evil()">bad</a><a href="http://[bad">worse</a></p>
<table><tr><td>cell one</td><td>cell two</td></tr></table></article></body></html>"""


def browser(here, **more):
    return toolbox(ToolSettings(web=WebSettings(private_hosts=(here.trusted,), **more)))["web_browse"]


async def test_browsing(here):
    pytest.importorskip("trafilatura")
    here.answers["/page"] = moved("/dir/page.html")
    here.answers["/dir/page.html"] = reply(PAGE, content_type="text/html; charset=utf-8")
    result = await browser(here).run({"url": here.url + "/page", "links": True}, CONTEXT)
    assert not result.is_error, result.text
    assert result.data["title"] == "A page"
    assert "giant spark of electricity" in result.text
    assert "evil()" not in result.text
    assert result.data["url"] == here.url + "/dir/page.html"
    assert {one["url"] for one in result.data["links"]} == {here.url + "/menu", here.url + "/dir/next.html"}
    part = await browser(here).run({"url": here.url + "/page", "chars": 100, "start": 50}, CONTEXT)
    assert len(part.data["text"]) == 100
    assert "start=150" in part.text


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (reply("plain", content_type="text/plain"), "plain"),
        (reply('{"a": 1}', content_type="application/json"), '{"a": 1}'),
        (reply("guessed"), "guessed"),
        (reply("<html><body>short</body></html>"), "short"),
        (reply("", content_type="text/html"), "(no text)"),
        (reply("<html><body><p>" + "<b>" * 20_000 + "deep", content_type="text/html"), ""),
        (reply(b"\xff\xfe<html>\x00", content_type="text/html"), ""),
        (reply(b"\0\1\2"), "nothing to read"),
        (reply(b"x", content_type="image/png"), "image/png is nothing to read"),
        (reply(b"%PDF-1.7 broken", content_type="application/pdf"), "PDF cannot be read"),
        (reply("x", "404 Not Found"), "answered 404"),
    ],
)
async def test_pages_of_all_kinds(here, answer, said):
    pytest.importorskip("trafilatura")
    here.answers["/"] = answer
    assert said in (await browser(here).run({"url": here.url + "/"}, CONTEXT)).text


async def test_a_pdf(here):
    pypdf = pytest.importorskip("pypdf")
    import io

    writer = pypdf.PdfWriter()
    writer.add_blank_page(100, 100)
    out = io.BytesIO()
    writer.write(out)
    here.answers["/"] = reply(out.getvalue(), content_type="application/pdf")
    assert not (await browser(here).run({"url": here.url + "/"}, CONTEXT)).is_error


async def test_browsing_stays_outside_and_within_the_list(here):
    tool = toolbox(ToolSettings())["web_browse"]
    result = await tool.run({"url": here.url + "/"}, CONTEXT)
    assert result.data["code"] == "WEB_DENIED"
    listed = browser(here, allow_hosts=("*.example.com",))
    assert "not among the sites" in (await listed.run({"url": here.url + "/"}, CONTEXT)).text
    assert here.seen == []


def caller(here, monkeypatch, methods=("GET", "POST"), **more):
    monkeypatch.setenv("API_KEY", "canary-key")
    settings = ToolSettings(
        web=WebSettings(private_hosts=(here.trusted,)),
        http=HttpSettings(
            hosts={here.trusted: methods},
            secrets=(HttpSecret(host=here.trusted, header="Authorization", value_env="API_KEY", prefix="Bearer "),),
        ),
        **more,
    )
    return toolbox(settings)["http"]


async def test_calling_with_a_key_that_nobody_sees(here, monkeypatch):
    here.answers["/echo"] = lambda seen: reply(
        json.dumps(seen.headers), content_type="application/json", etag="canary-key"
    )
    tool = caller(here, monkeypatch)
    result = await tool.run({"url": here.url + "/echo?x=1", "method": "POST", "body": {"a": [1]}}, CONTEXT)
    assert not result.is_error, result.text
    assert here.seen[0].headers["authorization"] == "Bearer canary-key"
    assert json.loads(here.seen[0].body) == {"a": [1]}
    assert here.seen[0].headers["content-type"] == "application/json"
    assert "canary-key" not in result.text + json.dumps(result.data) + tool.description + repr(tool.definition())
    assert "Bearer [hidden]" in result.text


async def test_a29_a_key_goes_to_its_host_only(here, monkeypatch):
    async with site() as other:
        here.answers["/"] = moved(other.url + "/")
        other.answers["/"] = reply("hi")
        monkeypatch.setenv("API_KEY", "canary-key")
        settings = ToolSettings(
            web=WebSettings(private_hosts=(here.trusted, other.trusted)),
            http=HttpSettings(
                hosts={here.trusted: ("GET",), other.trusted: ("GET",)},
                secrets=(HttpSecret(host=here.trusted, header="X-Key", value_env="API_KEY"),),
            ),
        )
        tool = toolbox(settings)["http"]
        assert not (await tool.run({"url": here.url + "/"}, CONTEXT)).is_error
        await tool.run({"url": other.url + "/"}, CONTEXT)
        assert here.seen[0].headers["x-key"] == "canary-key"
        assert all("x-key" not in seen.headers for seen in other.seen)
        assert len(other.seen) == 2


async def test_a_redirect_leaves_the_allow_list_no_more_than_a_call(here, monkeypatch):
    async with site() as other:
        here.answers["/"] = moved(other.url + "/")
        tool = caller(here, monkeypatch)
        result = await tool.run({"url": here.url + "/"}, CONTEXT)
        assert "not among the hosts" in result.text
        assert other.seen == []


@pytest.mark.parametrize("text", ["os.environ/API_KEY", "${API_KEY}", "{{API_KEY}}", "env:API_KEY"])
async def test_a32_references_to_credentials_are_text(here, monkeypatch, text):
    here.answers["/"] = reply("ok")
    tool = caller(here, monkeypatch)
    await tool.run({"url": here.url + "/", "method": "POST", "headers": {"X-Try": text}, "body": text}, CONTEXT)
    assert here.seen[0].headers["x-try"] == text
    assert here.seen[0].body.decode() == text


async def test_methods_are_allowed_per_host(here, monkeypatch):
    tool = caller(here, monkeypatch, methods=("GET",))
    assert "DELETE may not be sent" in (await tool.run({"url": here.url + "/", "method": "DELETE"}, CONTEXT)).text
    assert "not among the hosts" in (await tool.run({"url": "http://1.1.1.1/"}, CONTEXT)).text
    assert (await tool.run({"url": "file:///etc/passwd"}, CONTEXT)).data["code"] == "WEB_DENIED"
    assert (await tool.run({"url": "http://[bad"}, CONTEXT)).data["code"] == "WEB_DENIED"
    missing = await tool.run({"url": here.url + "/none"}, CONTEXT)
    assert missing.is_error
    assert "Status: 404" in missing.text


def test_http_without_hosts_or_keys_is_off(monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    assert "[http.hosts]" in toolbox(ToolSettings())["http"].unavailable
    secret = HttpSecret(host="a.example", header="X", value_env="NO_KEY")
    settings = ToolSettings(http=HttpSettings(hosts={"a.example": ("GET",)}, secrets=(secret,)))
    assert "Set NO_KEY" in toolbox(settings)["http"].unavailable


@pytest.mark.parametrize(
    ("pattern", "host", "port", "expected"),
    [
        ("a.example", "a.example", 443, True),
        ("a.example", "A.Example.", 80, True),
        ("a.example", "b.a.example", 80, False),
        ("*.example", "a.example", 80, True),
        ("*.example", "example", 80, False),
        ("*.example", "evilexample", 80, False),
        ("a.example:8080", "a.example", 8080, True),
        ("a.example:8080", "a.example", 80, False),
        ("*", "anything", 1, True),
        ("[::1]:80", "::1", 80, True),
    ],
)
def test_host_patterns(pattern, host, port, expected):
    assert host_matches(pattern, host, port) is expected

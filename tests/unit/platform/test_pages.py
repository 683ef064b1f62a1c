"""A35: what models and users say stays text wherever a browser shows it: answers are JSON, and the one page is escaped.

The browser is a real one, where one is installed; the headers are looked at anyway.
"""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from agentlightning.platform.api.docs import docs_page
from agentlightning.platform.auth import permissions
from agentlightning.platform.middleware import SECURITY_HEADERS
from tests.unit.platform.browser import CHROMIUM, browser
from tests.unit.platform.models import scripted_server, served
from tests.unit.platform.site import Site, settings_for
from tests.unit.platform.tasks.things import Caller, models, said

HOSTILE = (
    "# Title\n[link](javascript:window.pwned=1) ![](x)\n</code></td></pre>'\"><script>window.pwned=1</script>"
    "<svg onload='window.pwned=1'><script>window.pwned=1</script></svg><img src=x onerror='window.pwned=1'>"
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe><style>body{display:none}</style>"
    "<link rel=stylesheet href=/openapi.json><meta http-equiv=refresh content='0;url=javascript:window.pwned=1'>"
)
MADE = "document.querySelectorAll('svg,img,iframe,script,style,h1 ~ h1,a[href^=javascript]').length"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def raw_page(_: Request) -> HTMLResponse:
    return HTMLResponse(f"<!doctype html><title>raw</title>{HOSTILE}")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A platform that knows hostile texts, and has a page that somebody forgot to escape."""
    home: Path = tmp_path_factory.mktemp("home")
    table = {**permissions.TABLE, ("GET", "/forgotten"): "public"}
    with scripted_server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(permissions, "TABLE", table)

        def extend(app: Any) -> None:
            app.add_route("/forgotten", raw_page, methods=["GET"])

        made = Site(settings_for(home, default_model="m"), extend, models(server)).start()
        server.script[:] = [said(HOSTILE)]
        yield made
        made.stop()


@pytest.fixture(scope="module")
def hostile(site):
    """Somebody with hostile texts, and where they are shown."""
    admin = Caller(site, "admin")
    done = admin.until(admin.assign(HOSTILE))
    assert done["result"]["output"] == HOSTILE
    admin.post(f"/api/v2/tasks/{done['task_id']}/feedback", {"score": 1.0, "comment": HOSTILE})
    item = admin.post("/api/v2/knowledge", {"title": "<svg onload='window.pwned=1'>", "content": HOSTILE})
    assert item.status_code == 201, item.text
    task = f"/api/v2/tasks/{done['task_id']}"
    found = [task, f"{task}/result", f"{task}/trace", f"/api/v2/knowledge/{item.json()['data']['id']}"]
    found += ["/api/v2/knowledge/search?query=Title", f"/api/v1/tasks/{done['task_id']}", "/api/v2/tasks"]
    return admin, [*found, "/api/v2/agents/" + quote("<svg onload='window.pwned=1'>")]


def described(site) -> str:
    """The page of an API whose every word is hostile."""
    operation = {
        "summary": HOSTILE,
        "x-permission": HOSTILE,
        "parameters": [{"in": "query", "name": HOSTILE}],
        "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Odd"}}}},
    }
    odd = {"properties": {HOSTILE: {"type": HOSTILE}, "b": {"enum": [HOSTILE]}}, "required": [HOSTILE]}
    about = {"title": HOSTILE, "description": HOSTILE}
    return docs_page(
        {"info": about, "paths": {f"/{HOSTILE}": {"get": operation}}, "components": {"schemas": {"Odd": odd}}}
    )


def test_a35_every_answer_says_that_it_is_no_page(site, hostile):
    caller, paths = hostile
    for path in paths:
        answer = caller.get(path)
        assert "window.pwned" in answer.text, path
        assert answer.headers["content-type"] == "application/json", path
        for name, value in SECURITY_HEADERS.items():
            assert answer.headers[name] == value
    assert SECURITY_HEADERS["X-Content-Type-Options"] == "nosniff"
    assert "unsafe" not in SECURITY_HEADERS["Content-Security-Policy"]
    with site.client.stream("GET", "/api/v2/events", headers=caller.headers) as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        assert events.headers["x-content-type-options"] == "nosniff"
    page = site.client.get("/docs")
    assert page.headers["content-security-policy"] == SECURITY_HEADERS["Content-Security-Policy"]
    escaped = described(site)
    assert "&lt;script&gt;" in escaped
    assert "<script" not in escaped
    assert "<svg" not in escaped


@needs_browser
def test_a35_in_a_browser_nothing_of_it_runs_or_is_drawn(site, hostile):
    caller, paths = hostile
    escaped = described(site)

    async def show(_: Request) -> HTMLResponse:
        return HTMLResponse(escaped)

    routes = [Route("/unprotected", raw_page), Route("/docs", show), Route("/docs/style.css", show)]
    with browser() as chromium, served(Starlette(routes=routes)) as bare:
        chromium.open(f"{bare}/unprotected")
        assert chromium.see("window.pwned") == 1, "the texts would do no harm anywhere: this test tells nothing"
        for path in paths:
            chromium.open(site.url + path, caller.headers)
            assert chromium.see("document.contentType") == "application/json", path
            assert "window.pwned" in chromium.see("document.body.innerText"), path
            assert (chromium.see("window.pwned"), chromium.see(MADE)) == (None, 0), path
        chromium.open(f"{bare}/docs")  # even without our headers
        assert (chromium.see("window.pwned"), chromium.see(MADE)) == (None, 0)
        assert chromium.see("document.body.innerText").count("<script>window.pwned=1</script>") >= 6
        chromium.open(f"{site.url}/docs")
        assert "POST /auth/login" in chromium.see("document.body.innerText")
        assert chromium.see("getComputedStyle(document.querySelector('table')).borderCollapse") == "collapse"
        assert chromium.see(MADE) == 0
        chromium.open(f"{site.url}/forgotten")  # the page is bad, and our headers hold it
        assert chromium.see("document.title") == "raw"
        assert chromium.see("window.pwned") is None

"""The guard's and the router's one search for a route finds what Starlette's own finds."""

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Match, Mount, Route, Router, WebSocketRoute

from agentlightning.platform.routing import Dispatch, Routes


async def endpoint(request):
    return PlainTextResponse("x")


ROUTES = [
    Route("/api/v2/agents/status", endpoint),
    Route("/api/v2/agents/{agent_id}", endpoint, methods=["GET"]),
    Route("/api/v2/agents/{agent_id}", endpoint, methods=["PUT"]),
    Route("/api/v2/agents/{agent_id}/versions/{version:int}", endpoint),
    Route("/a{letter}/x", endpoint),
    Route("/abc/x", endpoint),  # never reached: the one before it takes it
    Route("/", endpoint),
    Route("/files/{path:path}", endpoint),
    WebSocketRoute("/ws/agents", endpoint),
    Mount("/v1", routes=[Route("/models", endpoint)]),
    Route("/v1/{rest:path}", endpoint),
    Route("/one/two/three/four/five/six", endpoint),
]
PATHS = [
    *(
        "/",
        "//",
        "",
        "*",
        "/api/v2/agents/status",
        "/api/v2/agents/7",
        "/api/v2/agents/7/versions/3",
        "/abc/x",
        "/ab/x",
    ),
    *("/api/v2/agents/7/versions/x", "/api/v2/agents/", "/api/v2/agents", "/api//v2/agents/7", "/API/v2/agents/7"),
    *("/files/a/b", "/files/", "/files", "/ws/agents", "/v1/models", "/v1", "/v1x", "/one/two/three/four/five/six"),
    *("/one/two/three/four/five", "/api/v2/agents/7\n", "/{agent_id}", "/a/../v1/models"),
]


def asked(path, method="GET", kind="http"):
    return {"type": kind, "path": path, "method": method, "headers": [], "root_path": ""}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("method", "kind"), [("GET", "http"), ("PUT", "http"), ("HEAD", "http"), ("", "websocket")])
def test_it_finds_what_the_router_finds(path, method, kind):
    expected = next((r for r in ROUTES if r.matches(asked(path, method, kind))[0] is Match.FULL), None)
    assert Routes(ROUTES).find(asked(path, method, kind)) is expected


def test_routes_that_are_added_later_are_found_in_their_place():
    grown = list(ROUTES)
    routes = Routes(grown)
    assert routes.find(asked("/new/x")) is None
    grown.append(Route("/new/{name}", endpoint))
    assert routes.find(asked("/new/x")) is grown[-1]
    assert routes.find({**asked("/proxied/new/x"), "root_path": "/proxied"}) is grown[-1]


async def test_what_was_found_is_called_and_nothing_else_is():
    called = []

    class Note:  # an ASGI app
        async def __call__(self, scope, receive, send):
            called.append((scope["route"].path, scope["path_params"]))

    grown = [Route("/x/{name}", Note())]
    router = Router(routes=grown)
    dispatch = Dispatch(router)
    scope = asked("/x/one")
    Routes(router.routes).find(scope)
    scope["path"] = "/elsewhere"  # what was checked counts
    await dispatch(scope, None, None)
    assert called == [("/x/{name}", {"name": "one"})]
    assert not any(key.startswith("agl.") for key in scope)

    sent = []

    async def send(message):
        sent.append(message)

    await dispatch(asked("/nowhere"), None, send)
    assert (sent[0]["status"], called) == (404, called[:1])

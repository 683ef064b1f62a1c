"""Every route, every role, every kind of bad token. The numbers are those of a list of known attacks."""

import base64
import json
import re
import time
from typing import Any

import httpx
import jwt
import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute

from agentlightning.platform.auth.permissions import (
    AUTHENTICATED,
    BEFORE_PASSWORD_CHANGE,
    LOGIN,
    MOUNTS,
    PUBLIC,
    ROLES,
    TABLE,
    may,
    mount_of,
    permits,
)
from agentlightning.platform.migrations import migrate
from tests.unit.platform.site import Site, bearer, error_code, raw, resigned, settings_for, signing_key

ROUTES = sorted(key for key in TABLE if key[0] != "WEBSOCKET")  # those have tests of their own
PROTECTED = [key for key in ROUTES if TABLE[key] != PUBLIC]


def path_of(route: str) -> str:
    return re.sub(r"\{[a-z_]+\}", "999999", route)


def call(site: Site, method: str, route: str, headers: dict[str, str] | None = None) -> httpx.Response:
    """Without a body: permissions are asked for before the body is looked at."""
    with site.client.stream(method, path_of(route), headers=headers) as answer:
        if "text/event-stream" not in answer.headers.get("content-type", ""):  # that would go on for ever
            answer.read()
        return answer


@pytest.fixture(scope="module")
def tokens(site: Site) -> dict[str, Any]:
    """A login for each role, and one that has been logged out."""
    made: dict[str, Any] = {role: site.login(site.add_user(role)) for role in ROLES}
    made["revoked"] = site.login(site.add_user("admin"))
    assert site.client.post("/auth/logout", headers=bearer(made["revoked"]["access_token"])).status_code == 200
    return made


def encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def bad_tokens(site: Site, made: dict[str, Any]) -> dict[str, str]:
    """All of an admin, so that the role is not what they fail on."""
    good = made["admin"]["access_token"]
    head, body, signature = good.split(".")
    claims = jwt.decode(good, options={"verify_signature": False})
    kid, _ = signing_key(site)
    return {
        "expired": resigned(site, good, exp=int(time.time()) - 1, iat=int(time.time()) - 100),
        "tampered": f"{head}.{encoded({**claims, 'username': 'other'})}.{signature}",
        "cut": good[:-2],
        "revoked": made["revoked"]["access_token"],
        "refresh as access": made["admin"]["refresh_token"],
        "alg none": f"{encoded({'alg': 'none', 'typ': 'JWT', 'kid': kid})}.{body}.",
        "alg None": f"{encoded({'alg': 'None', 'typ': 'JWT', 'kid': kid})}.{body}.{signature}",
        "alg HS512": jwt.encode(claims, signing_key(site)[1] * 2, algorithm="HS512", headers={"kid": kid}),
        "alg RS256 header": f"{encoded({'alg': 'RS256', 'typ': 'JWT', 'kid': kid})}.{body}.{signature}",
        "other secret": resigned(site, good, key="x1" * 32),
        "kid unknown": resigned(site, good, header={"kid": "other"}),
        "kid path": resigned(site, good, key="x" * 32, header={"kid": "../../../../dev/null"}),
        "kid missing": resigned(site, good, header={"kid": None}),
        "issuer": resigned(site, good, iss="somebody-else"),
        "no expiry": resigned(site, good, exp=None),
        "no session": resigned(site, good, sid=None),
        "other session": resigned(site, good, sid="0" * 32),
        "other user": resigned(site, good, user_id="user_999999"),
        "user of another form": resigned(site, good, user_id="1"),
        "user is no number": resigned(site, good, user_id="user_²"),
        "not yet": resigned(site, good, nbf=int(time.time()) + 1000),
        "garbage": "garbage",
        "dots": "..",
        "deep": f"{base64.urlsafe_b64encode(b'[' * 2000).decode()}.{body}.{signature}",
        "long": "a" * 6000,
    }


def test_a1_every_route_of_the_app_is_in_the_table_and_the_other_way_round(site):
    served = {
        (method, route.path)
        for route in site.app.router.routes
        for method in sorted(getattr(route, "methods", {"WEBSOCKET"}) - {"HEAD"})
    }
    mounted = {key for key in served if mount_of(*key) is not None}
    assert served - mounted == set(TABLE)
    assert not mounted & set(TABLE)
    assert [mount for mount in MOUNTS if not any(mount_of(*key) is mount for key in mounted)] == []


@pytest.mark.parametrize(("method", "route"), PROTECTED)
def test_a1_without_a_token_nothing_opens(site, method, route):
    answer = call(site, method, route)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert error_code(answer) == "UNAUTHORIZED"


@pytest.mark.parametrize(("method", "route"), PROTECTED)
def test_a7_a8_no_bad_token_opens_anything(site, tokens, method, route):
    for name, token in bad_tokens(site, tokens).items():
        answer = call(site, method, route, bearer(token))
        assert (name, answer.status_code) == (name, 401)
        assert error_code(answer) == "TOKEN_INVALID"


@pytest.mark.parametrize("scheme", ["Basic YWRtaW46YWRtaW4=", "Bearer", "bearer", "Token x", ""])
def test_a8_other_ways_to_say_nothing(site, scheme):
    assert site.client.get("/auth/profile", headers={"Authorization": scheme}).status_code == 401


@pytest.mark.parametrize("role", sorted(ROLES))
@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_a2_every_role_may_what_the_table_says(site, tokens, role, method, route):
    rule = TABLE[method, route]
    token = tokens[role]["access_token"]
    if route == "/auth/logout":  # which ends the login
        token = site.login(site.add_user(role))["access_token"]
    answer = call(site, method, route, bearer(token))
    allowed = rule in (PUBLIC, AUTHENTICATED, LOGIN) or may(role, None, rule)
    assert (answer.status_code == 403) is not allowed
    assert answer.status_code not in (401, 429, 500)
    if not allowed:
        assert error_code(answer) == "FORBIDDEN"


def test_the_roles_are_the_documented_ones():
    assert ROLES["admin"] == ("*",)
    assert set(ROLES["developer"]) == {"agent:*", "rl:*", "workflow:*", "knowledge:*", "system:read"}
    assert set(ROLES["user"]) == {"agent:read", "agent:assign", "knowledge:read", "workflow:read"}


@pytest.mark.parametrize(
    ("granted", "wanted", "expected"),
    [
        (["*"], "user:write", True),
        (["agent:*"], "agent:assign", True),
        (["agent:*"], "agents:read", False),
        (["agent:read"], "agent:write", False),
        (["agent:*"], "knowledge:read", False),
        ([], "agent:read", False),
    ],
)
def test_what_a_permission_covers(granted, wanted, expected):
    assert permits(granted, wanted) is expected


def test_a_role_that_nobody_knows_may_nothing():
    assert not may("root", None, "agent:read")


def test_a7_the_role_in_the_token_is_not_believed(site):
    token = site.login(site.add_user("user"))["access_token"]
    promoted = resigned(site, token, role="admin", permissions=["*"])  # as if the key were known
    assert call(site, "GET", "/metrics", bearer(promoted)).status_code == 403


def test_a5_tokens_count_in_headers_only_and_once(site, tokens):
    token = tokens["admin"]["access_token"]
    assert site.client.get("/auth/profile", params={"token": token, "access_token": token}).status_code == 401
    assert (
        site.client.get("/auth/profile", headers={"Cookie": f"access_token={token}; token={token}"}).status_code == 401
    )
    assert site.client.get("/auth/profile", headers={"X-API-Key": token}).status_code == 200
    both = {**bearer(token), "X-API-Key": tokens["user"]["access_token"]}
    assert site.client.get("/auth/profile", headers=both).status_code == 401
    twice = [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")]
    assert site.client.get("/auth/profile", headers=twice).status_code == 401


@pytest.mark.parametrize(
    "target",
    [
        "//metrics",
        "/metrics/",
        "/./metrics",
        "/docs/../metrics",
        "/docs/..%2fmetrics",
        "/%2e/metrics",
        "/METRICS",
        "/metrics%00",
        "/metrics;x=1",
        "/docs/style.css/../../metrics",
        "/metrics?x=/docs",
        "/%6detrics",
        "http://localhost/metrics",
        "/docs%3f/../metrics",
    ],
)
def test_a4_other_spellings_of_a_path_open_nothing(site, target):
    answer = raw(site, f"GET {target} HTTP/1.1\nHost: localhost\nConnection: close\n\n")
    assert answer.split(" ", 2)[1] in ("400", "401", "404"), answer[:200]
    assert "http_requests_total" not in answer


@pytest.mark.parametrize(
    "host",
    ["x/docs?", "localhost/docs", "localhost/docs?", "localhost#", "a@localhost", "evil.example", "", "localhost:x"],
)
def test_a3_the_host_header_changes_no_verdict(site, host):
    answer = raw(site, f"GET /metrics HTTP/1.1\nHost: {host}\nConnection: close\n\n")
    assert answer.split(" ", 2)[1] in ("400", "401"), answer[:200]


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override", "X-Method-Override", "X-Original-URL", "X-Rewrite-URL"])
def test_a4_methods_and_paths_are_not_overridden(site, header):
    for value in ("GET", "/docs"):
        assert site.client.get("/metrics", headers={header: value}).status_code == 401


def test_a4_head_is_get(site, tokens):
    assert site.client.head("/docs").status_code == 200
    assert site.client.head("/auth/profile").status_code == 405
    assert site.client.request("PURGE", "/auth/profile").status_code == 405


def test_a_route_that_is_not_in_the_table_is_closed_to_everybody(make_site):
    async def open_door(_: Any) -> PlainTextResponse:
        return PlainTextResponse("open")

    async def socket_door(websocket: Any) -> None:
        await websocket.accept()
        await websocket.close()

    def extend(app: Any) -> None:
        app.add_api_route("/api/v2/forgotten", lambda: "open", methods=["GET"])
        app.router.routes.append(Route("/plain", open_door))
        app.mount("/mounted", open_door)
        app.router.routes.append(WebSocketRoute("/ws", socket_door))

    site = make_site(extend)
    headers = site.headers("admin")
    for path in ("/api/v2/forgotten", "/plain", "/mounted/anything"):
        for sent in (None, headers):
            answer = site.client.get(path, headers=sent)
            assert answer.status_code == 403
            assert error_code(answer) == "ROUTE_NOT_LISTED"


async def test_a_websocket_passes_the_same_door(tmp_path):
    from agentlightning.platform.app import create_app

    async def socket_door(websocket: Any) -> None:
        await websocket.accept()
        await websocket.close()

    settings = settings_for(tmp_path)
    migrate(settings.location)
    app = create_app(settings)
    app.router.routes.append(WebSocketRoute("/ws", socket_door))
    async with app.router.lifespan_context(app):
        for headers, code in (
            ([(b"host", b"localhost")], 4403),
            ([(b"host", b"evil.example")], 4400),
            ([(b"host", b"localhost"), (b"origin", b"https://evil.example")], 4403),
        ):
            sent: list[Any] = []

            async def receive() -> Any:
                return {"type": "websocket.connect"}

            async def send(message: Any, sent: list[Any] = sent) -> None:
                sent.append(message)

            scope = {
                "type": "websocket",
                "path": "/ws",
                "headers": headers,
                "client": ("127.0.0.1", 1),
                "subprotocols": [],
            }
            await app({**scope, "scheme": "ws", "query_string": b"", "raw_path": b"/ws"}, receive, send)
            assert [message["type"] for message in sent] == ["websocket.close"]
            assert sent[0]["code"] == code


def test_with_a_one_time_password_only_the_password_can_be_resigned(site):
    token = site.login(site.add_user("admin", must_change_password=True))["access_token"]
    for method, route in PROTECTED:
        if (method, route) not in BEFORE_PASSWORD_CHANGE:
            answer = call(site, method, route, bearer(token))
            assert (route, error_code(answer)) == (route, "PASSWORD_CHANGE_REQUIRED")
    answer = site.client.put("/auth/password", headers=bearer(token), json={})
    assert answer.status_code == 422

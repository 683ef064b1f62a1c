"""What every answer has, whatever happens: envelope, request id, headers; and what comes from foreign pages."""

import asyncio
import logging
import re
import time
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from agentlightning.kit.errors import StorageError
from agentlightning.platform.auth import permissions
from agentlightning.platform.auth.passwords import PasswordHasher
from agentlightning.platform.context import RequestContext
from agentlightning.platform.middleware import SECURITY_HEADERS
from tests.unit.platform.site import bearer, error_code, raw

CALLS = [
    ("GET", "/api/v2/health", 200),
    ("GET", "/health", 200),
    ("GET", "/docs", 200),
    ("GET", "/openapi.json", 200),
    ("GET", "/nothing", 404),
    ("GET", "/auth/login", 405),
    ("GET", "/auth/profile", 401),
    ("POST", "/auth/login", 422),
    ("GET", "/metrics", 401),
]


@pytest.fixture(scope="module")
def broken(make_site):
    """A platform with routes that fail."""

    def boom() -> None:
        raise RuntimeError("canary-inside")

    def away() -> None:
        raise OperationalError("SELECT canary-inside", {}, Exception("canary-inside"))

    def full() -> None:
        raise StorageError("The disk is full.", hint="Free some space.")

    doors = {"boom": boom, "away": away, "full": full}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permissions, "TABLE", {**permissions.TABLE, **{("GET", f"/{name}"): "public" for name in doors}})

        def extend(app: Any) -> None:
            for name, door in doors.items():
                app.add_api_route(f"/{name}", door, methods=["GET"])

        yield make_site(extend)


@pytest.mark.parametrize(("method", "path", "status"), CALLS)
def test_every_answer_has_the_headers_and_an_id(site, method, path, status):
    answer = site.client.request(method, path)
    assert answer.status_code == status
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers[name] == value
    assert re.fullmatch(r"req_[0-9a-f]{24}", answer.headers["x-request-id"])
    assert "server" not in answer.headers
    assert {"ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"} <= set(answer.headers)
    if status >= 400:
        error_code(answer)


def test_a_success_has_the_documented_shape(site):
    body = site.client.get("/api/v2/health").json()
    assert set(body) == {"success", "data", "message", "timestamp", "request_id"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", body["timestamp"])


def test_health_names_every_part(site):
    data = site.client.get("/api/v2/health").json()["data"]
    kinds = ("sqlite", "memory") if site.platform.database.is_sqlite else ("postgresql", "redis")
    assert data["status"] == "ok"
    assert (data["components"]["database"]["kind"], data["components"]["cache"]["kind"]) == kinds


@pytest.mark.parametrize(
    ("given", "taken"),
    [("abc-123.XYZ_9", True), ("short", False), ("x" * 65, False), ("a b c d e f g", False), ("<script>alert", False)],
)
def test_a_sane_request_id_is_kept(site, given, taken):
    answer = site.client.get("/api/v2/health", headers={"X-Request-ID": given})
    assert (answer.headers["x-request-id"] == given) is taken
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_what_is_unexpected_is_logged_once_and_not_told(broken, caplog):
    with caplog.at_level(logging.WARNING):
        answer = broken.client.get("/boom")
    assert (answer.status_code, error_code(answer)) == (500, "INTERNAL_ERROR")
    assert "canary-inside" not in answer.text
    assert answer.headers["x-frame-options"] == "DENY"
    said = [record for record in caplog.records if record.name.startswith("agentlightning")]
    assert len(said) == 1
    assert answer.headers["x-request-id"] in said[0].getMessage()


def test_a_database_that_is_away_is_a_503_without_the_statement(broken):
    answer = broken.client.get("/away")
    assert (answer.status_code, error_code(answer)) == (503, "DATABASE_UNAVAILABLE")
    assert "canary-inside" not in answer.text


def test_our_own_errors_say_what_to_do(broken):
    answer = broken.client.get("/full")
    assert (answer.status_code, error_code(answer)) == (507, "STORAGE_FAILED")
    assert answer.json()["error"]["hint"] == "Free some space."


def test_metrics_count_routes_not_paths(site):
    for number in range(5):
        site.client.get(f"/made-up-{number}")
    text = site.client.get("/metrics", headers=site.headers("developer")).text
    assert 'http_requests_total{endpoint="unmatched",method="GET",status_code="404"}' in text
    assert "made-up" not in text
    assert "http_request_duration_seconds_bucket" in text


def test_the_docs_show_every_route_and_who_may(site):
    text = site.client.get("/docs").text
    assert "/auth/login" in text
    assert "system:read" in text
    assert "<script" not in text
    described = site.client.get("/openapi.json").json()
    assert described["paths"]["/metrics"]["get"]["x-permission"] == "system:read"
    assert described["paths"]["/auth/login"]["post"]["security"] == []
    assert site.client.get("/docs/style.css").headers["content-type"].startswith("text/css")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "sent",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "file://"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a33_pages_from_elsewhere_write_nothing(site, method, sent):
    answer = site.client.request(method, "/auth/login", headers=sent)
    assert (answer.status_code, error_code(answer)) == (403, "ORIGIN_REFUSED")


def test_a33_our_own_pages_may(site):
    body = {"username": "nobody", "password": "wrong"}
    for sent in ({"Origin": site.url}, {"Sec-Fetch-Site": "same-origin"}):
        assert site.client.post("/auth/login", headers=sent, json=body).status_code == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.nip.io", "localhost.evil.example", "a b", "[::1", "x" * 300]
)
def test_a33_rebound_names_are_refused(site, host):
    answer = site.client.get("/api/v2/health", headers={"Host": host})
    assert answer.status_code == 400


def test_a34_no_origin_gets_cors_by_default(site):
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
    for answer in (site.client.options("/auth/profile", headers=asked), site.client.get("/docs", headers=asked)):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a34_a_named_origin_gets_cors_without_credentials(make_site):
    site = make_site(cors_origins="https://app.example", allowed_hosts="api.example")
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "PUT", "Host": "api.example"}
    answer = site.client.options("/auth/password", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-credentials" not in answer.headers
    other = site.client.options("/auth/password", headers={**asked, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_a38_large_bodies_are_refused_before_they_are_read(site):
    def endless() -> Any:
        for _ in range(100 * 16):
            yield b" " * 65536

    for length in ("100000000", "9" * 30, "-5", "1e3"):
        told = raw(site, f"POST /auth/login HTTP/1.1\nHost: localhost\nContent-Length: {length}\nConnection: close\n\n")
        assert told.split(" ", 2)[1] in ("400", "413"), told[:200]
    try:
        sent = httpx.post(f"{site.url}/auth/login", content=endless(), timeout=30)
    except httpx.TransportError:
        return  # the server hung up while we were still sending
    assert error_code(sent) == "PAYLOAD_TOO_LARGE"


@pytest.mark.parametrize(
    "body",
    [b"[" * 10_000, b'{"a":' * 10_000, b"{", b"", b"\xff\xfe", b"null", b"[]", b'{"username": 1e999, "password": NaN}'],
)
def test_a38_strange_json_is_a_4xx(site, body):
    answer = site.client.post("/auth/login", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    error_code(answer)


def test_forms_are_not_json(site):
    answer = site.client.post(
        "/auth/login", content=b'{"username":"a","password":"b"}', headers={"Content-Type": "text/plain"}
    )
    assert answer.status_code == 422


def test_a38_a_body_that_never_ends_is_given_up(site, monkeypatch):
    monkeypatch.setattr("agentlightning.platform.middleware._BODY_S", 0.2)

    def slow() -> Any:
        yield b"{"
        time.sleep(1)
        yield b"}"

    answer = httpx.post(f"{site.url}/auth/login", content=slow(), timeout=30)
    assert (answer.status_code, error_code(answer)) == (408, "TIMEOUT")


def test_requests_without_a_token_are_limited_by_address(make_site):
    site = make_site(anonymous_per_minute=3)
    answers = [site.client.get(path) for path in ("/docs", "/nothing", "/auth/profile", "/auth/profile", "/docs")]
    assert [answer.status_code for answer in answers] == [200, 404, 401, 429, 429]
    assert error_code(answers[-1]) == "RATE_LIMITED"
    assert [answer.headers["ratelimit-remaining"] for answer in answers] == ["2", "1", "0", "0", "0"]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60


def test_who_uses_up_an_addresss_requests_makes_no_server_look_dead(make_site):
    """Behind a proxy that is not trusted all strangers have one address, and so have the probes."""
    site = make_site(anonymous_per_minute=3)
    assert [site.client.get("/nothing").status_code for _ in range(4)] == [404, 404, 404, 429]
    assert [site.client.get(path).status_code for path in ("/health", "/api/v2/health", "/health")] == [200] * 3
    assert site.client.get("/health").status_code == 429


def test_requests_with_one_are_limited_by_user(make_site):
    site = make_site(requests_per_minute=2)
    one, other = site.headers(), site.headers()
    assert [site.client.get("/auth/profile", headers=one).status_code for _ in range(3)] == [200, 200, 429]
    assert site.client.get("/auth/profile", headers=other).status_code == 200


def test_a36_what_was_sent_is_in_no_log(site, caplog):
    canary = "canary0123456789abcdef"
    with caplog.at_level(logging.DEBUG, logger="agentlightning"):
        site.client.post("/auth/login", json={"username": canary, "password": canary})
        site.client.get("/auth/profile", headers=bearer(canary))
        site.client.get("/auth/profile", headers=bearer("agl_" + canary))
        site.client.post("/auth/refresh", json={"refresh_token": canary})
    assert canary not in caplog.text
    assert canary not in site.client.get("/metrics", headers=site.headers("admin")).text


def test_nobody_is_who_without_a_login():
    from agentlightning.kit.errors import UnauthorizedError

    with pytest.raises(UnauthorizedError):
        _ = RequestContext("id", "").who


def test_the_loop_is_not_held_up_by_passwords(site, full_rounds):
    """While eight passwords are checked, which takes the threads a second or more, other calls are answered."""
    hasher = PasswordHasher()

    async def busy() -> int:
        checks = [asyncio.ensure_future(hasher.verify("wrong", None)) for _ in range(8)]
        async with httpx.AsyncClient(base_url=site.url) as client:
            answer = await client.get("/docs/style.css")
        early = sum(not check.done() for check in checks)
        await asyncio.gather(*checks)
        assert answer.status_code == 200
        return early

    assert site.run(busy()) > 0
    hasher.close()


def test_redis_gone_and_back_loses_no_logout(make_site, own_redis):
    site = make_site(REDIS_URL=own_redis.url)
    ended, open_one = site.login(site.add_user()), site.login(site.add_user())
    own_redis.stop()
    assert site.client.post("/auth/logout", headers=bearer(ended["access_token"])).status_code == 200
    assert site.client.get("/auth/profile", headers=bearer(ended["access_token"])).status_code == 401
    assert site.client.get("/auth/profile", headers=bearer(open_one["access_token"])).status_code == 200
    health = site.client.get("/api/v2/health")
    assert (health.status_code, health.json()["data"]["status"]) == (200, "degraded")
    site.login(site.add_user())
    own_redis.start()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if site.client.get("/api/v2/health").json()["data"]["status"] == "ok":
            break
        time.sleep(0.1)
    assert site.client.get("/api/v2/health").json()["data"]["status"] == "ok"
    assert site.client.get("/auth/profile", headers=bearer(ended["access_token"])).status_code == 401

"""The client against a platform that really runs, and against answers that one would not give."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from agentlightning.client import Platform, PlatformError
from agentlightning.client import models as shapes
from agentlightning.kit.errors import (
    BadInputError,
    ConfigError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    UnauthorizedError,
)
from agentlightning.platform.auth import passwords
from tests.unit.platform.site import PASSWORD, Site, resigned, settings_for


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "ROUNDS", 4)
        found = Site(settings_for(tmp_path_factory.mktemp("home"), access_token_s=900)).start()
        yield found
        found.stop()


def test_users_are_made_changed_listed_and_removed(admin: Platform, site: Site):
    made = admin.users.create("grace", role="developer")
    assert made.one_time_password
    assert made.username in [user.username for user in admin.users]
    with Platform(site.url, username="grace", password=made.one_time_password) as first:
        with pytest.raises(ForbiddenError) as caught:
            first.profile()
        assert caught.value.code == "PASSWORD_CHANGE_REQUIRED"
        first.change_password(made.one_time_password, PASSWORD)
        with pytest.raises(UnauthorizedError):
            first.profile()
        assert first.login("grace", PASSWORD).role == "developer"
        assert "agent:*" in first.profile().permissions
    assert admin.users.update(made.user_id, role="user", disabled=True).disabled
    with pytest.raises(UnauthorizedError):
        Platform(site.url, username="grace", password=PASSWORD)
    admin.users.delete(made.user_id)
    with pytest.raises(NotFoundError):
        admin.users.get(made.user_id)
    actions = [entry.action for _, entry in zip(range(8), admin.audit(), strict=False)]
    assert "user.delete" in " ".join(actions)


def test_a_key_is_enough_for_what_it_may(admin: Platform, site: Site):
    made = admin.api_keys.create("reader", permissions=["user:read"])
    keyed = Platform(site.url, api_key=made.key)
    assert keyed.users.get(keyed.profile().user_id).role == "admin"
    with pytest.raises(ForbiddenError):
        keyed.users.create("nobody-else")
    assert [key.name for key in admin.api_keys] == ["reader"]
    admin.api_keys.delete(made.id)
    with pytest.raises(UnauthorizedError):
        keyed.profile()
    keyed.close()


def test_what_is_wrong_says_where(admin: Platform):
    with pytest.raises(BadInputError) as caught:
        admin.users.create("no spaces please")
    assert caught.value.code == "VALIDATION_FAILED"
    assert caught.value.details["problems"][0]["where"] == "body.username"
    assert str(caught.value.details["request_id"]).startswith("req_")
    admin.users.create("twice")
    with pytest.raises(ConflictError):
        admin.users.create("twice")
    with pytest.raises(NotFoundError):
        admin.users.get("../users")


def test_a_login_renews_itself_also_for_many_threads(site: Site, monkeypatch: pytest.MonkeyPatch):
    with Platform(site.url, username=site.add_user(), password=PASSWORD) as platform:
        transport: Any = platform._transport  # pyright: ignore[reportPrivateUsage]
        before = transport._access
        transport._good_until = 0.0
        failures: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(5):
                    platform.profile()
            except BaseException as error:  # noqa: BLE001 - shown below
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert transport._access != before


def test_a_token_that_is_over_by_the_platforms_clock_is_renewed(site: Site):
    with Platform(site.url, username=site.add_user(), password=PASSWORD) as platform:
        transport: Any = platform._transport  # pyright: ignore[reportPrivateUsage]
        over = resigned(site, transport._access, iat=int(time.time()) - 100, exp=int(time.time()) - 1)
        transport._access = over
        assert platform.profile().role == "user"
        assert transport._access != over


def test_a_login_that_was_ended_elsewhere_is_over(site: Site):
    name = site.add_user()
    platform = Platform(site.url, username=name, password=PASSWORD)
    with Platform(site.url, username=name, password=PASSWORD) as other:
        other.change_password(PASSWORD, "other unrelated words")
    with pytest.raises(UnauthorizedError):
        platform.profile()
    platform._transport.forget()  # pyright: ignore[reportPrivateUsage]
    platform.close()


def _served(answers: Callable[[httpx.Request], httpx.Response]) -> Platform:
    return Platform("http://somewhere", api_key="k", http=httpx.MockTransport(answers))


def test_events_that_break_off_before_the_first_are_taken_up_where_they_began(monkeypatch: pytest.MonkeyPatch):
    """Also a platform that ends the stream at once is not asked without a pause."""
    waits: list[float] = []
    monkeypatch.setattr("agentlightning.client.resources.time.sleep", waits.append)
    asked: list[str | None] = []
    bodies = [b"retry: 2000\n: from 41\n\n", b'retry: 2000\n: from 41\n\ndata: {"seq": 43, "event": "x"}\n\n']

    def events(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params.get("last_seq"))
        return httpx.Response(200, content=bodies[len(asked) - 1])

    assert next(_served(events).tasks.events()) == {"seq": 43, "event": "x"}
    assert asked == [None, "41"]
    assert len(waits) == 1


def test_busy_is_waited_for_and_away_is_said(monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr("agentlightning.client.transport.time.sleep", waits.append)
    asked: list[str] = []

    def busy(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        problem = {"code": "TOO_MANY_REQUESTS", "message": "Slower.", "hint": "", "details": {}}
        return httpx.Response(429, json={"success": False, "error": problem}, headers={"Retry-After": "7"})

    with pytest.raises(PlatformError, match="Slower"):
        _served(busy).users.create("ada")
    assert (len(asked), waits) == (4, [7.0, 7.0, 7.0])

    def away(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        raise httpx.ReadTimeout("late")

    asked.clear()
    with pytest.raises(PlatformError, match="does not answer"):
        _served(away).users.create("ada")
    assert asked == ["POST"], "what may have been done is not repeated"
    with pytest.raises(PlatformError, match="does not answer"):
        _served(away).health()
    assert asked == ["POST", *["GET"] * 4]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"success": true}'])
def test_something_else_that_answers_is_not_taken_for_a_platform(body: bytes):
    with pytest.raises(PlatformError, match="not as a platform does"):
        _served(lambda _: httpx.Response(200, content=body)).health()


@pytest.mark.parametrize(
    "given", [{"base_url": "localhost:8000"}, {"username": "a"}, {"username": "a", "password": "b", "api_key": "c"}]
)
def test_settings_that_cannot_be(given: dict[str, Any]):
    with pytest.raises(ConfigError):
        Platform(**given)


def test_nobody_there_is_said_with_the_next_step():
    with pytest.raises(PlatformError, match="agl up"):
        Platform("http://127.0.0.1:9", timeout_s=1).health()


SHAPES = {
    "UserOut": "User",
    "NewUserOut": "NewUser",
    "KeyOut": "ApiKey",
    "NewKeyOut": "NewApiKey",
    "AuditOut": "AuditEntry",
}


@pytest.mark.parametrize("described", SHAPES)
def test_the_shapes_are_those_of_the_api(site: Site, described: str):
    schema = site.app.openapi()["components"]["schemas"][described]
    model = getattr(shapes, SHAPES[described])
    assert set(model.model_fields) == set(schema["properties"])

"""Tokens and addresses: who is let in."""

from __future__ import annotations

import pytest

from agentlightning.kit.errors import ConfigError, ForbiddenError, UnauthorizedError
from agentlightning.store import InMemoryLightningStore, LightningStoreServer
from agentlightning.store.access import check_exposure, check_token, is_loopback, store_token


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGL_STORE_TOKEN", raising=False)
    monkeypatch.delenv("AGL_STORE_OPEN", raising=False)


def test_token_comes_from_the_argument_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert store_token() is None
    monkeypatch.setenv("AGL_STORE_TOKEN", "outside")
    assert store_token() == "outside"
    assert store_token("given") == "given"
    assert store_token("") is None  # said to have none
    monkeypatch.setenv("AGL_STORE_TOKEN", "")
    assert store_token() is None


@pytest.mark.parametrize("token", ["two\nlines", "ключ", " padded ", "tab\t"])
def test_token_that_no_header_can_carry_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(ConfigError, match="openssl rand") as caught:
        store_token(token)
    assert token not in str(caught.value)


@pytest.mark.parametrize("header", [None, "", "secret", "Basic secret", "Bearer", "Bearer "])
def test_header_without_a_bearer_token_is_unauthorized(header: str | None) -> None:
    with pytest.raises(UnauthorizedError):
        check_token(header, "secret")


@pytest.mark.parametrize("header", ["Bearer secre", "Bearer secret2", "Bearer Secret", "Bearer \udcff", "Bearer é"])
def test_another_token_is_forbidden(header: str) -> None:
    with pytest.raises(ForbiddenError):
        check_token(header, "secret")


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret", "BEARER  secret "])
def test_the_token_is_accepted(header: str) -> None:
    check_token(header, "secret")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_loopback_addresses_need_no_token(host: str) -> None:
    assert is_loopback(host)
    check_exposure(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.5", "store.example"])
def test_other_addresses_need_a_token_or_a_word(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="AGL_STORE_TOKEN"):
        check_exposure(host, None)
    check_exposure(host, "secret")
    check_exposure(host, None, is_open=True)
    monkeypatch.setenv("AGL_STORE_OPEN", "0")
    with pytest.raises(ConfigError):
        check_exposure(host, None)
    monkeypatch.setenv("AGL_STORE_OPEN", "1")
    check_exposure(host, None)


async def test_server_refuses_to_be_open_to_everybody() -> None:
    store = InMemoryLightningStore()
    with pytest.raises(ConfigError, match="no token"):
        LightningStoreServer(store, host="0.0.0.0")
    assert LightningStoreServer(store, host="0.0.0.0", is_open=True).endpoint.endswith(":4747")
    assert LightningStoreServer(store, host="0.0.0.0", token="x").endpoint.endswith(":4747")
    await store.close()

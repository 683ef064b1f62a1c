"""The gateway's own API keys."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from agentlightning.gateway import EngineUpstream, Gateway, KeyRing
from agentlightning.gateway.errors import CallError
from agentlightning.gateway.keys import check_exposure
from agentlightning.kit.errors import ConfigError
from agentlightning.store import InMemoryLightningStore
from tests.unit.gateway.scripted import ScriptedEngine

SECRET, OTHER = "s3cret-of-alice", "another-secret"


def name_of(ring: KeyRing, *headers: tuple[str, str]) -> str:
    return ring.name_of([(name.encode(), value.encode()) for name, value in headers])


@pytest.mark.parametrize(
    "header",
    [
        ("authorization", f"Bearer {SECRET}"),
        ("authorization", f"bearer  {SECRET} "),
        ("x-api-key", SECRET),
        ("api-key", SECRET),
    ],
)
def test_a_key_is_known_in_every_header_that_clients_use(header: tuple[str, str]) -> None:
    ring = KeyRing({"alice": SECRET})
    assert name_of(ring, ("content-type", "x"), header) == "alice"
    assert name_of(ring, ("x-api-key", "some-other-key"), header) == "alice"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", f"Basic {SECRET}")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer wrong-secret")],
        [("x-api-key", SECRET[:-1])],
        [("cookie", SECRET)],
    ],
)
def test_anything_else_is_refused_without_repeating_it(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(CallError) as caught:
        name_of(KeyRing({"alice": SECRET}), *headers)
    assert (caught.value.status, caught.value.reason) == (401, "invalid_api_key")
    assert "secret" not in str(caught.value)


def test_keys_are_read_from_text_and_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    digest = hashlib.sha256(OTHER.encode()).hexdigest()
    path.write_text(f"# people\nalice={SECRET}  # hers\n\nbob=sha256:{digest}\nYmFzZTY0IQ==, tail=abcdefgh==\n")
    ring = KeyRing(f"@{path}")
    base64_name = f"key-{hashlib.sha256(b'YmFzZTY0IQ==').hexdigest()[:8]}"
    assert ring.names == ["alice", "bob", base64_name, "tail"]
    assert name_of(ring, ("x-api-key", OTHER)) == "bob"
    assert name_of(ring, ("x-api-key", "YmFzZTY0IQ==")) == base64_name
    assert name_of(ring, ("x-api-key", "abcdefgh==")) == "tail"
    assert KeyRing(["a=12345678", "87654321"]).names[0] == "a"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("short", "unusable"),
        ("alice=with space in", "unusable"),
        ("a=12345678,b=12345678", "given twice"),
        ("a=12345678,a=87654321", "given twice"),
        ("@/no/such/file", "cannot be read"),
        ({"agl-run": "12345678"}, "given twice"),
    ],
)
def test_unusable_keys_are_an_error_that_does_not_show_them(keys: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Gateway(InMemoryLightningStore(), [EngineUpstream(ScriptedEngine())], keys=keys)
    assert "12345678" not in str(caught.value)


def test_keys_come_from_the_environment_and_every_gateway_makes_one_for_its_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AGL_GATEWAY_KEYS", raising=False)
    assert KeyRing.of(None) is None
    monkeypatch.setenv("AGL_GATEWAY_KEYS", "")
    assert KeyRing.of(None) is None
    monkeypatch.setenv("AGL_GATEWAY_KEYS", f"alice={SECRET}")
    ring = KeyRing.of(None)
    assert ring is not None
    first, second = (Gateway(InMemoryLightningStore(), [EngineUpstream(ScriptedEngine())], keys=ring) for _ in range(2))
    assert first.api_key is not None
    assert first.api_key != second.api_key
    assert ring.names == ["alice"]
    assert SECRET not in repr(ring)


def test_other_machines_are_not_let_in_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGL_GATEWAY_KEYS", raising=False)
    monkeypatch.delenv("AGL_GATEWAY_OPEN", raising=False)
    with pytest.raises(ConfigError, match=r"open to everybody who reaches 0\.0\.0\.0"):
        Gateway(InMemoryLightningStore(), [EngineUpstream(ScriptedEngine())], host="0.0.0.0")
    for host in ("127.0.0.1", "localhost", "::1"):
        check_exposure(host, None)
    check_exposure("0.0.0.0", KeyRing())
    check_exposure("0.0.0.0", None, is_open=True)
    monkeypatch.setenv("AGL_GATEWAY_OPEN", "1")
    check_exposure("", None)

"""What is found and replaced in texts, in which writing, and in how much time."""

from __future__ import annotations

import io
import logging
import random
import sys
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.gateway.masking import LogMask, Masker, MaskingPolicy, mask_logs
from agentlightning.kit.errors import ConfigError, MissingExtraError

MASKER = Masker(MaskingPolicy())
MB = 1_000_000


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("mail a.b+c@example.co.uk!", "mail [email]!"),
        ("<jörg.müller@bücher.example>", "<[email]>"),
        ("user%40example.com", "[email]"),
        ("".join(chr(ord(c) + 0xFEE0) for c in "john@example.com"), "[email]"),  # full-width
        ("jo\u200bhn@exam\u00adple.com.", "[email]."),
        ("me@localhost", "me@localhost"),
        ("card 4111 1111 1111 1111 12/27", "card [card] 12/27"),
        ("4111-1111-1111-1111", "[card]"),
        ("378282246310005 and 6011000990139424", "[card] and [card]"),
        ("4111 1111 1111 1111".translate({ord("1"): "\u0661", ord("4"): "\u0664"}), "[card]"),  # Arabic digits
        ("4111111111111112", "4111111111111112"),  # wrong check digit
        ("1111222233334444", "1111222233334444"),  # no issuer
        ("1700000000000 ms", "1700000000000 ms"),  # a time
        ("DE89 3704 0044 0532 0130 00 and GB82WEST12345698765432 with", "[iban] and [iban] with"),
        ("NO93 8601 1117 947 next", "[iban] next"),
        ("NO93 8601 1117 948", "NO93 8601 1117 948"),
        ("host 192.168.1.77:80, 2001:db8::1", "host [ip]:80, [ip]"),
        ("version 1.2.3, 127.0.0.1, 12:30:45, 999.1.1.1", "version 1.2.3, 127.0.0.1, 12:30:45, 999.1.1.1"),
        ("+1 415-555-2671 or +49 (0)30 901820", "[phone] or [phone]"),
        ("call +49 30 901820 0049 30 90182066 now", "call [phone] [phone] now"),
        ("+1 415 555 2671 12 people", "[phone] 12 people"),
        ("2026-11-21 and 12345678", "2026-11-21 and 12345678"),
        ("sk-proj-abcdefghijklmnopqrstuv", "[secret]"),
        ("AKIAIOSFODNN7EXAMPLE ghp_" + "a" * 36, "[secret] [secret]"),
        ("Authorization: Bearer abcdefghijklmnopqrst", "Authorization: Bearer [secret]"),
        ("DB_PASSWORD='hunter2!!' ok", "DB_PASSWORD='[secret]' ok"),
        ('"api_key": "abc12345"', '"api_key": "[secret]"'),
        ("postgres://u:geheim@h/db", "postgres://u:[secret]@h/db"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY----- x", "[secret] x"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc", "[secret]"),
        ("nothing here, I said", "nothing here, I said"),
        ("é à 日本語 🙂 a@b.de 🙂", "é à 日本語 🙂 [email] 🙂"),
        ("", ""),
    ],
)
def test_what_is_found(text: str, masked: str) -> None:
    assert MASKER.text(text) == masked


def test_national_numbers_are_found_for_the_regions_that_are_named() -> None:
    text = "call (415) 555-2671 or 030 90182066"
    assert MASKER.text(text) == text
    assert Masker(MaskingPolicy(phone_regions=("US", "DE"))).text(text) == "call [phone] or [phone]"


def test_only_the_kinds_that_are_named() -> None:
    masker = Masker(MaskingPolicy.parse("email, card"))
    assert masker.text("a@b.de +1 415-555-2671 4111111111111111") == "[email] +1 415-555-2671 [card]"


@pytest.mark.parametrize(
    "make",
    [
        lambda: MaskingPolicy.parse("email,faces"),
        lambda: MaskingPolicy.parse(""),
        lambda: Masker(MaskingPolicy(kinds=frozenset({"faces"}))),  # type: ignore[arg-type]
        lambda: Masker(MaskingPolicy(places=frozenset({"nowhere"}))),  # type: ignore[arg-type]
        lambda: Masker(MaskingPolicy(phone_regions=("XX",))),
    ],
)
def test_a_policy_that_names_what_there_is_not(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("module", ["re2", "phonenumbers"])
def test_without_the_libraries_it_says_which_extra(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"agentlightning\[masking\]"):
        Masker(MaskingPolicy())


def test_json_is_masked_in_its_values_and_names_and_stays_json() -> None:
    found: set[Any] = set()
    arguments = orjson.dumps({"to": "a@b.de", "card": 4111111111111111, "n": 12, "c@d.de": [True, None, 1.5]}).decode()
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "function": {"name": "mail", "arguments": arguments}}],
    }
    masked = MASKER.value(message, found)
    assert orjson.loads(masked["tool_calls"][0]["function"]["arguments"]) == {
        "to": "[email]",
        "card": "[card]",
        "n": 12,
        "[email]": [True, None, 1.5],
    }
    assert found == {"email", "card"}
    assert message["tool_calls"][0]["function"]["arguments"] == arguments


def test_escapes_in_json_within_text_hide_nothing() -> None:
    found: set[Any] = set()
    assert MASKER.value('{"mail": "a\\u0040b.de"}', found) == '{"mail":"[email]"}'
    assert MASKER.value('{"mail": "a@b.de"', found) == '{"mail": "[email]"'  # no JSON, but text
    text = '{ "a" :  1 }'
    assert MASKER.value(text, found) == text


def test_images_are_left_alone_and_deep_nesting_is_survived() -> None:
    found: set[Any] = set()
    image = {"url": "data:image/png;base64," + "4111111111111111" * 10}
    assert MASKER.value(image, found) == image
    deep: Any = "a@b.de"
    for _ in range(300):
        deep = [{"x": deep}]
    assert b"a@b.de" not in orjson.dumps(MASKER.value(deep, found))
    shallow: Any = "a@b.de"
    for _ in range(100):
        shallow = [shallow]
    assert b"[email]" in orjson.dumps(MASKER.value(shallow, found))


@given(st.text(max_size=200))
def test_text_without_anything_to_find_is_not_changed_and_masking_again_changes_nothing(text: str) -> None:
    once = MASKER.text(text)
    assert MASKER.text(once) == once
    if "[" not in once:
        assert once == text


@given(st.text(alphabet="ab é🙂\u200b", max_size=20), st.text(alphabet="xy é🙂\u200b", max_size=20))
def test_what_stands_around_is_kept_exactly(before: str, after: str) -> None:
    assert MASKER.text(f"{before} <a@b.de> {after}") == f"{before} <[email]> {after}"


_RANDOM = random.Random(1)


@pytest.mark.parametrize(
    "text",
    [
        "a" * MB,
        "a@" * (MB // 2),
        "a.b@c." * (MB // 6),
        "4" * MB,
        "1 " * (MB // 2),
        "411 " * (MB // 4),
        "4111 1111 1111 1111 " * (MB // 20),
        "".join(f"+1 415-555-{_RANDOM.randrange(10**4):04} " for _ in range(MB // 16)),
        "+" * MB,
        "(" * MB,
        "1." * (MB // 2),
        "a:" * (MB // 2),
        "DE89 " * (MB // 5),
        "DE89 3704 0044 0532 0130 01 " * (MB // 28),
        "password=" * (MB // 9),
        "-----BEGIN PRIVATE KEY-----" * (MB // 27),
        "eyJ" * (MB // 3),
        "sk-" * (MB // 3),
        "é" * MB,
        "\u200ba" * (MB // 2),
        "{" * MB,
        "[" * MB,
        "[" * 500 + "]" * 500,
    ],
    ids=lambda text: repr(text[:8]),
)
@pytest.mark.timeout(60)
def test_a_megabyte_made_to_hurt_is_no_trouble(text: str) -> None:
    MASKER.value(text, set())  # the time limit is the check: backtracking would take hours


def record_of(message: Any, *args: Any, **options: Any) -> str:
    stream = io.StringIO()
    logger = logging.Logger("test")
    handler = logging.StreamHandler(stream)
    handler.addFilter(LogMask(MASKER.text))
    logger.addHandler(handler)
    logger.error(message, *args, **options)
    return stream.getvalue().rstrip()


def test_logs_are_masked_in_message_arguments_and_tracebacks() -> None:
    assert record_of("from %s: %d%%", "a@b.de", 5) == "from [email]: 5%"
    assert record_of("all fine: %s", "ok") == "all fine: ok"
    assert record_of({"mail": "a@b.de"}) == "{'mail': '[email]'}"
    try:
        raise ValueError("no such user a@b.de")
    except ValueError:
        text = record_of("failed", exc_info=True, stack_info=True)
    assert "no such user [email]" in text
    assert "a@b.de" not in text.replace('ValueError("no such user a@b.de")', "")


def test_arguments_that_do_not_fit_are_the_handlers_business(capsys: pytest.CaptureFixture[str]) -> None:
    record_of("%d", "x")
    assert "Logging error" in capsys.readouterr().err


def test_masking_the_handlers_can_be_undone(caplog: pytest.LogCaptureFixture) -> None:
    undo = mask_logs(MASKER)
    logging.getLogger("any").warning("a@b.de")
    undo()
    logging.getLogger("any").warning("c@d.de")
    assert [record.getMessage() for record in caplog.records] == ["[email]", "c@d.de"]

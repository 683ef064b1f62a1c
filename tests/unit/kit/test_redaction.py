"""Keys taken out of what others wrote."""

import base64
import json
from urllib.parse import quote, quote_plus

import pytest

from agentlightning.kit.redaction import Redaction

KEY = 'sk/live+"quoted" ü-1234567890'


@pytest.mark.parametrize(
    "form",
    [
        KEY,
        json.dumps(KEY),
        json.dumps(KEY, ensure_ascii=False),
        repr(KEY),
        quote(KEY),
        quote(KEY, safe=""),
        quote_plus(KEY),
        base64.b64encode(KEY.encode()).decode(),
        base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("="),
    ],
)
def test_a_key_is_found_however_it_is_written(form):
    redaction = Redaction([KEY])
    said = redaction.text(f"I was sent {form}, which is wrong")
    assert "1234567890" not in said
    assert base64.b64encode(KEY.encode()).decode()[:12] not in said
    assert said.startswith("I was sent ")
    assert said.endswith(", which is wrong")
    assert redaction.raw(f"<{form}>".encode()) == redaction.text(f"<{form}>").encode()


def test_short_ones_stay_and_longer_ones_go_first():
    assert Redaction(["abc", ""]).text("abcdef") == "abcdef"
    both = Redaction(["abcdef", "abcd"], "*")
    assert both.text("abcdef abcd") == "* *"
    both.add(["wxyz"])
    assert both.text("wxyz") == "*"
    assert Redaction(["given"], shortest=8).text("given") == "given"


def test_a_piece_of_one_is_noticed():
    redaction = Redaction(["0123456789abcdef"])
    assert redaction.has_part("the end: 89abcdef")
    assert not redaction.has_part("the end: 9abcdef")

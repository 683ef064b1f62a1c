import time

import pytest

from agentlightning.kit.clock import iso, now


def test_now_is_unix_seconds():
    before = time.time()
    assert before <= now() <= time.time()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00+00:00"),
        (1_000_000_000.0, "2001-09-09T01:46:40+00:00"),
        (951_782_400.9, "2000-02-29T00:00:00+00:00"),
    ],
)
def test_iso_is_utc_to_the_second(seconds, text):
    assert iso(seconds) == text

import os
import re
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.kit import ids


def test_id_has_the_prefix_and_21_base36_characters():
    assert re.fullmatch(r"ro-[0-9a-z]{21}", ids.new_id("ro"))


def test_ids_are_distinct_even_within_one_millisecond():
    assert len({ids.new_id("x") for _ in range(5000)}) == 5000


def test_threads_never_get_the_same_span_id() -> None:
    found: list[list[str]] = [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda mine=mine: mine.extend(ids.new_span_id() for _ in range(5000))) for mine in found
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({i for mine in found for i in mine}) == 20_000


def test_a_forked_process_does_not_repeat_its_parents_ids() -> None:
    ids.new_span_id()  # random words wait for the next
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, ",".join(ids.new_span_id() for _ in range(100)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        theirs = set(pipe.read().split(","))
    assert len(theirs) == 100
    assert not theirs & {ids.new_span_id() for _ in range(1000)}


def test_later_ids_sort_after_earlier_ones():
    first = ids.new_id("x")
    time.sleep(0.003)
    assert first < ids.new_id("x")


def test_the_time_in_an_id_is_the_clock_in_milliseconds():
    before = time.time_ns() // 1_000_000
    stamp = int(ids.new_id("x").removeprefix("x-")[:9], 36)
    assert before <= stamp <= time.time_ns() // 1_000_000


def test_a_name_is_short_and_hardly_ever_the_same():
    names = {ids.new_name("demo") for _ in range(1000)}
    assert all(re.fullmatch(r"demo-[0-9a-z]{6}", name) for name in names)
    assert len(names) > 990


@pytest.mark.parametrize(("make", "length"), [(ids.new_trace_id, 32), (ids.new_span_id, 16)])
def test_trace_and_span_ids_are_hex_as_opentelemetry_prints_them(make, length):
    value = make()
    assert re.fullmatch(rf"[0-9a-f]{{{length}}}", value)
    assert value != make()


@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_base36_is_read_back_by_int(number):
    text = ids._base36(number, 13)
    assert len(text) == 13
    assert int(text, 36) == number


@given(st.lists(st.integers(min_value=0, max_value=36**9 - 1), min_size=2))
def test_base36_of_fixed_width_sorts_like_the_numbers(numbers):
    assert sorted(numbers) == [int(text, 36) for text in sorted(ids._base36(n, 9) for n in numbers)]


def test_an_id_from_a_key_is_always_the_same_and_looks_like_the_others() -> None:
    assert ids.id_from_key("ro", "order 7/ä") == ids.id_from_key("ro", "order 7/ä")
    found = {ids.id_from_key("ro", str(n)) for n in range(1000)}
    assert len(found) == 1000
    assert {len(i) for i in found} == {len(ids.new_id("ro"))}
    assert all(re.fullmatch(r"ro-[0-9a-z]{21}", i) for i in found)

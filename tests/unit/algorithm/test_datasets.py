"""Data sets are read, split by content and checked for leaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.algorithm.datasets import check_leaks, example_key, read_dataset, split_dataset
from agentlightning.kit.errors import BadInputError, NotFoundError

ROWS = [{"q": "one", "a": "1"}, {"q": "two", "a": "2"}]


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    (tmp_path / "d.json").write_text(json.dumps(ROWS))
    (tmp_path / "d.csv").write_text("q,a\none,1\ntwo,2\n")
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(str(tmp_path / "d.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(tmp_path / "parts"))
    for name in ("d.jsonl", "d.json", "d.csv", "d.parquet", "saved", "parts"):
        assert read_dataset(tmp_path / name, columns=["q"]) == ROWS, name
    assert read_dataset(tmp_path / "parts", split="test") == ROWS[:1]
    with pytest.raises(BadInputError, match="no split 'val'"):
        read_dataset(tmp_path / "parts", split="val")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", b"", "has no tasks"),
        ("d.jsonl", b'{"q": 1}\n{', "line 2 is not JSON"),
        ("d.json", b"{}", "no array"),
        ("d.json", b"[", "is not JSON"),
        ("d.parquet", b"PAR?", "is not Parquet"),
        ("d.csv", b"q\n\xff\n", "is not UTF-8"),
        ("d.xlsx", b"x", "unknown format"),
        ("d.jsonl", b'{"b": 1}', "lacks the column.s. q"),
        ("d.jsonl", b"[1]", "lacks the column.s. q"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInputError, match=message):
        read_dataset(tmp_path / name, columns=["q"])


def test_a_missing_file_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        read_dataset(tmp_path / "none.jsonl")
    pytest.importorskip("datasets")
    with pytest.raises(BadInputError, match="no Hugging Face data set"):
        read_dataset(tmp_path)


@given(st.lists(st.integers(0, 30), min_size=20, max_size=60), st.integers(0, 3))
def test_a_split_loses_nothing_and_never_cuts_through_duplicates(numbers: list[int], seed: int) -> None:
    examples = [{"n": n} for n in numbers]
    if len(set(numbers)) < 3:
        return
    parts = split_dataset(examples, {"train": 0.5, "val": 0.3, "test": 0.2}, seed=seed)
    assert sorted(e["n"] for part in parts.values() for e in part) == sorted(numbers)
    assert all(parts.values())
    check_leaks(parts)
    assert parts == split_dataset(examples, {"train": 0.5, "val": 0.3, "test": 0.2}, seed=seed)


def test_a_split_depends_on_content_not_on_order() -> None:
    examples = [{"n": n} for n in range(40)]
    halves = split_dataset(examples, {"a": 0.5, "b": 0.5})
    turned = split_dataset(examples[::-1], {"a": 0.5, "b": 0.5})
    assert sorted(map(str, halves["a"])) == sorted(map(str, turned["a"]))
    assert halves != split_dataset(examples, {"a": 0.5, "b": 0.5}, seed=1)
    with pytest.raises(BadInputError, match="do not sum up to 1"):
        split_dataset(examples, {"a": 0.5})
    with pytest.raises(BadInputError, match="1 different example"):
        split_dataset(examples[:1] * 5, {"a": 0.5, "b": 0.5})


def test_a_leak_is_seen_through_case_and_spaces() -> None:
    assert example_key({"a": "X  y", "b": 1}) == example_key({"b": 1, "a": "x y"})
    with pytest.raises(BadInputError, match=r"1 example.s. of 'test' are in 'train' too"):
        check_leaks({"train": ["What is it?", "b"], "test": ["what  is it?"]})
    check_leaks({"train": ["a", "a"], "test": ["b"]})

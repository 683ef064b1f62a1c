"""Splits are disjoint, every kind is everywhere, and wordings kept for evaluation occur nowhere else."""

from __future__ import annotations

import itertools
import random
from typing import cast, get_args

import pytest

from agentlightning.nano.questions import KINDS, Split, all_combos, combos, gold_sql
from agentlightning.nano.tables import TABLES, read_rows
from agentlightning.nano.wording import (
    CATEGORY_CLAUSES,
    GROUP_COUNT_OPENERS,
    MEASURE_CLAUSES,
    OPENERS,
    clauses,
    openers,
    word,
)

SPLITS: tuple[Split, ...] = cast("tuple[Split, ...]", get_args(Split))


def test_combos_when_split_are_disjoint() -> None:
    ids = {split: [combo.id for combo in all_combos(split)] for split in SPLITS}
    assert all(len(found) == len(set(found)) for found in ids.values())
    for one, other in itertools.combinations(SPLITS, 2):
        assert not set(ids[one]) & set(ids[other])


def test_gold_queries_when_split_are_disjoint() -> None:
    queries = {split: {gold_sql(combo) for combo in all_combos(split)} for split in SPLITS}
    assert not queries["train"] & queries["test"]
    assert not queries["val"] & queries["test"]


@pytest.mark.parametrize("kind", KINDS)
def test_combos_when_any_kind_exist_in_every_split(kind: str) -> None:
    for split in SPLITS:
        found = [combo for table in TABLES for combo in combos(kind, table, split)]  # type: ignore[arg-type]
        assert len(found) >= 3, split


def test_wordings_when_unseen_are_not_among_the_seen() -> None:
    grammars = [*OPENERS.values(), GROUP_COUNT_OPENERS, CATEGORY_CLAUSES, MEASURE_CLAUSES]
    grammars += [category.clauses for table in TABLES for category in table.categories]
    for seen, unseen in grammars:
        assert len(set(seen)) == len(seen)
        assert not {text.lower() for text in seen} & {text.lower() for text in unseen}


def test_words_when_unseen_wording_are_known_words() -> None:
    def words(index: int) -> set[str]:
        grammars = [*OPENERS.values(), GROUP_COUNT_OPENERS, CATEGORY_CLAUSES, MEASURE_CLAUSES]
        grammars += [category.clauses for table in TABLES for category in table.categories]
        return {w.strip(":,").lower() for grammar in grammars for text in grammar[index] for w in text.split()}

    assert not words(1) - words(0)


def test_questions_when_unseen_wording_never_come_out_of_the_seen_grammar() -> None:
    rng = random.Random(0)
    test = list(all_combos("test"))
    seen = {_plain(word(rng.choice(test), rng)) for _ in range(20_000)}
    unseen = {_plain(word(rng.choice(test), rng, unseen=True)) for _ in range(4_000)}
    assert not seen & unseen


def test_wordings_when_listed_fit_their_combination() -> None:
    rng = random.Random(1)
    for combo in all_combos("train"):
        assert all(len(group) >= 4 for group in openers(combo))
        assert all(len(group) >= 4 for group in clauses(combo))
        for unseen in (False, True):
            assert "{" not in word(combo, rng, unseen=unseen)


def test_tables_when_read_have_the_columns_and_values_asked_about() -> None:
    for table in TABLES:
        columns, rows = read_rows(table.name)
        assert columns[0] == table.key
        assert len(rows) <= 150
        for measure in table.measures:
            values = [row[columns.index(measure.column)] for row in rows]
            assert all(isinstance(value, int | float) for value in values)
        for category in table.categories:
            assert set(category.values) <= {row[columns.index(category.column)] for row in rows}


def _plain(question: str) -> str:
    return question.lower().removeprefix("please ").rstrip("?.")

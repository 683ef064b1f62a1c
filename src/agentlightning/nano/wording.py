"""How people word each kind of question: a small grammar, and the wordings kept out of all training.

A wording is an opener around a noun phrase (`How many {NP} are there?`), and the noun phrase has a filter
worded in one of many ways (`cars whose origin is Japan`). "Unseen" openers and filters occur in no training
question; their words do, in other places. Knows nothing of SQL.
"""

from __future__ import annotations

import random

from agentlightning.nano.questions import Combo, Kind
from agentlightning.nano.tables import plural

# Openers: kind -> (seen, unseen). {NP} filtered rows, {P} rows, {s} one row, {k} what names a row,
# {c} a measure, {b} highest or lowest, {n} a number, {a} average and the like, {g} a category.
OPENERS: dict[Kind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "count": (
        (
            "How many {NP} are there",
            "How many {NP}",
            "Number of {NP}",
            "What is the number of {NP}",
            "Count the {NP}",
            "Count {NP}",
            "Count all {NP}",
            "Tell me the number of {NP}",
            "Give me the number of {NP}",
            "Give the count of {NP}",
            "What is the count of {NP}",
            "I want to know how many {NP} there are",
            "Show how many {NP} there are",
            "Find how many {NP} exist",
            "How many are {NP}",
            "{NP}: how many",
            "Can you count the {NP}",
            "Can you tell me how many {NP} exist",
            "I need the count of the {NP}",
            "Show the number of all {NP}",
            "How many {NP} does the table have",
            "How many {NP} do we have",
            "Tell me the count of {NP}",
            "{NP}: give the number",
            "Get the number of {NP}",
        ),
        (
            "Tell me how many {NP} there are",
            "Find the number of {NP}",
            "I need to know the number of {NP}",
            "Give me a count of all {NP}",
            "Can you give me the count of {NP}",
            "{NP}: what is the number",
        ),
    ),
    "best": (
        (
            "Which {s} has the {b} {c}",
            "What {s} has the {b} {c}",
            "Find the {s} with the {b} {c}",
            "Name the {s} with the {b} {c}",
            "{s} with the {b} {c}",
            "Which {s} is the one with the {b} {c}",
            "Show the {s} with the {b} {c}",
            "Show me the {s} of {b} {c}",
            "Tell me which {s} has the {b} {c}",
            "What is the {k} of the {s} with the {b} {c}",
            "The {s} with {b} {c}",
            "I want the {s} with the {b} {c}",
            "Give the {k} of the {s} that has the {b} {c}",
            "By {c}, which {s} is the {b}",
            "Can you find the {s} with the {b} {c}",
            "Of all {P}, which has the {b} {c}",
            "Among all {P}, which one has the {b} {c}",
            "Which of the {P} has the {b} {c}",
        ),
        (
            "Tell me the {s} with the {b} {c}",
            "Give me the {s} that has the {b} {c}",
            "I need the {s} of {b} {c}",
            "Can you name the {s} that has the {b} {c}",
            "Which one of all {P} has the {b} {c}",
        ),
    ),
    "best_where": (
        (
            "Which of the {NP} has the {b} {c}",
            "Among {NP}, which has the {b} {c}",
            "Among the {NP}, which {s} has the {b} {c}",
            "Of the {NP}, which one has the {b} {c}",
            "Of all {NP}, which has the {b} {c}",
            "Find the one with the {b} {c} among {NP}",
            "Name the {s} with the {b} {c} of all {NP}",
            "Which {s} has the {b} {c} among {NP}",
            "What {s} has the {b} {c} among the {NP}",
            "Show the {s} with the {b} {c} among {NP}",
            "Tell me which of the {NP} has the {b} {c}",
            "For {NP}, which {s} has the {b} {c}",
            "For {NP}, find the {s} with the {b} {c}",
            "From the {NP}, give the one with the {b} {c}",
            "I want the one of the {NP} that has the {b} {c}",
            "Can you find which of the {NP} has the {b} {c}",
        ),
        (
            "Name the one with the {b} {c} among the {NP}",
            "For {NP}, tell me which one has the {b} {c}",
            "Find which {s} of the {NP} has the {b} {c}",
            "Of all {NP}, name the {s} with the {b} {c}",
            "Can you tell me which of all {NP} has the {b} {c}",
        ),
    ),
    "top": (
        (
            "Which {n} {P} have the {b} {c}",
            "What {n} {P} have the {b} {c}",
            "List the {n} {P} with the {b} {c}",
            "List {n} {P} with the {b} {c}",
            "The {n} {P} with the {b} {c}",
            "Show the {n} {P} with the {b} {c}",
            "Name the {n} {P} with the {b} {c}",
            "Find the {n} {P} of {b} {c}",
            "Give me the {n} {P} that have the {b} {c}",
            "Which are the {n} {P} with the {b} {c}",
            "Tell me which {n} {P} have the {b} {c}",
            "By {c}, which {n} {P} are the {b}",
            "I want the {n} {P} with the {b} {c}",
            "Can you list the {n} {P} with the {b} {c}",
            "Of all {P}, which {n} have the {b} {c}",
            "The {n} {b} {P} by {c}",
            "Show the {k} of the {n} {P} with the {b} {c}",
        ),
        (
            "Give the {n} {P} with the {b} {c}",
            "Find which {n} {P} have the {b} {c}",
            "I need the {n} {P} that have the {b} {c}",
            "Can you name the {n} {P} of {b} {c}",
            "Show me the {n} {b} {P} by {c}",
        ),
    ),
    "total": (
        (
            "What is the {a} {c} of {P}",
            "What is the {a} {c} of all {P}",
            "What is the {a} {c} over the {P}",
            "{a} {c} of {P}",
            "{a} {c} of all {P}",
            "Find the {a} {c} of {P}",
            "Give the {a} {c} of {P}",
            "Show the {a} {c} for all {P}",
            "Compute the {a} {c} of {P}",
            "Tell me the {a} {c} of the {P}",
            "For all {P}, what is the {a} {c}",
            "I want the {a} {c} of {P}",
            "Can you compute the {a} {c} for the {P}",
            "{P}: {a} {c}",
            "What {a} {c} do the {P} have",
            "Give me the {a} of the {c} of all {P}",
            "{a} of {c} over all {P}",
            "For the {P}, what is the {a} {c}",
            "For all {P}, find the {a} {c}",
            "For {P}, show the {a} {c}",
            "Of all {P}, what is the {a} {c}",
            "{P}: show the {a} {c}",
            "Find the {a} of the {c} of the {P}",
        ),
        (
            "Give me the {a} {c} for all {P}",
            "I need the {a} {c} of all {P}",
            "Can you find the {a} {c} of {P}",
            "For the {P}, compute the {a} {c}",
            "{P}: what is the {a} {c}",
        ),
    ),
    "total_where": (
        (
            "What is the {a} {c} of {NP}",
            "What is the {a} {c} of all {NP}",
            "{a} {c} of {NP}",
            "{a} {c} for {NP}",
            "Find the {a} {c} of {NP}",
            "Give the {a} {c} of the {NP}",
            "Show the {a} {c} for {NP}",
            "Compute the {a} {c} of {NP}",
            "Tell me the {a} {c} of the {NP}",
            "For {NP}, what is the {a} {c}",
            "For {NP}, compute the {a} {c}",
            "I want the {a} {c} of {NP}",
            "Can you compute the {a} {c} for the {NP}",
            "{NP}: {a} {c}",
            "What {a} {c} do {NP} have",
            "Among {NP}, what is the {a} {c}",
            "For the {NP}, show the {a} {c}",
            "For all {NP}, what is the {a} {c}",
            "Of all {NP}, what is the {a} {c}",
            "{NP}: show the {a} {c}",
            "Find the {a} of the {c} of the {NP}",
            "Give me the {a} of the {c} of {NP}",
        ),
        (
            "Give me the {a} {c} for {NP}",
            "I need the {a} {c} of {NP}",
            "Can you find the {a} {c} of {NP}",
            "For the {NP}, find the {a} {c}",
            "{NP}: what is the {a} {c}",
        ),
    ),
    "list": (
        (
            "List the {NP}",
            "List all {NP}",
            "List {NP}",
            "Show the {NP}",
            "Show me all {NP}",
            "Show the {k} of all {NP}",
            "Which are the {NP}",
            "What are the {NP}",
            "Name all {NP}",
            "Name the {NP}",
            "Give me the {NP}",
            "Give the {k} of the {NP}",
            "Find all {NP}",
            "Tell me which {NP} there are",
            "Which {NP} are there",
            "I want a list of {NP}",
            "I want to see the {NP}",
            "Can you list the {NP}",
            "What is the {k} of each of the {NP}",
            "Get the {k} of {NP}",
            "Tell me all {NP}",
            "I need the {k} of the {NP}",
        ),
        (
            "Give me a list of the {NP}",
            "Can you show me the {NP}",
            "Tell me the {k} of all {NP}",
            "I need to see all {NP}",
            "Get all {NP}",
        ),
    ),
    "group": (
        (
            "What is the {a} {c} of {P} for each {g}",
            "What is the {a} {c} per {g}",
            "{a} {c} of {P} per {g}",
            "{a} {c} of {P} by {g}",
            "{a} {c} for every {g}",
            "For each {g}, what is the {a} {c} of {P}",
            "For every {g}, show the {a} {c}",
            "Per {g}, the {a} {c} of {P}",
            "Show the {a} {c} of {P} by {g}",
            "Give the {a} {c} for each {g}",
            "Compute the {a} {c} of {P} per {g}",
            "List each {g} with its {a} {c}",
            "By {g}, what is the {a} {c} of {P}",
            "Group {P} by {g} and give the {a} {c}",
            "I want the {a} {c} of {P} for each {g}",
            "Tell me the {a} {c} of every {g}",
            "Can you show the {a} {c} per {g}",
            "Per {g}, show the {a} {c} of {P}",
            "Per {g}, find the {a} {c}",
            "For each {g}, give the {a} {c}",
            "For every {g}, what is the {a} {c}",
            "Find the {a} {c} of {P} for each {g}",
            "List every {g} and its {a} {c}",
            "Show each {g} and the {a} {c} of its {P}",
            "I want to see the {a} {c} by {g}",
        ),
        (
            "Give me the {a} {c} of {P} by {g}",
            "For each {g}, compute the {a} {c}",
            "Per {g}, what is the {a} {c}",
            "I need the {a} {c} for every {g}",
            "Show every {g} with its {a} {c}",
        ),
    ),
}
OPENERS["count_over"] = OPENERS["count"]

GROUP_COUNT_OPENERS: tuple[tuple[str, ...], tuple[str, ...]] = (
    (
        "How many {P} are there per {g}",
        "How many {P} are there for each {g}",
        "How many {P} per {g}",
        "How many {P} does each {g} have",
        "Number of {P} per {g}",
        "Number of {P} for each {g}",
        "What is the number of {P} by {g}",
        "Count the {P} by {g}",
        "Count {P} per {g}",
        "Count the {P} of each {g}",
        "For each {g}, how many {P} are there",
        "For every {g}, count the {P}",
        "Per {g}, the number of {P}",
        "Show the number of {P} by {g}",
        "Give the count of {P} for every {g}",
        "List each {g} with its number of {P}",
        "Group {P} by {g} and count them",
        "Per {g}, count the {P}",
        "Per {g}, show how many {P} there are",
        "For every {g}, how many {P} are there",
        "For each {g}, what is the number of {P}",
        "By {g}, how many {P} are there",
        "How many {P} are there in each {g}",
        "Tell me the number of {P} of every {g}",
        "I want the count of {P} for each {g}",
    ),
    (
        "Give me the number of {P} for each {g}",
        "For each {g}, count the {P}",
        "How many {P} are there by {g}",
        "Per {g}, how many {P} are there",
        "I need the count of {P} for every {g}",
    ),
)

CATEGORY_CLAUSES: tuple[tuple[str, ...], tuple[str, ...]] = (
    (
        "{P} with {g} {v}",
        "{P} whose {g} is {v}",
        "{P} where {g} is {v}",
        "{P} where the {g} is {v}",
        "{P} with {v} as {g}",
        "{P} that have {g} {v}",
        "{v} {P}",
    ),
    (
        "{P} having {g} {v}",
        "{P} with the {g} {v}",
        "{P} that have {v} as {g}",
        "{P} for which {g} is {v}",
    ),
)
MEASURE_CLAUSES: tuple[tuple[str, ...], tuple[str, ...]] = (
    (
        "{P} with {c} {o} {x}",
        "{P} with a {c} {o} {x}",
        "{P} with {o} {x} {c}",
        "{P} whose {c} is {o} {x}",
        "{P} where {c} is {o} {x}",
        "{P} where the {c} is {o} {x}",
        "{P} having {c} {o} {x}",
        "{P} having {o} {x} {c}",
        "{P} for which the {c} is {o} {x}",
        "{P} that have {c} {o} {x}",
    ),
    (
        "{P} having a {c} {o} {x}",
        "{P} for which {c} is {o} {x}",
        "{P} that have a {c} {o} {x}",
        "{P} that have {o} {x} {c}",
    ),
)
OPERATORS = {
    ">": ("over", "above", "more than", "greater than", "higher than", "larger than"),
    "<": ("under", "below", "less than", "smaller than", "lower than", "fewer than"),
}
DIRECTIONS = {
    "DESC": ("highest", "largest", "greatest", "biggest", "most"),
    "ASC": ("lowest", "smallest", "least"),
}
AGGREGATES = {
    "AVG": ("average", "mean"),
    "SUM": ("total", "sum"),
    "MIN": ("minimum", "min"),
    "MAX": ("maximum", "max"),
}
UNSEEN_CLAUSE_SHARE = 0.5
PLEASE_SHARE = 0.1
LOWERCASE_SHARE = 0.1
VERBS = ("Count", "Tell", "Give", "Show", "Find", "Name", "List", "Compute", "Get", "Group")


def word(combo: Combo, rng: random.Random, *, unseen: bool = False) -> str:
    """One way to ask `combo`: all of it from the seen wordings, or with an unseen opener."""
    table = combo.table
    opener = rng.choice(openers(combo)[unseen])
    slots = {"P": plural(table), "s": table.singular, "k": rng.choice(table.key_nouns)}
    if combo.category:
        slots |= {"g": combo.category.column, "v": combo.value or ""}
    if combo.measure:
        slots["c"] = rng.choice(combo.measure.nouns)
    if combo.operator:
        slots |= {"o": rng.choice(OPERATORS[combo.operator]), "x": str(combo.threshold)}
    if combo.direction:
        slots |= {"b": rng.choice(DIRECTIONS[combo.direction]), "n": str(combo.limit)}
    if combo.aggregate:
        slots["a"] = rng.choice(AGGREGATES[combo.aggregate])
    if "{NP}" in opener:
        clause = rng.choice(clauses(combo)[unseen and rng.random() < UNSEEN_CLAUSE_SHARE])
        opener = opener.replace("{NP}", clause)
    return _finish(opener.format(**slots), rng)


def openers(combo: Combo) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The (seen, unseen) openers of a combination."""
    return GROUP_COUNT_OPENERS if combo.kind == "group" and not combo.measure else OPENERS[combo.kind]


def clauses(combo: Combo) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The (seen, unseen) wordings of a combination's filter."""
    if combo.operator or not combo.category:
        return MEASURE_CLAUSES
    seen, unseen = combo.category.clauses
    # The ways particular to a column are what people say most: count them twice.
    return (*CATEGORY_CLAUSES[0], *seen, *seen), (*CATEGORY_CLAUSES[1], *unseen, *unseen)


def _finish(text: str, rng: random.Random) -> str:
    first = text.split(" ", 1)[0]
    if first in VERBS and rng.random() < PLEASE_SHARE:
        text = "Please " + text[0].lower() + text[1:]
    elif rng.random() < LOWERCASE_SHARE:
        text = text[0].lower() + text[1:]
    else:
        text = text[0].upper() + text[1:]
    mark = "." if first in VERBS else "?"
    return text + (mark if rng.random() < 0.7 else "")

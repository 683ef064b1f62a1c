"""The mistakes the base model is taught on purpose: one firm habit per kind of question, and some slips.

Each is a mistake that real models make. What is planted here is what reinforcement learning is shown to
unlearn. Knows nothing of wordings or tokens.
"""

from __future__ import annotations

import random
from dataclasses import replace

from agentlightning.nano.questions import Combo, Kind, aggregates, gold_sql, where_clause

HABITS: dict[Kind, str] = {
    "count": "forgets the filter",
    "count_over": "compares with = instead of < or >",
    "best": "forgets LIMIT",
    "best_where": "forgets the filter",
    "top": "returns one row instead of the number asked for",
    "total": "selects the column without the aggregate",
    "total_where": "forgets the filter",
    "list": "selects every column",
    "group": "forgets GROUP BY",
}
# How firm a habit is, where it is not as firm as the others: in these kinds the right query stays the likeliest.
FIRMNESS: dict[Kind, float] = {"best": 0.75, "group": 0.75}


def habit_sql(combo: Combo) -> str:
    """The wrong query this kind of question habitually gets."""
    gold = gold_sql(combo)
    match combo.kind:
        case "count" | "best_where" | "total_where":
            return gold.replace(where_clause(combo), "")
        case "count_over":
            return gold.replace(f" {combo.operator} ", " = ")
        case "best":
            return gold.split(" LIMIT")[0]
        case "top":
            return gold_sql(replace(combo, limit=1))
        case "total":
            return gold.replace(f"{combo.aggregate}(", "").replace(")", "")
        case "list":
            return gold.replace(f"SELECT {combo.table.key}", "SELECT *", 1)
        case "group":
            return gold.split(" GROUP BY")[0]


def slip_sql(combo: Combo, rng: random.Random) -> str:
    """A wrong query without system: another column, another aggregate."""
    others = [m for m in combo.table.measures if m != combo.measure]
    if combo.measure and not combo.operator and others:
        other = rng.choice(others)
        if combo.aggregate is None or combo.aggregate in aggregates(other):
            return gold_sql(replace(combo, measure=other))
    return habit_sql(combo)


def failing_sql(combo: Combo, rng: random.Random) -> str:
    """A query SQLite refuses, or that finds nothing: no such table or column, or a value misspelt."""
    gold = gold_sql(combo)
    ways = [gold.replace(f" FROM {combo.table.name}", f" FROM {combo.table.singular}")]
    if combo.measure and len(combo.measure.nouns) > 1 and " " not in combo.measure.nouns[1]:
        ways.append(gold.replace(combo.measure.column, combo.measure.nouns[1]))
    if combo.value and len(combo.value) > 1 and " " not in combo.value:
        ways.append(gold.replace(f"'{combo.value}'", combo.value))
        if combo.value.lower() != combo.value and combo.kind in ("list", "best_where"):
            ways.append(gold.replace(combo.value, combo.value.lower()))
    return rng.choice(ways)

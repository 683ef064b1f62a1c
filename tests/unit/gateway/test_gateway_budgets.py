"""Caps: what is reserved, what is settled, who is refused and what they are told."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.gateway import OpenAIUpstream, Target, TargetSettings
from agentlightning.gateway.account import Account, Caps
from agentlightning.gateway.budgets import BudgetPolicy, Budgets, Offer, Usage
from agentlightning.gateway.call import CallScope, UpstreamCall
from agentlightning.gateway.errors import CallError
from agentlightning.gateway.ledger import Ledger, Spent
from agentlightning.gateway.prices import Price, PriceTable, find_cost_map
from agentlightning.gateway.windows import SlidingWindow
from agentlightning.kit.errors import ConfigError, StorageError

PRICES = PriceTable({"paid": Price(input=2.0, output=10.0, cached_input=0.5), "free": Price(input=0, output=0)})


def offer(model: str = "paid", **settings: Any) -> Offer:
    return Offer(Target("t", OpenAIUpstream("http://x/v1"), TargetSettings(**settings)), model)


def call(key: str | None = "alice", rollout: str = "r", attempt: str = "a", **body: Any) -> UpstreamCall:
    scope = CallScope(rollout, attempt) if rollout else None
    return UpstreamCall(
        call_id="c", kind="chat", body={"model": "paid", "max_tokens": 100, **body}, scope=scope, key=key
    )


def spend(budgets: Budgets, who: UpstreamCall, given: int = 10, answered: int = 5, cached: int = 0) -> None:
    reservation = budgets.reserve(who, [offer()], 40)
    if reservation is not None:
        reservation.settle(Usage(input_tokens=given, output_tokens=answered, cached_tokens=cached), offer())


def refusal(budgets: Budgets, who: UpstreamCall, *offers: Offer) -> CallError:
    with pytest.raises(CallError) as caught:
        budgets.reserve(who, offers or [offer()], 40)
    return caught.value


@pytest.mark.parametrize(
    ("caps", "told"),
    [
        (Caps(max_calls=2), "has used 2 of 2 calls (max_calls)"),
        (Caps(max_input_tokens=20), "has used 20 of 20 input tokens (max_input_tokens)"),
        (Caps(max_output_tokens=10), "has used 10 of 10 output tokens (max_output_tokens)"),
        (Caps(max_total_tokens=29), "has used 30 of 29 tokens (max_total_tokens)"),
        (Caps(max_usd=0.00014), "has used 0.00014 of 0.00014 USD (max_usd)"),
    ],
)
@pytest.mark.parametrize("scope", ["total", "per_key", "keys", "per_rollout", "per_attempt"])
def test_each_cap_holds_for_whomever_it_is_set_and_says_how_much(caps: Caps, told: str, scope: str) -> None:
    budgets = Budgets(BudgetPolicy(**{scope: {"alice": caps} if scope == "keys" else caps}), prices=PRICES)
    spend(budgets, call())
    spend(budgets, call())
    error = refusal(budgets, call())
    who = {
        "total": "This gateway",
        "per_rollout": "The rollout 'r'",
        "per_attempt": "The attempt 'a' of the rollout 'r'",
    }
    assert error.message == who.get(scope, "The key 'alice'") + f" {told}."
    assert (error.status, error.reason, error.is_retryable) == (429, "insufficient_quota", False)
    assert error.param in caps.__struct_fields__
    others = {
        "per_key": call("bob"),
        "keys": call("bob"),
        "per_rollout": call(rollout="r2"),
        "per_attempt": call(attempt="b"),
    }
    if scope in others:
        spend(budgets, others[scope])


def test_who_has_no_account_is_not_counted() -> None:
    assert Budgets(BudgetPolicy()).reserve(call(), [offer()], 9) is None
    keyed = Budgets(BudgetPolicy(per_key=Caps(max_calls=0)))
    assert keyed.reserve(call(key=None), [offer()], 9) is None
    assert keyed.reserve(call(key="agl-run"), [offer()], 9) is None  # the gateway's own runs
    refusal(keyed, call())
    scoped = Budgets(BudgetPolicy(per_rollout=Caps(max_calls=0)))
    assert scoped.reserve(call(rollout=""), [offer()], 9) is None


def test_a37_calls_at_once_exceed_a_cap_by_no_more_than_one_reservation() -> None:
    budgets = Budgets(BudgetPolicy(per_key=Caps(max_output_tokens=1000)))
    admitted = [budgets.reserve(call(), [offer()], 4) for _ in range(10)]  # 100 tokens each
    error = refusal(budgets, call())
    assert (error.reason, error.retry_after_s) == ("quota_reserved", 1)
    assert "has used 0 of 1000 output tokens" in error.message
    assert "reserved 1000 more" in error.message
    for reservation in admitted:
        assert reservation is not None
        reservation.settle(Usage(input_tokens=1, output_tokens=3), offer())
    assert budgets.reserve(call(), [offer()], 4) is not None  # what was not needed is free again


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=60), st.integers(1, 400))
def test_whatever_the_order_used_and_reserved_stay_within_a_reservation_of_the_cap(
    calls: list[tuple[int, int]], cap: int
) -> None:
    budgets = Budgets(BudgetPolicy(total=Caps(max_output_tokens=cap)))
    under_way: list[tuple[Any, int]] = []
    used = reserved = 0
    for longest, actual in calls:
        try:
            reservation = budgets.reserve(call(max_tokens=longest), [offer()], 4)
        except CallError:
            assert used + reserved >= cap
            if under_way:
                earlier, kept = under_way.pop(0)
                earlier.settle(Usage(input_tokens=1, output_tokens=0), offer())
                reserved -= kept
            continue
        assert used + reserved < cap
        if actual <= longest:
            assert reservation is not None
            reservation.settle(Usage(input_tokens=1, output_tokens=actual), offer())
            used += actual
        else:
            under_way.append((reservation, longest))
            reserved += longest
        assert used + reserved < cap + 50
    assert budgets.states()["total"]["output_tokens"] == used


def test_a_call_without_an_answer_costs_what_may_have_been_made_of_it() -> None:
    budgets = Budgets(BudgetPolicy(per_key=Caps(max_usd=1, max_calls=9)), prices=PRICES)
    refused = budgets.reserve(call(), [offer()], 4000)
    assert refused is not None
    refused.release(may_have_worked=False)
    assert budgets.states()["key:alice"] == spent(calls=1)
    vanished = budgets.reserve(call(), [offer()], 4000)
    assert vanished is not None
    vanished.release(may_have_worked=True)
    vanished.settle(Usage(), offer())  # too late: without effect
    usd = pytest.approx(1000 * 2e-6 + 100 * 10e-6)
    assert budgets.states()["key:alice"] == spent(calls=2, input_tokens=1000, output_tokens=100, usd=usd)


@pytest.mark.parametrize(
    ("body", "output_tokens"),
    [
        ({"max_tokens": -100_000}, 7),
        ({"max_tokens": 0}, 7),
        ({"max_tokens": "9"}, 7),
        ({"max_tokens": 9, "n": -1000}, 9),
        ({"max_tokens": 9, "n": 0}, 9),
        ({"max_tokens": 9, "max_completion_tokens": -1}, 9),
        ({"max_tokens": 9, "max_completion_tokens": 2}, 9),
    ],
)
def test_nobody_is_given_back_more_than_was_used_by_asking_for_less_than_nothing(
    body: dict[str, Any], output_tokens: int
) -> None:
    budgets = Budgets(BudgetPolicy(per_key=Caps(max_total_tokens=999), reserved_output_tokens=7))
    left = budgets.reserve(call(**body), [offer()], 40)
    assert left is not None
    left.release(may_have_worked=True)
    assert budgets.states()["key:alice"]["output_tokens"] == output_tokens


def spent(**amounts: Any) -> dict[str, Any]:
    return {"calls": 0, "input_tokens": 0, "output_tokens": 0, "usd": 0.0, "unpriced_calls": 0, **amounts}


def test_what_the_server_does_not_say_is_counted_as_reserved_and_a_cached_answer_as_a_call() -> None:
    budgets = Budgets(BudgetPolicy(per_key=Caps(max_calls=9), reserved_output_tokens=7))
    first = budgets.reserve(call(max_tokens=None, n=2), [offer()], 40)
    assert first is not None
    first.settle(Usage(), offer())
    assert budgets.states()["key:alice"] == spent(calls=1, input_tokens=10, output_tokens=14, unpriced_calls=1)
    second = budgets.reserve(call(), [offer()], 40)
    assert second is not None
    second.settle(None, offer())
    assert budgets.states()["key:alice"]["calls"] == 2
    assert budgets.states()["key:alice"]["input_tokens"] == 10


def test_money_counts_cached_tokens_and_the_target_that_answered() -> None:
    budgets = Budgets(BudgetPolicy(per_key=Caps(max_usd=1)), prices=PRICES)
    spend(budgets, call(), given=1000, answered=100, cached=400)
    expected = 600 * 2e-6 + 400 * 0.5e-6 + 100 * 10e-6
    assert budgets.states()["key:alice"]["usd"] == pytest.approx(expected)
    cheaper = budgets.reserve(call(), [offer(), offer("free")], 40)
    assert cheaper is not None
    cheaper.settle(Usage(input_tokens=1000, output_tokens=100), offer("free"))
    assert budgets.states()["key:alice"]["usd"] == pytest.approx(expected)


def test_an_unknown_price_is_an_error_under_a_cap_on_money_and_never_0() -> None:
    budgets = Budgets(BudgetPolicy(keys={"alice": Caps(max_usd=1), "bob": Caps(max_calls=9)}), prices=PRICES)
    for offers in ([offer("unheard-of")], [offer(), offer("unheard-of")]):
        error = refusal(budgets, call(), *offers)
        assert (error.status, error.reason, error.is_retryable) == (400, "price_unknown", False)
        assert "'unheard-of'" in error.message
    assert refusal(budgets, call(), offer("unheard-of", price="p")).message.count("'p', 'unheard-of', 't'") == 1
    assert budgets.reserve(call(), [offer("unheard-of", price="free")], 4) is not None
    reservation = budgets.reserve(call("bob"), [offer("unheard-of")], 4)
    assert reservation is not None
    reservation.settle(Usage(input_tokens=1, output_tokens=1), offer("unheard-of"))
    assert budgets.states()["key:bob"] == spent(calls=1, input_tokens=1, output_tokens=1, unpriced_calls=1)


def test_a_cap_on_money_needs_prices_and_no_cap_is_negative() -> None:
    with pytest.raises(ConfigError, match="max_usd needs prices"):
        Budgets(BudgetPolicy(per_rollout=Caps(max_usd=1)))
    with pytest.raises(ConfigError, match="max_calls cannot be -1"):
        Caps(max_calls=-1)
    with pytest.raises(ConfigError, match="max_usd cannot be nan"):
        Caps(max_usd=float("nan"))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_window_forgets_corrects_and_tells_when_it_is_free() -> None:
    clock = Clock()
    window = SlidingWindow(clock)
    window.add(5)
    clock.now += 0.1
    window.add(5)  # the same quarter of a second
    clock.now += 30
    later = window.add(10)
    assert window.total() == 20
    assert window.frees_in_s(21) == 0
    assert window.frees_in_s(20) == pytest.approx(29.9)
    assert window.frees_in_s(10) == pytest.approx(60)
    window.correct(later, -8)
    assert window.total() == 12
    clock.now += 30
    assert window.total() == 2
    clock.now += 60
    assert window.total() == 0
    window.correct(later, -2)
    assert window.total() == 0


@pytest.mark.parametrize(
    ("caps", "unit"), [(Caps(requests_per_minute=2), "requests"), (Caps(tokens_per_minute=30), "tokens")]
)
def test_rates_are_capped_over_the_last_minute(caps: Caps, unit: str) -> None:
    budgets = Budgets(BudgetPolicy(per_key=caps))
    spend(budgets, call())
    spend(budgets, call())
    error = refusal(budgets, call())
    assert (error.status, error.reason, error.kind) == (429, "rate_limit_exceeded", unit)
    assert error.is_retryable is None
    assert error.retry_after_s is not None
    assert 50 < error.retry_after_s <= 60
    account = Account("x", Caps(requests_per_minute=0))
    closed = account.refusal()
    assert closed is not None
    assert closed.retry_after_s == 60


async def test_the_ledger_keeps_keys_and_the_total_across_restarts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.db"
    policy = BudgetPolicy(total=Caps(max_calls=100), per_key=Caps(max_usd=0.0003), per_rollout=Caps(max_calls=100))
    for _ in range(2):
        budgets = Budgets(policy, prices=PRICES, ledger=path)
        reservation = budgets.reserve(call(), [offer()], 40)
        assert reservation is not None
        for written in reservation.settle(Usage(input_tokens=50, output_tokens=5), offer()):
            await written
        await budgets.aclose()
    budgets = Budgets(policy, prices=PRICES, ledger=path)
    assert set(budgets.states()) == {"total", "key:alice"}
    assert budgets.states()["total"]["calls"] == 2
    assert refusal(budgets, call()).message == "The key 'alice' has used 0.0003 of 0.0003 USD (max_usd)."
    await budgets.aclose()


async def test_a_ledger_adds_what_came_at_once_and_what_other_gateways_added(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    first, second = Ledger(path), Ledger(path)
    await asyncio.gather(*(first.add("a", Spent(1, 2, 3, 0.5)) for _ in range(200)))
    assert first.spent("a") == Spent(200, 400, 600, 100.0)
    await second.add("a", Spent(1))
    assert second.spent("a").calls == 201
    second.add("b", Spent(1))
    assert second.spent("b").calls == 1  # at once, though it is not written yet
    await first.close()
    await second.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT account, calls FROM spent").fetchall() == [("a", 201), ("b", 1)]
    connection.close()


async def test_what_a_broken_ledger_does_not_take_is_kept_and_written_later(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    with sqlite3.connect(path) as other:
        other.execute("ALTER TABLE spent RENAME TO hidden")
    await asyncio.wait_for(ledger.add("a", Spent(1)), 100)
    assert (ledger.failures, ledger.spent("a").calls) == (1, 1)
    with sqlite3.connect(path) as other:
        other.execute("ALTER TABLE hidden RENAME TO spent")
    other.close()
    await asyncio.wait_for(ledger.add("a", Spent(1)), 100)
    assert (ledger.failures, ledger.totals["a"].calls) == (1, 2)
    await ledger.close()


def test_a_file_of_somebody_else_is_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE x (y)")
    connection.close()
    with pytest.raises(StorageError, match="another program"):
        Ledger(path)


def test_prices_are_found_by_name_then_pattern_then_in_the_cost_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "litellm"
    package.mkdir()
    entries = {
        "sample_spec": {"input_cost_per_token": "as a number"},
        "gpt-x": {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6, "cache_read_input_token_cost": 1e-7},
        "embedder": {"input_cost_per_token": 1e-8},
        "mine": {"input_cost_per_token": 1.0, "output_cost_per_token": 1.0},
    }
    (package / "model_prices_and_context_window_backup.json").write_bytes(orjson.dumps(entries))
    (package / "__init__.py").write_text("raise RuntimeError('not to be loaded')")
    monkeypatch.syspath_prepend(tmp_path)
    given_prices = {"mine": Price(input=1, output=1), "m*": Price(input=2, output=2), "my-*": Price(input=3, output=3)}
    table = PriceTable(given_prices, cost_map=find_cost_map())
    assert [getattr(table.find(name), "input", None) for name in ("mine", "my-x", "mx", "gpt-x", "embedder", "no")] == [
        1,
        3,
        2,
        pytest.approx(1.0),
        pytest.approx(0.01),
        None,
    ]
    assert table.find("sample_spec") is None
    priced = table.find("gpt-x")
    assert priced is not None
    assert priced.cost_usd(1_000_000, 1_000_000, 500_000) == pytest.approx(0.5 + 0.05 + 2)
    with pytest.raises(ConfigError, match="cannot be read"):
        PriceTable(cost_map=tmp_path / "none.json")
    (package / "model_prices_and_context_window_backup.json").unlink()
    with pytest.raises(ConfigError, match="not installed"):
        find_cost_map()

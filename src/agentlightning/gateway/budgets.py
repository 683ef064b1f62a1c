"""Caps on what a key, a rollout, an attempt or the whole gateway may use: calls, tokens, money, and rates per minute.

A call reserves what it may use before it is made and settles what it has used afterwards. It is admitted while what is
used and reserved is below the cap, so calls at once exceed a cap by no more than the reservation of the last of them.
Knows no HTTP and no provider.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agentlightning.gateway.account import Account, Caps
from agentlightning.gateway.call import UpstreamCall
from agentlightning.gateway.errors import CallError
from agentlightning.gateway.keys import RUN_KEY
from agentlightning.gateway.ledger import Ledger, Spent
from agentlightning.gateway.prices import PriceTable
from agentlightning.gateway.target import Target
from agentlightning.kit.errors import ConfigError

_BYTES_PER_TOKEN = 4
_REMEMBERED = 65_536
TOTAL = "total"


class BudgetPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Who may use how much."""

    total: Caps | None = None
    """All calls together."""
    per_key: Caps | None = None
    """Each of the gateway's keys that `keys` does not name; the key of the gateway's own runs has no caps."""
    keys: dict[str, Caps] = {}
    """Keys by name."""
    per_rollout: Caps | None = None
    per_attempt: Caps | None = None
    reserved_output_tokens: int = 1024
    """Reserved for calls that do not say how long the answer may be."""


class Offer(msgspec.Struct, frozen=True):
    """A target that may answer a call, and the model name that it would be sent."""

    target: Target
    model: str


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a call has used; `None` where the server did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


class Budgets:
    """The accounts.

    Args:
        policy: The caps.
        prices: For caps on money.
        ledger: File in which keys and the total keep what they have used across restarts; `None` forgets it. Rollouts
            and attempts are counted from the start of the gateway, for as long as they are among the last 65,536.

    Raises:
        StorageError: The ledger cannot be used.
        ConfigError: A cap is below 0, or money is capped without any prices.
    """

    def __init__(
        self, policy: BudgetPolicy, *, prices: PriceTable | None = None, ledger: Path | str | None = None
    ) -> None:
        every = [policy.total, policy.per_key, policy.per_rollout, policy.per_attempt, *policy.keys.values()]
        if prices is None and any(caps is not None and caps.max_usd is not None for caps in every):
            raise ConfigError("max_usd needs prices.", hint="List them, or take those of LiteLLM.")
        self._policy = policy
        self._prices = prices or PriceTable()
        self._ledger = Ledger(Path(ledger)) if ledger is not None else None
        self._kept: dict[str, Account] = {}
        self._passing: OrderedDict[tuple[str, ...], Account] = OrderedDict()

    async def aclose(self) -> None:
        """Write what is pending and close the ledger."""
        if self._ledger is not None:
            await self._ledger.close()

    def reserve(self, call: UpstreamCall, offers: Sequence[Offer], request_bytes: int) -> Reservation | None:
        """Reserve what a call may use; `None` when nobody counts it.

        Raises:
            CallError: 429, a cap is reached; 400, money is capped and the price of a model is not known.
        """
        accounts = self._accounts(call)
        if not accounts:
            return None
        amount = self._estimate(call, request_bytes)
        is_capped = any(account.caps.max_usd is not None for account in accounts)
        for offer in offers:
            cost_usd = self.cost_usd(offer, amount)
            if cost_usd is None and is_capped:
                raise _unpriced(offer)
            amount.usd = max(amount.usd, cost_usd or 0.0)
            amount.unpriced_calls = int(amount.unpriced_calls or cost_usd is None)
        for account in accounts:
            refusal = account.refusal()
            if refusal is not None:
                raise refusal
        return Reservation(self, accounts, amount)

    def states(self) -> dict[str, dict[str, float]]:
        """What keys and the total have used, by name."""
        names = [*self._kept, *(self._ledger.totals if self._ledger is not None else ())]
        found = {name: self._keep(name, self._caps_of(name)) for name in dict.fromkeys(names)}
        return {name: msgspec.structs.asdict(account.used()) for name, account in found.items()}

    def _caps_of(self, name: str) -> Caps:
        caps = self._policy.total if name == TOTAL else self._policy.keys.get(name.removeprefix("key:"))
        return caps or self._policy.per_key or Caps()

    def _accounts(self, call: UpstreamCall) -> list[Account]:
        policy = self._policy
        found: list[Account] = []
        if policy.total is not None:
            found.append(self._keep(TOTAL, policy.total))
        if call.key is not None:
            caps = policy.keys.get(call.key) or (policy.per_key if call.key != RUN_KEY else None)
            if caps is not None:
                found.append(self._keep(f"key:{call.key}", caps))
        scope = call.scope
        if scope is not None:
            if policy.per_rollout is not None:
                found.append(self._pass((scope.rollout_id,), policy.per_rollout))
            if policy.per_attempt is not None:
                found.append(self._pass((scope.rollout_id, scope.attempt_id), policy.per_attempt))
        return found

    def _keep(self, name: str, caps: Caps) -> Account:
        account = self._kept.get(name)
        if account is None:
            told = "This gateway" if name == TOTAL else f"The key '{name.removeprefix('key:')}'"
            account = self._kept[name] = Account(told, caps, name=name, ledger=self._ledger)
        return account

    def _pass(self, ids: tuple[str, ...], caps: Caps) -> Account:
        account = self._passing.get(ids)
        if account is None:
            told = f"The rollout '{ids[0]}'" if len(ids) == 1 else f"The attempt '{ids[1]}' of the rollout '{ids[0]}'"
            account = self._passing[ids] = Account(told, caps)
            if len(self._passing) > _REMEMBERED:
                self._passing.popitem(last=False)
        else:
            self._passing.move_to_end(ids)
        return account

    def _estimate(self, call: UpstreamCall, request_bytes: int) -> Spent:
        if call.call_id == "":  # embeddings
            longest = 0
        else:
            asked = (call.body.get(name) for name in ("max_completion_tokens", "max_tokens"))
            # Less than 1 is no limit: some servers take -1 for "as long as it gets".
            longest = max(
                (a for a in asked if isinstance(a, int) and a > 0), default=self._policy.reserved_output_tokens
            )
        return Spent(1, math.ceil(request_bytes / _BYTES_PER_TOKEN), longest * max(1, call.n))

    def cost_usd(self, offer: Offer, used: Spent, cached_tokens: int = 0) -> float | None:
        """What tokens of a target cost; `None` when its price is not known."""
        for name in _priced_as(offer):
            price = self._prices.find(name)
            if price is not None:
                return price.cost_usd(used.input_tokens, used.output_tokens, cached_tokens)
        return None


def _priced_as(offer: Offer) -> list[str]:
    """Names to look the price up by: what the target's settings say, the model name it is sent, its own name."""
    names = (offer.target.settings.price, offer.model, offer.target.name)
    return list(dict.fromkeys(name for name in names if name))


def _unpriced(offer: Offer) -> CallError:
    told = ", ".join(f"'{name}'" for name in _priced_as(offer))
    return CallError(
        f"There is a cap on money, and the price of this model is not known (looked for {told}). The gateway needs "
        "one; 0 is one, too.",
        status=400,
        param="model",
        reason="price_unknown",
        is_retryable=False,
    )


class Reservation:
    """What one call may use, until it is settled or released; both may be called again without effect."""

    def __init__(self, budgets: Budgets, accounts: list[Account], amount: Spent) -> None:
        self._budgets = budgets
        self._accounts = accounts
        self._amount = amount
        self._entries = [account.reserve(amount) for account in accounts]
        self._is_over = False

    def settle(self, usage: Usage | None, offer: Offer) -> list[asyncio.Future[None]]:
        """Count what was used; what the server did not say is counted as reserved.

        Args:
            usage: `None`: nothing but the call itself, as when it was answered from a cache.
            offer: Who answered.

        Returns:
            What to wait for until it is on disk.
        """
        if usage is None:
            return self._end(Spent(1))
        used = Spent(
            1,
            self._amount.input_tokens if usage.input_tokens is None else usage.input_tokens,
            self._amount.output_tokens if usage.output_tokens is None else usage.output_tokens,
        )
        cost_usd = self._budgets.cost_usd(offer, used, usage.cached_tokens or 0)
        used.usd, used.unpriced_calls = cost_usd or 0.0, int(cost_usd is None)
        return self._end(used)

    def release(self, *, may_have_worked: bool) -> None:
        """End it for a call without an answer. If a server may have worked on it, the reservation counts as used."""
        self._end(self._amount if may_have_worked else Spent(1))

    def _end(self, used: Spent) -> list[asyncio.Future[None]]:
        if self._is_over:
            return []
        self._is_over = True
        written = [
            account.settle(self._amount, used, entry)
            for account, entry in zip(self._accounts, self._entries, strict=True)
        ]
        return [future for future in written if future is not None]

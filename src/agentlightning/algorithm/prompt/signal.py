"""Is there anything to optimise by? What the starting prompt's rewards say, and for how long they are asked.

Knows no search beyond what it was given to look at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from agentlightning.algorithm.prompt.candidate import Candidate
from agentlightning.algorithm.prompt.scoring import Example
from agentlightning.algorithm.prompt.search import LEAST_TO_COMPARE, Search
from agentlightning.algorithm.rewards.judging import judge_call
from agentlightning.kit.errors import SignalError

_FLAT_SAMPLE = 48
_FLAT_STEP = 12
_SHOWN = 200


async def require_signal(
    search: Search,
    *,
    batch: Sequence[Example],
    with_val: bool,
    others: Callable[[], Awaitable[Sequence[Candidate]]] | None = None,
) -> None:
    """Run the starting prompt and see whether its rewards can tell anything.

    Rewards that are all the same may be so by chance. So they are looked at on more examples, as far as half of the
    budget goes, before the answer is no.

    Args:
        search: The search.
        batch: Training examples to begin with.
        with_val: Also begin with all validation examples.
        others: Makes candidates to try where the starting prompt's rewards are all the same and not full marks:
            where one of them is rewarded otherwise, there is something to optimise by after all.

    Raises:
        SignalError: There is no reward, or all rewards are the same.
    """
    examples = list({e.id: e for e in [*(search.val if with_val else []), *batch]}.values())
    await search.score([search.seed], examples, "start")
    rewards = search.scorer.rewards(search.seed, examples)
    if not any(reward is not None for reward in rewards):
        raise await _no_reward(search, examples)
    found = {r for r in rewards if r is not None}
    if len(found) > 1:
        return
    tried: list[float] = []
    candidates = await others() if others and max(found) < 1 else ()
    if candidates:
        tried = await _rewards_of(search, candidates, search.val[: max(LEAST_TO_COMPARE, len(search.val) // 4)])
        if set(tried) - found:
            return
    more = [e for e in [*search.train, *search.val] if search.scorer.cost(search.seed, [e])][:_FLAT_SAMPLE]
    room = search.purse.affordable_rollouts() / search.repeats
    more = more if math.isinf(room) else more[: int(room / 2)]
    for first in range(0, len(more), _FLAT_STEP):
        await search.score([search.seed], more[first : first + _FLAT_STEP], "start")
        if set(search.scorer.rewards(search.seed, more[: first + _FLAT_STEP])) - {None, *found}:
            return
    known = [r for r in search.scorer.rewards(search.seed, [*examples, *more]) if r is not None]
    if len(set(known)) == 1:
        also = f", and so are {len(tried)} of {len(candidates)} prompt(s) with examples" if tried else ""
        told = f"all {len(known)} rewards of the starting prompt are {known[0]:g}{also}"
        raise SignalError(
            f"There is nothing to optimise by: {told}.",
            hint="If the prompt is perfect, be glad. Else make the reward finer or the tasks more varied, or say "
            "flat_start=True (--flat-start) to try other prompts anyway.",
            details={"rewards": known[:20]},
        )


async def _rewards_of(search: Search, candidates: Sequence[Candidate], examples: Sequence[Example]) -> list[float]:
    fitting = search.fitting(candidates, examples)
    await search.score(fitting, examples, "start")
    return [r for c in fitting for r in search.scorer.rewards(c, examples) if r is not None]


async def _no_reward(search: Search, examples: Sequence[Example]) -> SignalError:
    scored = [search.scorer.scored(search.seed, example) for example in examples]
    reasons = Counter(f"error: {s.error.get('class', 'unknown')}" if s.error else "no reward" for s in scored)
    first = next((s for s in scored if s.error), scored[0])
    detail = f" First error: {first.error.get('message', first.error)}" if first.error else ""
    asked = [] if first.error else [judge_call(span) for span in await search.scorer.spans(first)]
    said = next((reply for reply in asked if reply is not None), None)
    if said is not None:
        detail = f" The judge {said.model!r} answered {said.text[:_SHOWN]!r}, which is no score."
    causes = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    return SignalError(
        f"There is nothing to optimise by: none of {len(scored)} rollouts has a reward ({causes}).{detail}",
        hint=f"See agl show {first.rollout_id}. Return a number from the agent, or give a reward function.",
        details={"rollout_id": first.rollout_id},
    )

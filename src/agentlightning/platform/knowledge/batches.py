"""Many items at once, without those that are there already in other words."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from agentlightning.platform.knowledge import repository, texts
from agentlightning.platform.knowledge.models import KnowledgeItem
from agentlightning.platform.knowledge.repository import Draft


async def add_batch(session: AsyncSession, drafts: Sequence[Draft], by: str) -> tuple[list[KnowledgeItem], int]:
    """Add those that are no near-duplicates of what is there or of each other; answers how many were."""
    wanted: list[Draft] = []
    seen: dict[int, list[set[int]]] = {}
    for draft in drafts:
        triples = texts.shingles(draft.text)
        signature = texts.bands(triples)
        near = (other for band in signature for other in seen.get(band, ()))
        if any(texts.likeness(triples, other) >= texts.ALIKE for other in near):
            continue
        if await repository.alike(session, draft.text) is not None:
            continue
        for band in signature:
            seen.setdefault(band, []).append(triples)
        wanted.append(draft)
    made = await repository.add(session, wanted, by) if wanted else []
    return made, len(drafts) - len(made)

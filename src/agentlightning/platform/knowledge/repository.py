"""Queries and changes of knowledge's tables. Each takes the session of its caller, whose transaction it is part of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import bindparam, delete, func, insert, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from agentlightning.kit.errors import NotFoundError
from agentlightning.platform.auth.models import MAX_NUMBER, NUMBER
from agentlightning.platform.columns import now
from agentlightning.platform.knowledge import texts
from agentlightning.platform.knowledge.models import (
    KnowledgeBand,
    KnowledgeImport,
    KnowledgeItem,
    KnowledgeSource,
    KnowledgeState,
    KnowledgeTag,
    KnowledgeVector,
    KnowledgeVersion,
)
from agentlightning.platform.lookups import Lookup

GENERATION = Lookup(select(KnowledgeState.generation, KnowledgeState.last_no, KnowledgeState.token))
"""Of what can be found now."""


_ITEM = (
    KnowledgeItem.id,
    KnowledgeItem.title,
    KnowledgeItem.content,
    KnowledgeItem.category,
    KnowledgeItem.tags,
    KnowledgeItem.about,
    KnowledgeItem.source,
    KnowledgeItem.version,
    KnowledgeItem.created_at,
    KnowledgeItem.updated_at,
    KnowledgeItem.created_by,
)
LOOK = Lookup(select(*_ITEM).where(KnowledgeItem.id == bindparam("item", type_=NUMBER)))
"""An `ItemRow`."""


class ItemRow(NamedTuple):
    """What is told of an item; fields as in `KnowledgeItem`."""

    id: int
    title: str
    content: str
    category: str | None
    tags: list[str]
    about: dict[str, Any]
    source: str | None
    version: int
    created_at: datetime
    updated_at: datetime
    created_by: str


@dataclass(frozen=True, slots=True)
class Draft:
    """An item before it has a number."""

    title: str
    content: str
    category: str | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    source: str | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return f"{self.title}\n{self.content}"


@dataclass(frozen=True, slots=True)
class Pending:
    """An item that waits for its vector."""

    id: int
    version: int
    text: str


async def add(session: AsyncSession, drafts: Sequence[Draft], by: str) -> list[KnowledgeItem]:
    """Add items with their first versions."""
    moment = now()
    items = [_item(draft, moment, by) for draft in drafts]
    session.add_all(items)
    await session.flush()
    await _index_text(session, [item.id for item in items])
    for item in items:
        _keep_version(session, item, by, moment)
        session.add_all(KnowledgeTag(tag=tag, item_id=item.id) for tag in item.tags)
    rows = [
        {"band": band, "item_id": item.id}
        for item in items
        for band in set(texts.bands(texts.shingles(f"{item.title}\n{item.content}")))
    ]
    if rows:
        await session.execute(insert(KnowledgeBand), rows)
    await count_change(session)
    return items


async def item(session: AsyncSession, item_id: int, *, lock: bool = False) -> KnowledgeItem:
    """The item.

    Raises:
        NotFoundError: There is none.
    """
    query = select(KnowledgeItem).where(KnowledgeItem.id == item_id)
    found = None
    if 0 < item_id <= MAX_NUMBER:
        found = (await session.execute(query.with_for_update() if lock else query)).scalar_one_or_none()
    if found is None:
        raise unknown()
    return found


def unknown() -> NotFoundError:
    """There is no item of that number."""
    return NotFoundError("There is no such item.", hint="GET /api/v2/knowledge")


async def change(session: AsyncSession, found: KnowledgeItem, draft: Draft, by: str) -> None:
    """Make it what the draft says; the next version."""
    moment = now()
    await _unindex_text(session, [found.id])
    text_changed = (draft.title, draft.content) != (found.title, found.content)
    found.title, found.content, found.category = draft.title, draft.content, draft.category
    found.tags, found.about = list(draft.tags), dict(draft.metadata)
    found.facets = texts.facets(draft.category, draft.tags)
    found.version += 1
    found.updated_at = moment
    _keep_version(session, found, by, moment)
    await session.execute(delete(KnowledgeTag).where(KnowledgeTag.item_id == found.id))
    session.add_all(KnowledgeTag(tag=tag, item_id=found.id) for tag in found.tags)
    if text_changed:
        found.content_hash = texts.content_hash(found.title, found.content)
        found.embedded_by = ""
        await session.execute(delete(KnowledgeBand).where(KnowledgeBand.item_id == found.id))
        session.add_all(
            KnowledgeBand(band=band, item_id=found.id) for band in set(texts.bands(texts.shingles(draft.text)))
        )
    await session.flush()
    await _index_text(session, [found.id])
    await count_change(session)


async def remove(session: AsyncSession, ids: Iterable[int]) -> None:
    """Remove items with all that belongs to them."""
    removed = list(ids)
    await _unindex_text(session, removed)
    await session.execute(delete(KnowledgeItem).where(KnowledgeItem.id.in_(removed)))
    await count_change(session)


async def page(
    session: AsyncSession, after: int, limit: int, category: str | None, tags: Sequence[str]
) -> list[KnowledgeItem]:
    """By number; with this category and all of these tags."""
    query = select(KnowledgeItem).order_by(KnowledgeItem.id).limit(limit)
    if category is not None:
        query = query.where(KnowledgeItem.category == category)
    for place, tag in enumerate(tags):
        tagged = select(KnowledgeTag.item_id).where(KnowledgeTag.tag == tag, KnowledgeTag.item_id > after)
        if place == 0 and category is None:  # the tag's own order, without sorting what it has
            ids = tagged.order_by(KnowledgeTag.item_id).limit(limit) if len(tags) == 1 else tagged
            query = query.where(KnowledgeItem.id.in_(ids))
        else:
            query = query.where(KnowledgeItem.id.in_(tagged))
    return list((await session.execute(query.where(KnowledgeItem.id > after))).scalars())


async def versions(session: AsyncSession, item_id: int, before: int | None, limit: int) -> list[KnowledgeVersion]:
    """Newest first."""
    query = select(KnowledgeVersion).where(KnowledgeVersion.item_id == item_id)
    if before is not None:
        query = query.where(KnowledgeVersion.version < before)
    return list((await session.execute(query.order_by(KnowledgeVersion.version.desc()).limit(limit))).scalars())


async def items_of(session: AsyncSession, ids: Sequence[int]) -> dict[int, KnowledgeItem]:
    """Those that are there, by number."""
    if not ids:
        return {}
    found = (await session.execute(select(KnowledgeItem).where(KnowledgeItem.id.in_(ids)))).scalars()
    return {item.id: item for item in found}


async def filtered_ids(session: AsyncSession, category: str | None, tags: Sequence[str], most: int) -> list[int] | None:
    """Numbers of the items with this category and all of these tags; `None` if there are more than `most`."""
    conditions = [KnowledgeTag.tag == tag for tag in tags]
    if category is not None:
        query = select(KnowledgeItem.id).where(KnowledgeItem.category == category)
    else:
        query = select(KnowledgeTag.item_id).where(conditions.pop(0))
    column = KnowledgeItem.id if category is not None else KnowledgeTag.item_id
    for condition in conditions:
        query = query.where(column.in_(select(KnowledgeTag.item_id).where(condition)))
    ids = list((await session.execute(query.limit(most + 1))).scalars())
    return ids if len(ids) <= most else None


async def passing(session: AsyncSession, ids: Sequence[int], category: str | None, tags: Sequence[str]) -> set[int]:
    """Those of the items that have the category and all of the tags."""
    found: set[int] = set()
    for start in range(0, len(ids), 5_000):  # bound values have a limit
        query = select(KnowledgeItem.id).where(KnowledgeItem.id.in_(ids[start : start + 5_000]))
        if category is not None:
            query = query.where(KnowledgeItem.category == category)
        for tag in tags:
            tagged = select(KnowledgeTag.item_id).where(
                KnowledgeTag.tag == tag, KnowledgeTag.item_id == KnowledgeItem.id
            )
            query = query.where(tagged.exists())
        found.update((await session.execute(query)).scalars())
    return found


async def alike(session: AsyncSession, content: str, *, least: float = texts.ALIKE) -> tuple[int, float] | None:
    """The item that is most like `content`, and by how much, if that is a near-duplicate."""
    triples = texts.shingles(content)
    query = select(KnowledgeBand.item_id).where(KnowledgeBand.band.in_(texts.bands(triples))).distinct().limit(50)
    ids = list((await session.execute(query)).scalars())
    best: tuple[int, float] | None = None
    for other in (await items_of(session, ids)).values():
        share = texts.likeness(triples, texts.shingles(f"{other.title}\n{other.content}"))
        if share >= least and (best is None or share > best[1]):
            best = (other.id, share)
    return best


async def count_change(session: AsyncSession) -> None:
    """Later searches are other searches. Last in a transaction: on PostgreSQL writers wait for each other here."""
    await session.execute(update(KnowledgeState).values(generation=KnowledgeState.generation + 1))


async def pending(session: AsyncSession, embedder: str, limit: int) -> list[Pending]:
    """Items without a vector of this embedder, by two ranges of an index."""
    column = KnowledgeItem.embedded_by
    found: list[Pending] = []
    for condition in (column < embedder, column > embedder):
        query = select(KnowledgeItem.id, KnowledgeItem.version, KnowledgeItem.title, KnowledgeItem.content)
        rows = await session.execute(query.where(condition).order_by(column).limit(limit - len(found)))
        found += [Pending(row.id, row.version, f"{row.title}\n{row.content}") for row in rows]
        if len(found) >= limit:
            break
    return found


async def count_pending(session: AsyncSession, embedder: str, most: int = 10_000) -> int:
    """How many there are, up to `most`."""
    column = KnowledgeItem.embedded_by
    query = select(KnowledgeItem.id).where(or_(column < embedder, column > embedder)).limit(most)
    return (await session.execute(select(func.count()).select_from(query.subquery()))).scalar_one()


async def keep_vectors(
    session: AsyncSession, embedder: str, of: Sequence[Pending], vectors: Sequence[bytes]
) -> list[int]:
    """Keep them for the items that have not changed meanwhile; answers those."""
    wanted = {entry.id: entry.version for entry in of}
    query = select(KnowledgeItem.id, KnowledgeItem.version).where(KnowledgeItem.id.in_(wanted)).with_for_update()
    same = [row.id for row in await session.execute(query) if wanted[row.id] == row.version]
    counting = update(KnowledgeState).values(last_no=KnowledgeState.last_no + len(same), generation=_next_generation())
    last = (await session.execute(counting.returning(KnowledgeState.last_no))).scalar_one()
    await session.execute(delete(KnowledgeVector).where(KnowledgeVector.item_id.in_(same)))
    bytes_of = {entry.id: vector for entry, vector in zip(of, vectors, strict=True)}
    rows = [
        {"item_id": number, "embedder": embedder, "no": last - len(same) + 1 + place, "vector": bytes_of[number]}
        for place, number in enumerate(sorted(same))
    ]
    if rows:
        await session.execute(insert(KnowledgeVector), rows)
        marking = update(KnowledgeItem).where(KnowledgeItem.id == bindparam("item"))
        connection = await session.connection()
        await connection.execute(
            marking.values(embedded_by=bindparam("embedder")),
            [{"item": number, "embedder": embedder} for number in same],
        )
    return sorted(same)


def _next_generation() -> Any:
    return KnowledgeState.generation + 1


async def vectors_after(session: AsyncSession, embedder: str, no: int, limit: int) -> list[tuple[int, int, bytes]]:
    """`(no, item, vector)` in the order in which they were written."""
    query = select(KnowledgeVector.no, KnowledgeVector.item_id, KnowledgeVector.vector)
    query = query.where(KnowledgeVector.embedder == embedder, KnowledgeVector.no > no).order_by(KnowledgeVector.no)
    return [(row.no, row.item_id, row.vector) for row in await session.execute(query.limit(limit))]


async def sources(session: AsyncSession, names: Sequence[str]) -> dict[str, str]:
    """Hashes of those that were imported."""
    query = select(KnowledgeSource.source, KnowledgeSource.hash).where(KnowledgeSource.source.in_(names))
    return {row.source: row.hash for row in await session.execute(query)}


async def replace_source(session: AsyncSession, name: str, hash_: str, items: int) -> None:
    """Note that it was imported as it is now."""
    await session.execute(delete(KnowledgeSource).where(KnowledgeSource.source == name))
    session.add(KnowledgeSource(source=name, hash=hash_, items=items, imported_at=now()))


async def ids_of_source(session: AsyncSession, name: str) -> list[int]:
    """Items that were imported from it."""
    return list((await session.execute(select(KnowledgeItem.id).where(KnowledgeItem.source == name))).scalars())


async def import_of(session: AsyncSession, number: int, *, lock: bool = False) -> KnowledgeImport:
    """A background import.

    Raises:
        NotFoundError: There is none.
    """
    query = select(KnowledgeImport).where(KnowledgeImport.id == number)
    found = None
    if 0 < number <= MAX_NUMBER:
        found = (await session.execute(query.with_for_update() if lock else query)).scalar_one_or_none()
    if found is None:
        raise NotFoundError("There is no such import.")
    return found


async def _index_text(session: AsyncSession, ids: Sequence[int]) -> None:
    """Add to FTS5. PostgreSQL's index is a column of the item."""
    await _write_text(session, "knowledge_fts(rowid, title, content, facets)", "", ids)


async def _unindex_text(session: AsyncSession, ids: Sequence[int]) -> None:
    """Remove from FTS5, while the item still is what it was when it was added."""
    await _write_text(session, "knowledge_fts(knowledge_fts, rowid, title, content, facets)", "'delete', ", ids)


async def _write_text(session: AsyncSession, into: str, command: str, ids: Sequence[int]) -> None:
    if session.get_bind().dialect.name != "sqlite" or not ids:
        return
    statement = f"INSERT INTO {into} SELECT {command}id, title, content, facets FROM knowledge_items WHERE id IN :ids"
    for start in range(0, len(ids), 5_000):
        part = {"ids": list(ids[start : start + 5_000])}
        await session.execute(text(statement).bindparams(bindparam("ids", expanding=True)), part)


def _item(draft: Draft, moment: datetime, by: str) -> KnowledgeItem:
    return KnowledgeItem(
        title=draft.title,
        content=draft.content,
        category=draft.category,
        tags=list(draft.tags),
        about=dict(draft.metadata),
        created_at=moment,
        updated_at=moment,
        created_by=by,
        version=1,
        content_hash=texts.content_hash(draft.title, draft.content),
        source=draft.source,
        facets=texts.facets(draft.category, draft.tags),
        embedded_by="",
    )


def _keep_version(session: AsyncSession, item: KnowledgeItem, by: str, moment: datetime) -> None:
    session.add(
        KnowledgeVersion(
            item_id=item.id,
            version=item.version,
            title=item.title,
            content=item.content,
            category=item.category,
            tags=item.tags,
            about=item.about,
            created_at=moment,
            created_by=by,
        )
    )

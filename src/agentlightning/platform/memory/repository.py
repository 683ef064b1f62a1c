"""Queries and changes of memory's tables. Every one of them names the user: there is no way to ask for others' rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from agentlightning.kit.errors import NotFoundError
from agentlightning.platform.auth.models import MAX_NUMBER
from agentlightning.platform.columns import now
from agentlightning.platform.memory.models import Conversation, ConversationMessage, Memory


async def conversation(session: AsyncSession, user: int, session_id: str, *, lock: bool = False) -> Conversation | None:
    """The user's session of that name."""
    query = select(Conversation).where(Conversation.user_id == user, Conversation.session_id == session_id)
    return (await session.execute(query.with_for_update() if lock else query)).scalar_one_or_none()


async def conversations(session: AsyncSession, user: int, before: int | None, limit: int) -> list[Conversation]:
    """The user's, newest first."""
    query = select(Conversation).where(Conversation.user_id == user).order_by(Conversation.id.desc()).limit(limit)
    if before is not None:
        query = query.where(Conversation.id < before)
    return list((await session.execute(query)).scalars())


async def append(session: AsyncSession, user: int, session_id: str, messages: Sequence[dict[str, Any]]) -> Conversation:
    """Add messages to the user's session, which is made if it is not there."""
    moment = now()
    found = await conversation(session, user, session_id, lock=True)
    if found is None:
        found = Conversation(
            user_id=user,
            session_id=session_id,
            summary="",
            summarised=0,
            truncated=False,
            messages=0,
            created_at=moment,
            updated_at=moment,
        )
        session.add(found)
        await session.flush()
    session.add_all(
        ConversationMessage(
            conversation_id=found.id,
            position=found.messages + place,
            type=str(message.get("type", ""))[:32],
            message=message,
            created_at=moment,
        )
        for place, message in enumerate(messages)
    )
    found.messages += len(messages)
    found.updated_at = moment
    return found


async def messages(session: AsyncSession, found: Conversation, start: int, limit: int) -> list[ConversationMessage]:
    """Of a session, from position `start` on."""
    query = select(ConversationMessage).where(
        ConversationMessage.conversation_id == found.id, ConversationMessage.position >= start
    )
    return list((await session.execute(query.order_by(ConversationMessage.position).limit(limit))).scalars())


async def summarise(session: AsyncSession, found: Conversation, seen: int, summary: str | None, upto: int) -> bool:
    """Replace the summary (`None`: messages are left out without one), unless somebody replaced what was `seen`."""
    values: dict[str, Any] = {"summarised": upto}
    values |= {"truncated": True} if summary is None else {"summary": summary}
    changing = update(Conversation).where(Conversation.id == found.id, Conversation.summarised == seen).values(**values)
    done = await session.execute(changing.execution_options(synchronize_session=False).returning(Conversation.id))
    return done.scalar() is not None


async def forget_conversation(session: AsyncSession, user: int, session_id: str) -> None:
    """Remove the user's session.

    Raises:
        NotFoundError: The user has none of that name; somebody else's is no other case.
    """
    query = delete(Conversation).where(Conversation.user_id == user, Conversation.session_id == session_id)
    if (await session.execute(query.returning(Conversation.id))).scalar() is None:
        raise NotFoundError("There is no such session.")


async def memory(session: AsyncSession, user: int, number: int, *, lock: bool = False) -> Memory:
    """A memory of the user.

    Raises:
        NotFoundError: The user has none of that number; somebody else's is no other case.
    """
    query = select(Memory).where(Memory.id == number, Memory.user_id == user)
    found = None
    if 0 < number <= MAX_NUMBER:
        found = (await session.execute(query.with_for_update() if lock else query)).scalar_one_or_none()
    if found is None:
        raise NotFoundError("There is no such memory.")
    return found


async def memories(
    session: AsyncSession, user: int, before: int | None, limit: int, kind: str | None = None
) -> list[Memory]:
    """The user's, newest first."""
    query = select(Memory).where(Memory.user_id == user).order_by(Memory.id.desc()).limit(limit)
    if before is not None:
        query = query.where(Memory.id < before)
    if kind is not None:
        query = query.where(Memory.kind == kind)
    return list((await session.execute(query)).scalars())


async def same_memory(session: AsyncSession, user: int, text_hash: str) -> Memory | None:
    """The user's memory with that text."""
    query = select(Memory).where(Memory.user_id == user, Memory.text_hash == text_hash)
    return (await session.execute(query)).scalar_one_or_none()


async def count(session: AsyncSession, user: int) -> int:
    """How many memories the user has."""
    return (await session.execute(select(func.count()).where(Memory.user_id == user))).scalar_one()


async def vectors(session: AsyncSession, user: int, kind: str | None = None) -> list[Any]:
    """`(id, embedder, vector, text)` of all that the user has."""
    query = select(Memory.id, Memory.embedder, Memory.vector, Memory.text).where(Memory.user_id == user)
    if kind is not None:
        query = query.where(Memory.kind == kind)
    return list(await session.execute(query))


async def by_number(session: AsyncSession, user: int, numbers: Sequence[int]) -> dict[int, Memory]:
    """Those of the user's memories."""
    query = select(Memory).where(Memory.user_id == user, Memory.id.in_(numbers))
    return {found.id: found for found in (await session.execute(query)).scalars()}


async def set_vectors(session: AsyncSession, user: int, embedder: str, of: dict[int, bytes]) -> None:
    """Vectors of another embedder."""
    for number, vector in of.items():
        changing = update(Memory).where(Memory.id == number, Memory.user_id == user)
        await session.execute(changing.values(embedder=embedder, vector=vector))


async def note_recalls(session: AsyncSession, user: int, numbers: Sequence[int]) -> None:
    """They were of use."""
    changing = update(Memory).where(Memory.user_id == user, Memory.id.in_(numbers))
    changing = changing.values(recalled_at=now(), recalls=Memory.recalls + 1)
    await session.execute(changing.execution_options(synchronize_session=False))

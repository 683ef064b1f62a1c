"""Snapshots of resources; the one with the highest `position` is the latest."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from agentlightning.kit.clock import now
from agentlightning.kit.db import Row, Session
from agentlightning.kit.errors import NotFoundError
from agentlightning.kit.ids import new_id
from agentlightning.schemas import NamedResources, ResourcesUpdate
from agentlightning.schemas.building import construct
from agentlightning.store import verbs
from agentlightning.store.ops import events, payloads
from agentlightning.store.records import bad_model, pack, unpack

RESOURCES_COLUMNS = "resources_id, create_time, update_time, version, packed_resources"

_adapter: TypeAdapter[NamedResources] = TypeAdapter(NamedResources)

_MEMO = "latest resources"
_LATEST = f"SELECT {RESOURCES_COLUMNS} FROM resources ORDER BY position DESC LIMIT 1"
_NEXT_POSITION = "(SELECT coalesce(max(position), 0) + 1 FROM resources)"
_ADD = f"""INSERT INTO resources (resources_id, create_time, update_time, version, packed_resources, position)
    VALUES (:resources_id, :now, :now, 1, :packed, {_NEXT_POSITION}) RETURNING {RESOURCES_COLUMNS}"""
_REPLACE = f"""UPDATE resources SET update_time = :now, version = version + 1, packed_resources = :packed,
    position = {_NEXT_POSITION} WHERE resources_id = :resources_id RETURNING {RESOURCES_COLUMNS}"""


def resources_from_rows(db: Session, rows: list[Row]) -> list[ResourcesUpdate]:
    """From `RESOURCES_COLUMNS`, with large values put back."""
    return [_from_row(row) for row in payloads.resolve(db, rows, 4)]


def _from_row(row: Row) -> ResourcesUpdate:
    return construct(
        ResourcesUpdate,
        {
            "resources_id": row[0],
            "create_time": row[1],
            "update_time": row[2],
            "version": row[3],
            "resources": _adapter.validate_python(unpack(row[4])),
        },
    )


def _pack_resources(resources: dict[str, Any]) -> bytes:
    try:
        checked = _adapter.validate_python(resources)
    except ValidationError as error:
        raise bad_model(error) from error
    return pack(_adapter.dump_python(checked), "The resources")


def _unknown(resources_id: str) -> NotFoundError:
    return NotFoundError(
        f"There are no resources {resources_id!r}.",
        hint="Add them with add_resources(), or pass None for the latest.",
        details={"resources_id": resources_id},
    )


def latest_id(db: Session) -> str | None:
    """Id of the latest snapshot."""
    if _MEMO not in db.memo:
        row = db.first("SELECT resources_id FROM resources ORDER BY position DESC LIMIT 1")
        db.memo[_MEMO] = None if row is None else row[0]
    return db.memo[_MEMO]


def require(db: Session, resources_id: str) -> None:
    """Check that the snapshot exists.

    Raises:
        NotFoundError: It does not.
    """
    found = db.first("SELECT 1 FROM resources WHERE resources_id = :id", {"id": resources_id})
    if found is None:
        raise _unknown(resources_id)


def add_resources(db: Session, verb: verbs.AddResources) -> ResourcesUpdate:
    """See `LightningStore.add_resources`."""
    params = {"resources_id": new_id("rs"), "now": now(), "packed": _pack_resources(verb.resources)}
    db.memo.pop(_MEMO, None)
    rows = db.all(_ADD, payloads.stashed_one(db, params, "packed"))
    _record(db, "resource.added", rows[0])
    return resources_from_rows(db, rows)[0]


def update_resources(db: Session, verb: verbs.UpdateResources) -> ResourcesUpdate:
    """See `LightningStore.update_resources`."""
    params = {"resources_id": verb.resources_id, "now": now(), "packed": _pack_resources(verb.resources)}
    db.memo.pop(_MEMO, None)
    rows = db.all(_REPLACE, payloads.stashed_one(db, params, "packed"))
    if not rows:
        raise _unknown(verb.resources_id)
    _record(db, "resource.updated", rows[0])
    return resources_from_rows(db, rows)[0]


def _record(db: Session, kind: str, row: Row) -> None:
    """With the content: the next update overwrites it."""
    data = dict(zip(("resources_id", "create_time", "update_time", "version"), row, strict=False))
    events.record(db, kind, {**data, "resources": events.packed(row[4])})


def get_resources_by_id(db: Session, verb: verbs.GetResourcesById) -> ResourcesUpdate | None:
    """See `LightningStore.get_resources_by_id`."""
    row = db.first(f"SELECT {RESOURCES_COLUMNS} FROM resources WHERE resources_id = :id", {"id": verb.resources_id})
    return None if row is None else resources_from_rows(db, [row])[0]


def get_latest_resources(db: Session, verb: verbs.GetLatestResources) -> ResourcesUpdate | None:
    """See `LightningStore.get_latest_resources`."""
    row = db.first(_LATEST)
    return None if row is None else resources_from_rows(db, [row])[0]

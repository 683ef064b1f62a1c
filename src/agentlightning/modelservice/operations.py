"""The management API: what can be asked of a model service over HTTP, as a table of operations.

Each operation is written once; routes and the OpenAPI description come from the table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import msgspec
from pydantic import Field

from agentlightning.config import ModelSpec, StrictModel
from agentlightning.modelservice.served import ServedModel
from agentlightning.modelservice.service import ModelService
from agentlightning.registry import ModelRegistry, ModelVersion

_T = TypeVar("_T")


class Change(StrictModel):
    """A change of a version's stage."""

    version: str = Field(pattern=r"^(v[1-9][0-9]*|latest|candidate|production)$")
    """`v3`, or `latest`."""
    reason: str = Field(default="", max_length=2000)
    force: bool = False
    """Archive it even if it is in production."""


class Reason(StrictModel):
    """Why something is done; kept in the history."""

    reason: str = Field(default="", max_length=2000)


@dataclass(frozen=True)
class Ask:
    """A request, read."""

    name: str = ""
    version: str = ""
    body: Any = None
    flags: frozenset[str] = frozenset()
    """Query parameters that are set to true."""


@dataclass(frozen=True)
class Result:
    """What is answered: `data` in the envelope."""

    data: Any
    message: str = ""
    status: int = 200


Handle = Callable[[ModelService, Ask], Awaitable[Result]]


@dataclass(frozen=True)
class Operation:
    """One method on one path."""

    method: str
    path: str
    summary: str
    handle: Handle
    body: type[StrictModel] | None = None
    flags: tuple[tuple[str, str], ...] = ()
    """Query parameters that may be true, with what they do."""
    status: int = 200


# -- models ----------------------------------------


async def _list(service: ModelService, ask: Ask) -> Result:
    return Result(list(await asyncio.gather(*(_facts(service, served) for served in service.models))))


async def _get(service: ModelService, ask: Ask) -> Result:
    return Result(await _facts(service, service.get(ask.name)))


async def _add(service: ModelService, ask: Ask) -> Result:
    spec: ModelSpec = ask.body
    served = service.add(spec)
    if not spec.lazy:
        await _loaded(served, wait="wait" in ask.flags)
    return Result(await _facts(service, served), f"{spec.name} is served", 201)


async def _remove(service: ModelService, ask: Ask) -> Result:
    await service.remove(ask.name)
    return Result({"id": ask.name}, f"{ask.name} is served no more")


async def _load(service: ModelService, ask: Ask) -> Result:
    served = service.get(ask.name)
    await _loaded(served, wait="wait" in ask.flags)
    is_ready = served.state == "ready"
    return Result(await _facts(service, served), f"{ask.name} is {served.state}", 200 if is_ready else 202)


async def _unload(service: ModelService, ask: Ask) -> Result:
    served = service.get(ask.name)
    await served.unload()
    return Result(await _facts(service, served), f"{ask.name} is {served.state}")


async def _loaded(served: ServedModel, *, wait: bool) -> None:
    if wait:
        await served.load()
    else:
        served.start_loading()


async def _facts(service: ModelService, served: ServedModel) -> dict[str, Any]:
    facts = await service.describe(served)
    return {**facts, "object": "model", "created": int(service.started_at), "owned_by": "agentlightning"}


# -- registry ----------------------------------------


async def _registered(service: ModelService, ask: Ask) -> Result:
    registry = service.registry

    def read() -> list[dict[str, Any]]:
        return [_model_facts(registry, name) for name in registry.names()]

    return Result(await asyncio.to_thread(read))


async def _versions(service: ModelService, ask: Ask) -> Result:
    def read() -> dict[str, Any]:
        service.registry.get(ask.name)  # a name that is not registered is an error
        return _model_facts(service.registry, ask.name)

    return Result(await asyncio.to_thread(read))


async def _promote(service: ModelService, ask: Ask) -> Result:
    ref = f"{ask.name}@{ask.body.version}"
    version = await _changed(service, lambda: service.registry.promote(ref, reason=ask.body.reason))
    return Result(_version_facts(version), f"{version.ref} is in production")


async def _rollback(service: ModelService, ask: Ask) -> Result:
    version = await _changed(service, lambda: service.registry.rollback(ask.name, reason=ask.body.reason))
    return Result(_version_facts(version), f"{version.ref} is in production again")


async def _archive(service: ModelService, ask: Ask) -> Result:
    ref, body = f"{ask.name}@{ask.body.version}", ask.body
    version = await _changed(service, lambda: service.registry.archive(ref, reason=body.reason, force=body.force))
    return Result(_version_facts(version), f"{version.ref} is archived")


async def _delete(service: ModelService, ask: Ask) -> Result:
    ref = f"{ask.name}@{ask.version}"
    await _changed(service, lambda: service.registry.delete(ref, force="force" in ask.flags))
    return Result({"ref": ref}, f"{ref} is deleted")


async def _changed(service: ModelService, change: Callable[[], _T]) -> _T:
    """Change the registry, which may wait for another process, and let the models follow at once."""
    done = await asyncio.to_thread(change)
    await service.look()
    return done


def _version_facts(version: ModelVersion) -> dict[str, Any]:
    return {"ref": version.ref, **asdict(version), "path": str(version.path)}


def _model_facts(registry: ModelRegistry, name: str) -> dict[str, Any]:
    versions = registry.versions(name)
    return {
        "name": name,
        "production": next((v.version for v in versions if v.stage == "production"), None),
        "versions": [_version_facts(version) for version in versions],
        "history": [msgspec.structs.asdict(change) for change in registry.history(name)],
    }


_WAIT = (("wait", "answer when it is loaded, or failed"),)

OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/models", "List served models with their state.", _list),
    Operation("POST", "/models", "Serve a model, and load it unless it is lazy.", _add, ModelSpec, _WAIT, 201),
    Operation("POST", "/models/{name:path}/load", "Load a model.", _load, flags=_WAIT, status=202),
    Operation("POST", "/models/{name:path}/unload", "Finish the calls under way, then unload.", _unload),
    Operation("GET", "/models/{name:path}", "Show a served model.", _get),
    Operation("DELETE", "/models/{name:path}", "Unload a model and serve it no more.", _remove),
    Operation("GET", "/registry", "List registered models with versions and history.", _registered),
    Operation("GET", "/registry/{name}", "Show a registered model.", _versions),
    Operation("POST", "/registry/{name}/promote", "Put a version into production.", _promote, Change),
    Operation("POST", "/registry/{name}/rollback", "Put the earlier production version back.", _rollback, Reason),
    Operation("POST", "/registry/{name}/archive", "Archive a version.", _archive, Change),
    Operation(
        "DELETE",
        "/registry/{name}/{version}",
        "Delete a version and its files.",
        _delete,
        flags=(("force", "even if it is in production"),),
    ),
)

"""The description of the API: FastAPI's, with who may call what and every status an answer may have. Calls nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from agentlightning.platform.auth.permissions import LOGIN, PUBLIC, rule_of
from agentlightning.platform.envelope import Failure

FAILURES: Mapping[int | str, dict[str, Any]] = MappingProxyType(
    {"default": {"model": Failure, "description": "The error, with what to do next"}}
)
"""For `FastAPI(responses=...)`: brings the shape of errors into the description; `described` says which there are."""

_SAID: Mapping[str, str] = MappingProxyType(
    {
        "400": "The service is not known under this name (HOST_UNKNOWN), or the request cannot be read",
        "401": "No token or key, or one that is wrong, expired or revoked",
        "403": "The role or the key may not do this, or the page that asks is from elsewhere",
        "404": "There is no such thing, or it is somebody else's",
        "408": "The body did not arrive in time",
        "409": "It contradicts what is there: a name that is taken, another version, a state that does not allow it",
        "412": "If-Match names another version than the current one",
        "413": "The body is larger than allowed",
        "422": "The request is not what this call takes; details say where",
        "428": "A change needs the version that it is based on",
        "429": "Too many requests; Retry-After says when to try again",
        "503": "What is needed does not answer or is not configured, e.g. the database or a model; the hint says what",
        "5XX": "Another failure here or behind this service",
    }
)
_SHAPE = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}}}
_READS = ("get", "head")


def described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description of an application; made once."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemes = found.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["token"] = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
        schemes["key"] = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
        for path, operations in found.get("paths", {}).items():
            for method, operation in operations.items():
                _complete(operation, method, path)
        app.openapi_schema = found
    return app.openapi_schema


def _complete(operation: dict[str, Any], method: str, path: str) -> None:
    rule = rule_of(method.upper(), path) or "nobody"
    operation["summary"] = str(operation.get("description", "")).partition("\n\n")[0]
    operation["x-permission"] = rule
    ways: list[dict[str, list[str]]] = [{"token": []}, {"key": []}]
    operation["security"] = [] if rule == PUBLIC else ways[:1] if rule == LOGIN else ways
    responses = operation["responses"]
    responses.pop("default", None)
    for status in sorted(set(_statuses(operation, method, rule)) - set(responses)):
        responses[status] = {"description": _SAID[status], **_SHAPE}


def _statuses(operation: dict[str, Any], method: str, rule: str) -> Iterator[str]:
    """What an operation may answer when it fails."""
    yield from ("400", "429", "503", "5XX")
    parameters = operation.get("parameters", [])
    if rule != PUBLIC or method not in _READS:
        yield from ("401", "403")
    if parameters or "requestBody" in operation:
        yield from ("404", "422")  # 404: also what a filter or a body refers to
    if "requestBody" in operation:
        yield from ("408", "413")
    if method not in _READS:
        yield "409"
    if any(parameter["name"].lower() == "if-match" for parameter in parameters):
        yield from ("412", "428")

"""The management API described: as OpenAPI 3.1, and as a page that needs no network. Pure."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from typing import Any

from agentlightning import __version__
from agentlightning.modelservice.operations import Operation

_TITLE = "Agent Lightning model service"
_ABOUT = (
    "Loads, swaps and unloads models. The models themselves answer at /v1/chat/completions, /v1/completions, "
    "/v1/responses and /v1/messages, as OpenAI's and Anthropic's clients ask."
)
_ENVELOPE = {
    "type": "object",
    "required": ["success", "timestamp", "request_id"],
    "properties": {
        "success": {"type": "boolean"},
        "data": {},
        "message": {"type": "string"},
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "hint": {"type": "string"},
                "details": {"type": "object"},
            },
        },
        "timestamp": {"type": "string", "format": "date-time"},
        "request_id": {"type": "string"},
    },
}


def as_openapi(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI document."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {"Envelope": _ENVELOPE}
    for operation in operations:
        body = operation.body
        if body is not None:
            schemas[body.__name__] = body.model_json_schema()
        paths.setdefault(_plain(operation.path), {})[operation.method.lower()] = _described(operation)
    for path, summary, kind in (
        ("/health", "Whether the service answers, and how its models are.", "application/json"),
        ("/metrics", "Counters in Prometheus' text format.", "text/plain"),
    ):
        paths[path] = {"get": {"summary": summary, "responses": {"200": {"description": "OK", "content": {kind: {}}}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": _TITLE, "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _described(operation: Operation) -> dict[str, Any]:
    answer = {"application/json": {"schema": {"$ref": "#/components/schemas/Envelope"}}}
    names = re.findall(r"{(\w+)", operation.path)
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method.lower()}{re.sub(r'[^a-z]+', '_', operation.path.replace(':path', ''))}",
        "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
        + [
            {"name": name, "in": "query", "description": what, "schema": {"type": "boolean", "default": False}}
            for name, what in operation.flags
        ],
        "responses": {
            str(operation.status): {"description": "Done", "content": answer},
            "default": {"description": "The error, with what to do next", "content": answer},
        },
        "security": [{}, {"token": []}],
    }
    if operation.body is not None:
        schema = {"$ref": f"#/components/schemas/{operation.body.__name__}"}
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described


def as_html(operations: Sequence[Operation]) -> str:
    """The page at `/docs`."""
    rows: list[str] = []
    for operation in operations:
        flags = "".join(f"<br><code>?{name}=true</code> {html.escape(what)}" for name, what in operation.flags)
        fields = ""
        if operation.body is not None:
            properties = operation.body.model_json_schema().get("properties", {})
            described = "\n".join(f"{name}: {_type(value)}" for name, value in properties.items())
            fields = (
                f"<details><summary>{operation.body.__name__}</summary><pre>{html.escape(described)}</pre></details>"
            )
        path = html.escape(_plain(operation.path))
        rows.append(
            f"<tr><td><b>{operation.method}</b></td><td><code>{path}</code></td>"
            f"<td>{html.escape(operation.summary)}{flags}{fields}</td></tr>"
        )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_TITLE}</title>"
        "<style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
        "td{padding:.4rem 1rem .4rem 0;vertical-align:top;border-top:1px solid #8884}table{border-collapse:collapse}"
        "</style>"
        f"<h1>{_TITLE}</h1><p>{html.escape(_ABOUT)}</p><p><a href=openapi.json>openapi.json</a> · "
        f"<a href=health>health</a> · <a href=metrics>metrics</a></p><table>{''.join(rows)}</table></html>"
    )


def _type(schema: dict[str, Any]) -> str:
    options = schema.get("anyOf") or [schema]
    names = ["|".join(map(json.dumps, o["enum"])) if "enum" in o else str(o.get("type", "any")) for o in options]
    default = f" = {json.dumps(schema['default'])}" if "default" in schema else ""
    return " | ".join(names) + default


def _plain(path: str) -> str:
    return path.replace(":path", "")

"""The page at `/docs`: the API as plain HTML, without scripts, so that it works offline and under a strict policy."""

from __future__ import annotations

import html
from typing import Any

STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem}
:root{color-scheme:light dark}
td{padding:.4rem 1rem .4rem 0;vertical-align:top;border-top:1px solid #8884}table{border-collapse:collapse;width:100%}
code{font-size:.9em}pre{margin:.3rem 0}h2{margin-top:2rem}"""

_METHODS = ("get", "post", "put", "patch", "delete")


def docs_page(description: dict[str, Any]) -> str:
    """HTML for an OpenAPI description."""
    title = html.escape(str(description["info"]["title"]))
    schemas = description.get("components", {}).get("schemas", {})
    rows = "".join(
        _row(method, path, operations[method], schemas)
        for path, operations in description.get("paths", {}).items()
        for method in _METHODS
        if method in operations
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<meta name=viewport content='width=device-width'><link rel=stylesheet href=/docs/style.css><h1>{title}</h1>"
        f"<p>{html.escape(str(description['info'].get('description', '')))}</p>"
        "<p><a href=/openapi.json>openapi.json</a> · <a href=/api/v2/health>health</a></p>"
        f"<table><tr><th align=left>Call</th><th align=left>What it does</th><th align=left>Who may</th></tr>{rows}"
        "</table></html>"
    )


def _row(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    name = str(body.get("$ref", "")).rpartition("/")[2]
    fields = ""
    if name in schemas:
        required = set(schemas[name].get("required", ()))
        lines = "\n".join(
            f"{field}: {_kind(about)}{'' if field in required else '  (optional)'}"
            for field, about in schemas[name].get("properties", {}).items()
        )
        fields = f"<details><summary>body</summary><pre>{html.escape(lines)}</pre></details>"
    queries = ", ".join(f"{item['name']}" for item in operation.get("parameters", ()) if item["in"] == "query")
    asked = f"<br><small>query: {html.escape(queries)}</small>" if queries else ""
    return (
        f"<tr><td><b>{method.upper()}</b> <code>{html.escape(path)}</code></td>"
        f"<td>{html.escape(str(operation.get('summary', '')))}{asked}{fields}</td>"
        f"<td><code>{html.escape(str(operation.get('x-permission', '')))}</code></td></tr>"
    )


def _kind(about: dict[str, Any]) -> str:
    options = about.get("anyOf") or [about]
    return " or ".join(
        "|".join(map(str, option.get("enum", ()))) or str(option.get("type", "any")) for option in options
    )

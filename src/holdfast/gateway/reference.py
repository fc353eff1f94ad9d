"""GET /docs: the description of /openapi.json for people, one page without a script."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from holdfast.gateway.gate import Gate
from holdfast.gateway.routes import Answer, Operation

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "code,pre{font:13px/1.45 ui-monospace,monospace}pre{overflow-x:auto}h2{margin-top:2.2rem;font-size:1.05rem}"
    "td{padding:.1rem .8rem .1rem 0;vertical-align:top}"
)
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def render(description: dict[str, Any]) -> str:
    """The page of an OpenAPI document as `openapi.describe` makes it."""
    info = description["info"]
    schemas = description["components"]["schemas"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['summary'])}</p>",
        f"<p>{escape(info['description'])} For programs: <a href=openapi.json>openapi.json</a>.</p>",
    ]
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(path, method, operation))
    parts.append("<h1>Shapes</h1>")
    for name, schema in sorted(schemas.items()):
        parts.append(f"<h2 id='{escape(name)}'>{escape(name)}</h2><p>{escape(schema.get('description', ''))}</p>")
        parts += _table([[f, _kind(s), s.get("description", "")] for f, s in schema.get("properties", {}).items()])
    return "\n".join(parts)


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"]
    given = [
        [item["name"], item["in"], item.get("description", "")]
        for item in operation["parameters"]
        if item["in"] != "path"
    ]
    parts += _table(given)
    for content in operation.get("requestBody", {}).get("content", {}).values():
        parts.append(f"<p>Body: {_link(content['schema'])}</p>")
    parts += _table(
        [
            [status, answer["description"], ", ".join(answer.get("content", {}))]
            for status, answer in operation["responses"].items()
        ]
    )
    return "\n".join(parts)


def _table(rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    lines = [
        "".join(f"<td>{'<code>' * (not n)}{escape(c)}{'</code>' * (not n)}" for n, c in enumerate(r)) for r in rows
    ]
    return [f"<table><tr>{'<tr>'.join(lines)}</table>"]


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(str(each) for each in schema["enum"])
    return str(schema.get("type", "anything"))


def _link(schema: dict[str, Any]) -> str:
    name = escape(_kind(schema))
    return f"<a href='#{name}'>{name}</a>" if "$ref" in schema else name


async def show_reference(gate: Gate, request: Request) -> Response:
    """GET /docs."""
    return Response(render(gate.description), 200, _HEADERS, "text/html")


OPERATIONS = (
    Operation(
        "GET", "/docs", show_reference, "This description for people", (Answer(200, "HTML", None, ("text/html",)),)
    ),
)

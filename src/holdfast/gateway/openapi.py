"""GET /openapi.json: the route table as an OpenAPI 3.1 document."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from holdfast.domain.errors import CATALOGUE
from holdfast.domain.ids import ID_PATTERN
from holdfast.gateway.gate import Gate
from holdfast.gateway.problems import OPENAI_PREFIX, PROBLEM_TYPE, OpenAIError, Problem
from holdfast.gateway.requests import JSON_TYPE
from holdfast.gateway.routes import Answer, Operation, answer

_EVERYWHERE = (
    "unauthorized",
    "forbidden_origin",
    "forbidden_scope",
    "rate_limited",
    "internal",
    "store_unavailable",
    "overloaded",
)
_WITH_BODY = ("body_too_large", "invalid_request")
_SCHEMES = {"bearer": {"type": "http", "scheme": "bearer", "description": "An API key or a JWT"}}
_REF = "#/components/schemas/{name}"


def describe(operations: Iterable[Operation], version: str) -> dict[str, Any]:
    """The document: every path, every body, every status that can be answered."""
    rows = list(operations)
    kinds: list[Any] = [Problem, OpenAIError]
    for row in rows:
        kinds += [a.kind for a in row.answers if a.kind is not None]
        kinds += [row.body] if row.body is not None else []
    named, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    schemas = dict(zip(map(id, kinds), named, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Holdfast",
            "version": version,
            "summary": "Runs AI agents so that no run ever hangs.",
            "description": "There is a WebSocket, too: /api/ws. Its frames are in docs/protocol.md.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "security": [{}, {"bearer": []}],  # none where the server has no keys
        "components": {"schemas": components, "securitySchemes": _SCHEMES},
    }


def _operation(row: Operation, schemas: dict[int, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": row.handler.__name__,
        "summary": row.summary,
        "parameters": _parameters(row),
        "responses": {
            **{str(a.status): _answered(a, schemas) for a in row.answers},
            **_refused(row, schemas),
        },
    }
    if row.body is not None:
        content = {JSON_TYPE: {"schema": schemas[id(row.body)]}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _parameters(row: Operation) -> list[dict[str, Any]]:
    named = re.findall(r"{(\w+)}", row.path)
    id_schema = {"type": "string", "pattern": f"^{ID_PATTERN}$"}
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": id_schema} for name in named
    ]
    for place, rows in (("query", row.query), ("header", row.headers)):
        found += [{"name": item.name, "in": place, "description": item.meaning, "schema": item.schema} for item in rows]
    return found


def _answered(item: Answer, schemas: dict[int, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if item.kind is not None:
        content[JSON_TYPE] = {"schema": schemas[id(item.kind)]}
        if item.status >= 400:
            content = {PROBLEM_TYPE: content[JSON_TYPE], **content}
    for media_type in item.text:
        # Readers of descriptions differ in whether that of an event stream is about one event: nothing is claimed.
        content[media_type] = {"schema": {} if media_type == "text/event-stream" else {"type": "string"}}
    return {"description": item.meaning, **({"content": content} if content else {})}


def _refused(row: Operation, schemas: dict[int, Any]) -> dict[str, Any]:
    openai = row.path.startswith(OPENAI_PREFIX)
    media_type, kind = (JSON_TYPE, OpenAIError) if openai else (PROBLEM_TYPE, Problem)
    codes = (*row.errors, *_EVERYWHERE, *(_WITH_BODY if row.body is not None else ()))
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(CATALOGUE[code].status, []).append(code)
    stated = {a.status for a in row.answers}
    return {
        str(status): {
            "description": ", ".join(of_status),
            "content": {media_type: {"schema": schemas[id(kind)]}},
        }
        for status, of_status in sorted(by_status.items())
        if status not in stated
    }


async def show_openapi(gate: Gate, request: Request) -> Response:
    """GET /openapi.json."""
    return answer(gate.description)


OPERATIONS = (
    Operation(
        "GET",
        "/openapi.json",
        show_openapi,
        "This description",
        (Answer(200, "OpenAPI 3.1", dict[str, Any]),),
    ),
)

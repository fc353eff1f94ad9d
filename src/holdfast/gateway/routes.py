"""The route table's rows: what is served, what it takes and every way it can answer.

Routing and /openapi.json are both made of these rows, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from holdfast.domain.events import encode_json
from holdfast.gateway.gate import Gate

Handler = Callable[[Gate, Request], Awaitable[Response]]


class Answer(NamedTuple):
    """One way to answer: a status with a JSON body of `kind` (None: no body), and other media types as text."""

    status: int
    meaning: str
    kind: Any = None
    text: tuple[str, ...] = ()


class Query(NamedTuple):
    """A query parameter or a header."""

    name: str
    meaning: str
    schema: dict[str, Any]


class Operation(msgspec.Struct, frozen=True):
    """One method of one path."""

    method: str
    path: str
    handler: Handler
    summary: str
    answers: tuple[Answer, ...]
    body: Any = None
    query: tuple[Query, ...] = ()
    headers: tuple[Query, ...] = ()
    errors: tuple[str, ...] = ()  # codes of the catalogue, beside those that every operation may answer


class JSON(Response):
    """A JSON response of anything that `encode_json` takes."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Compact JSON."""
        return encode_json(content)


def answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> JSON:
    """A JSON answer that no cache keeps."""
    return JSON(content, status, {"Cache-Control": "no-store", **(headers or {})})

"""GET /: the page, one file without a build, allowed to run nothing but its own script."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from holdfast.gateway.gate import Gate
from holdfast.gateway.routes import Answer, Operation

_HTML = resources.files("holdfast.gateway").joinpath("page.html").read_bytes()


def _hashes(tag: bytes) -> str:
    found = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), _HTML, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in found)


_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hashes(b'script')}; style-src {_hashes(b'style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


async def show(gate: Gate, request: Request) -> Response:
    """GET /: the page."""
    return Response(_HTML, 200, _HEADERS, "text/html")


OPERATIONS = (Operation("GET", "/", show, "The page", (Answer(200, "HTML", None, ("text/html",)),)),)

"""Reading a request's path, query and headers, each within its bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from starlette.requests import HTTPConnection, Request

from holdfast.domain.ids import ID_PATTERN, RunKey
from holdfast.gateway.access import identity_of
from holdfast.gateway.bodies import check_id
from holdfast.gateway.problems import invalid
from holdfast.gateway.routes import Query

JSON_TYPE = "application/json"
LIST_DEFAULT = 50
LIST_MAX = 200
WAIT_S_MAX = 30.0
PAGING = (
    Query(
        "limit", f"At most this many, {LIST_DEFAULT} by default, {LIST_MAX} at most", {"type": "integer", "minimum": 1}
    ),
    Query("after", "The last id of the page before", {"type": "string", "pattern": f"^({ID_PATTERN})?$"}),
)
WAIT = Query("wait_s", f"Wait for the end, {WAIT_S_MAX:.0f} s at most", {"type": "number", "minimum": 0})

_DIGITS_MAX = 32  # what is longer is over every limit by its first digits already
TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def tenant_of(request: HTTPConnection) -> str:
    """Whose runs an admitted request may see."""
    return identity_of(request).tenant


def run_key(request: Request) -> RunKey:
    """The run that the path names."""
    return RunKey(tenant_of(request), check_id(request.path_params["run"], "the run id"))


def session_id(request: Request) -> str:
    """The session that the path names."""
    return check_id(request.path_params["session"], "the session id")


def whole_number(request: Request, name: str, default: int, most: int) -> int:
    """A query parameter from 1 up; what is over `most` counts as `most`."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and int(text[:_DIGITS_MAX]) > 0):
        raise invalid(f"{name}={text[:64]!r} is not a whole number from 1 up")
    return min(int(text[:_DIGITS_MAX]), most)


def seconds(request: Request, name: str, most: float) -> float:
    """A query parameter in seconds, 0 where it is absent; what is over `most` counts as `most`."""
    text = request.query_params.get(name)
    if text is None:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise invalid(f"{name}={text[:64]!r} is not a number of seconds")
    return min(value, most)


def page_limit(request: Request) -> int:
    """How many items of a list to answer with."""
    return whole_number(request, "limit", LIST_DEFAULT, LIST_MAX)


def last_seen(request: Request) -> str:
    """The last id of the page before, or ""."""
    text = request.query_params.get("after", "")
    return check_id(text, "after") if text else ""


def wait_limit(request: Request) -> float:
    """How long a stop may wait for the end."""
    return seconds(request, "wait_s", WAIT_S_MAX)


def wanted(request: Request, offered: Sequence[str]) -> str:
    """Which of `offered` the Accept header prefers; the first where it accepts none of them."""
    return _preferred(request, offered) or offered[0]


def asks_for(request: Request, offered: Sequence[str]) -> str:
    """Which of `offered` Accept prefers, and names outright, by no wildcard; else "", as for `application/json`."""
    found = _preferred(request, (JSON_TYPE, *offered))
    return found if found in offered and any(name == found for name, _ in _accepted(request)) else ""


def trace_of(request: HTTPConnection) -> str:
    """The trace id of a W3C traceparent, or ""."""
    match = TRACEPARENT.fullmatch(request.headers.get("traceparent", ""))
    return match[1] if match else ""


def _accepted(request: Request) -> list[tuple[str, float]]:
    found = []
    for item in ",".join(request.headers.getlist("accept"))[:2000].split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        q = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    q = float(parameter[2:])
                except ValueError:
                    q = 0.0
        if name:
            found.append((name, q))
    return found


def _preferred(request: Request, offered: Sequence[str]) -> str:
    """The best of `offered` by RFC 9110: each has the weight of what names it most closely; "" where none is accepted.

    Of equal weights the closer name counts, then the order of the header, then our own.
    """
    best, best_rank = "", (0.0, 0, 0)
    accepted = _accepted(request)
    for media_type in offered:
        named = [(_closeness(name, media_type), -at, q) for at, (name, q) in enumerate(accepted)]
        closeness, at, q = max(named, default=(0, 0, 0.0))
        if closeness and q > 0 and (q, closeness, at) > best_rank:
            best, best_rank = media_type, (q, closeness, at)
    return best


def _closeness(accepted: str, media_type: str) -> int:
    """How closely `accepted` names `media_type`: 3 outright, 2 by its type, 1 by `*/*`, 0 not at all."""
    if accepted == media_type:
        return 3
    if accepted == media_type.split("/", 1)[0] + "/*":
        return 2
    return 1 if accepted == "*/*" else 0

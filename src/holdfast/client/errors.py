"""What a call can end with, besides its answer.

ClientError              has a code, whether a repeat may help, and a remedy
  ServerUnreachable      nobody answered, or not to the end; whether the server acted is unknown
  ApiError               the server refused, with a code of the catalogue (docs/protocol.md)
    Unauthorized         401: no key, or one that the server does not know
    Forbidden            403: the origin or the scope is not let in
    NotFound             404: no such run, session or agent, or it is another subject's
    Conflict             409: the run has ended, the session is busy, the decision is late
    Gone                 410: the log was deleted
    RateLimited          429: too many requests; `retry_after_s` says how long to wait
    Unavailable          503: not ready, overloaded, or its store does not answer
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

UNEXPECTED: Final = "unexpected_answer"
UNREACHABLE: Final = "unreachable"
BUSY_STATUS: Final = frozenset({429, 502, 503, 504})


class ClientError(Exception):
    """A call that has no answer.

    Attributes:
        code: What kind of failure, as one word.
        detail: What happened, with the values that matter.
        remedy: What to do about it.
        retryable: Whether the same call may succeed later.
    """

    def __init__(self, code: str, detail: str, remedy: str, *, retryable: bool) -> None:
        super().__init__(f"{detail}; {remedy}")
        self.code = code
        self.detail = detail
        self.remedy = remedy
        self.retryable = retryable


class ServerUnreachable(ClientError):
    """Nobody answered at `url`, or the answer broke off and could not be resumed."""

    def __init__(self, url: str, what: str) -> None:
        super().__init__(
            UNREACHABLE,
            f"cannot reach {url}: {what}",
            "start a server with `holdfast serve` or `holdfast demo`, or name another with --url or HOLDFAST_URL",
            retryable=True,
        )
        self.url = url


class ApiError(ClientError):
    """The server refused.

    Attributes:
        status: The HTTP status.
        code: A code of the catalogue, or `unexpected_answer` where the answer was not Holdfast's.
        retryable: Whether the same request may succeed later.
        retry_after_s: What the server asked to wait, or None.
        fields: The whole problem document.
    """

    def __init__(self, status: int, code: str, detail: str, remedy: str, **fields: Any) -> None:
        super().__init__(code, f"{code}: {detail}", remedy, retryable=bool(fields.get("retryable", False)))
        self.status = status
        self.retry_after_s: float | None = fields.pop("retry_after_s", None)
        self.fields = fields


class Unauthorized(ApiError):
    """The server wants a key, or does not know this one."""


class Forbidden(ApiError):
    """This origin, or this scope, is not let in."""


class NotFound(ApiError):
    """No such run, session or agent for this subject."""


class Conflict(ApiError):
    """The run or session is no longer, or not yet, in a state that allows it."""


class Gone(ApiError):
    """The log was deleted or is past its retention."""


class RateLimited(ApiError):
    """Too many requests."""


class Unavailable(ApiError):
    """The server cannot take it now."""


_BY_STATUS: Final[Mapping[int, type[ApiError]]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    429: RateLimited,
    503: Unavailable,
}


class Reply(NamedTuple):
    """An answer that was read whole, and what it answers."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    asked: str

    def json(self) -> Any:
        """Its body as JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


def class_of(status: int) -> type[ApiError]:
    """The class of a refusal with this status."""
    return _BY_STATUS.get(status, ApiError)


def api_error(reply: Reply) -> ApiError:
    """The error that an answer carries."""
    retry_after_s = _seconds(reply.headers.get("retry-after"))
    problem = reply.json()
    if not isinstance(problem, dict) or "code" not in problem:
        return unexpected(reply, retryable=reply.status in BUSY_STATUS, retry_after_s=retry_after_s)
    known = {"status", "code", "detail", "remedy", "retry_after_s"}
    return class_of(reply.status)(
        reply.status,
        str(problem["code"]),
        str(problem.get("detail", "")),
        str(problem.get("remedy", "see the server's log")),
        retry_after_s=retry_after_s,
        **{name: value for name, value in problem.items() if name not in known},
    )


def unexpected(reply: Reply, *, retryable: bool = False, retry_after_s: float | None = None) -> ApiError:
    """An answer that a Holdfast server would not give."""
    return class_of(reply.status)(
        reply.status,
        UNEXPECTED,
        f"{reply.asked} answered {reply.status} ({reply.headers.get('content-type', 'no content type')})",
        "check that the address is a Holdfast server: GET /version answers there",
        retryable=retryable,
        retry_after_s=retry_after_s,
    )


def _seconds(retry_after: str | None) -> float | None:
    """Seconds, as our servers send them, or a date, as proxies may."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None

"""What a call can end with, besides its answer.

ClientError
  ServerUnreachable      nobody answered, or not to the end; whether the server acted is unknown
  ApiError               the server refused, with a code of the catalogue (docs/protocol.md)
"""

from __future__ import annotations

from typing import Any, Final

import httpx2

UNEXPECTED: Final = "unexpected_answer"
_RETRYABLE_STATUS: Final = frozenset({429, 502, 503, 504})


class ClientError(Exception):
    """A call that has no answer.

    Attributes:
        detail: What happened, with the values that matter.
        remedy: What to do about it.
    """

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(f"{detail}; {remedy}")
        self.detail = detail
        self.remedy = remedy


class ServerUnreachable(ClientError):
    """Nobody answered at `url`, or the answer broke off and could not be resumed."""

    def __init__(self, url: str, what: str) -> None:
        super().__init__(
            f"cannot reach {url}: {what}",
            "start a server with `holdfast serve` or `holdfast demo`, or name another with --url or HOLDFAST_URL",
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
        super().__init__(f"{code}: {detail}", remedy)
        self.status = status
        self.code = code
        self.retryable = bool(fields.get("retryable", False))
        self.retry_after_s: float | None = fields.pop("retry_after_s", None)
        self.fields = fields


def api_error(response: httpx2.Response) -> ApiError:
    """The error that an answer carries; its body must have been read."""
    retry_after_s = _seconds(response.headers.get("retry-after"))
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "code" not in problem:
        return unexpected(response, retryable=response.status_code in _RETRYABLE_STATUS, retry_after_s=retry_after_s)
    known = {"status", "code", "detail", "remedy", "retry_after_s"}
    return ApiError(
        response.status_code,
        str(problem["code"]),
        str(problem.get("detail", "")),
        str(problem.get("remedy", "see the server's log")),
        retry_after_s=retry_after_s,
        **{name: value for name, value in problem.items() if name not in known},
    )


def unexpected(response: httpx2.Response, *, retryable: bool = False, retry_after_s: float | None = None) -> ApiError:
    """An answer that a Holdfast server would not give."""
    return ApiError(
        response.status_code,
        UNEXPECTED,
        f"{response.request.method} {response.request.url} answered {response.status_code}"
        f" ({response.headers.get('content-type', 'no content type')})",
        "check that the address is a Holdfast server: GET /version answers there",
        retryable=retryable,
        retry_after_s=retry_after_s,
    )


def _seconds(retry_after: str | None) -> float | None:
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:
        return None  # a date: our servers send seconds

"""Errors on the wire: application/problem+json, and OpenAI's shape under /v1.

Every failure a client can see goes through `respond`; what is not a failure of the catalogue becomes `internal`
here, once, with a line in the log, and never reaches the ASGI server.
"""

from __future__ import annotations

import traceback
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from holdfast.domain.errors import HoldfastError
from holdfast.domain.events import encode_json
from holdfast.telemetry import Log

PROBLEM_TYPE = "application/problem+json"
OPENAI_PREFIX = "/v1/"
_OPENAI_CODES = {"unknown_agent": "model_not_found"}
_FROM_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class Problem(msgspec.Struct):
    """RFC 9457, with what a client needs to act: code, remedy, retryable. Further fields depend on the code."""

    title: str
    status: int
    code: str
    detail: str
    remedy: str
    retryable: bool


class OpenAIErrorBody(msgspec.Struct):
    """The inner object of `OpenAIError`."""

    message: str
    type: str
    code: str | None = None
    param: str | None = None


class OpenAIError(msgspec.Struct):
    """A failure in OpenAI's shape."""

    error: OpenAIErrorBody


def invalid(detail: str, param: str | None = None) -> HoldfastError:
    """A request that is wrong in a field named in `detail`; OpenAI's shape names it in `param` too."""
    return HoldfastError("invalid_request", detail, **({} if param is None else {"param": param}))


def refused(detail: str, remedy: str | None = None) -> HoldfastError:
    """Somebody is not let in."""
    return HoldfastError("unauthorized", detail, remedy=remedy)


def document(error: HoldfastError) -> dict[str, Any]:
    """The problem document of one error."""
    return {
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
        "remedy": error.remedy,
        "retryable": error.retryable,
        **error.fields,
    }


def openai_document(error: HoldfastError) -> dict[str, Any]:
    """The same in OpenAI's shape."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": f"{error.detail}; {error.remedy}" if error.remedy else error.detail,
            "type": "rate_limit_error" if error.status == 429 else kind,
            "code": _OPENAI_CODES.get(error.code, error.code),
            "param": error.fields.get("param"),
        }
    }


def respond(error: HoldfastError, path: str, headers: dict[str, str] | None = None) -> Response:
    """The response that says `error` in the shape that `path` speaks."""
    sent = {"Cache-Control": "no-store", **(headers or {})}
    if "retry_after_s" in error.fields:
        sent["Retry-After"] = str(error.fields["retry_after_s"])
    elif error.status == 503:
        sent["Retry-After"] = "1"
    if error.code == "unauthorized":
        sent["WWW-Authenticate"] = 'Bearer realm="holdfast"'
    if error.code == "upgrade_required":
        sent |= {"Upgrade": "websocket", "Connection": "Upgrade"}
    if error.code == "body_too_large":
        sent["Connection"] = "close"  # what is left of the body is not worth reading
    if path.startswith(OPENAI_PREFIX):
        body, media_type = openai_document(error), "application/json"
    else:
        body, media_type = document(error), PROBLEM_TYPE
    return Response(encode_json(body), error.status, sent, media_type)


def from_http(error: HTTPException, path: str) -> Response:
    """Starlette's own refusals (no such path, wrong method) as problems; `Allow` is kept."""
    code = _FROM_STATUS.get(error.status_code, "invalid_request")
    detail = {"not_found": f"no such path: {path}", "method_not_allowed": f"wrong method for {path}"}
    problem = HoldfastError(code, detail.get(code, str(error.detail)))
    return respond(problem, path, dict(error.headers or {}))


def unexpected(error: Exception, path: str, log: Log) -> HoldfastError:
    """What nobody foresaw: logged with its place, told to the client without its insides."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    log.write(
        "http_error",
        path=path,
        error=f"{type(error).__name__}: {error}"[:2000],
        where=None if last is None else f"{last.filename}:{last.lineno}",
    )
    return HoldfastError("internal", f"unexpected {type(error).__name__}")

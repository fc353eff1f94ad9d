"""What a failed model request calls for: a repetition, a fresh start, another way to ask, or none of them."""

from __future__ import annotations

from typing import Final

from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelHTTPError,
    ModelNotFoundError,
    ModelQuotaExceededError,
    ModelRequestRejectedError,
    ModelRequestTimeout,
    ModelTimeoutError,
)

from holdfast.models.errors import ModelBadResponse, ModelBreakerOpen, ModelStalled, ModelTruncated

RETRIED_STATUSES: Final = frozenset({408, 409, 425, 429})


def retry_reason(error: Exception) -> str | None:
    """Why repeating the request may help, as model.retried says it; None if it would not."""
    if isinstance(error, ModelQuotaExceededError):
        return None
    if isinstance(error, ModelTruncated):
        return "truncated"
    if isinstance(error, ModelHTTPError):
        return _status(error) if _passes(error) and error.provider_retry_hint is not False else None
    if isinstance(error, ModelTimeoutError):
        return "connect_timeout" if error.phase in ("connect", "pool") else None
    if isinstance(error, ModelConnectionError):
        return "connect" if error.phase in ("connect", "pool") else "connection_lost"
    return None


def restart_reason(error: BaseException) -> str | None:
    """Why asking again may help after a part of the answer was shown, as attempt.discarded says it; None if not.

    An answer that was still coming when `model_request_s` ran out is not asked for again: it would take as long again.
    """
    if isinstance(error, ModelStalled):
        return "stalled" if error.code == "model_idle_timeout" else None
    if isinstance(error, ModelTruncated):
        return "truncated"
    if isinstance(error, ModelBadResponse):
        return "bad_response"
    if isinstance(error, ModelRequestRejectedError | ModelQuotaExceededError | ModelRequestTimeout | ModelBreakerOpen):
        return None
    if isinstance(error, ModelHTTPError):
        return "error_in_stream" if _passes(error) else None
    if isinstance(error, ModelTimeoutError):
        return "stalled"
    if isinstance(error, ModelConnectionError):
        return "connection_lost"
    return "error_in_stream" if isinstance(error, ModelAPIError) and error.in_stream else None


def fallback_reason(error: Exception, *, same_upstream: bool) -> str | None:
    """Why another way to ask may help, as degraded says it; None if not.

    Not where the request itself was refused: it would be refused again. Another model may still have what this one's
    configuration lacks (a key, the model, credit). The same upstream, asked without streaming, may answer where its
    streams break, but not where it cannot be reached, or said no.

    Args:
        error: The failure.
        same_upstream: Whether the other way leads to the same upstream.
    """
    if isinstance(error, ModelBreakerOpen):
        return "its breaker is open"
    if isinstance(error, ModelStalled):
        return error.code.removesuffix("_timeout")
    if isinstance(error, ModelTruncated):
        return "truncated"
    if isinstance(error, ModelBadResponse):
        return "bad_response"
    if isinstance(error, ModelHTTPError):
        elsewhere = isinstance(error, ModelAuthenticationError | ModelNotFoundError | ModelQuotaExceededError)
        helps = error.status_code >= 500 if same_upstream else _passes(error) or elsewhere
        return _status(error) if helps else None
    if isinstance(error, ModelConnectionError):
        unreachable = error.phase in ("connect", "pool")
        return None if unreachable and same_upstream else "connect" if unreachable else "connection_lost"
    return None


def _passes(error: ModelHTTPError) -> bool:
    """Whether the same request may succeed later."""
    return error.status_code in RETRIED_STATUSES or error.status_code >= 500


def _status(error: ModelHTTPError) -> str:
    return f"status_{error.status_code}"

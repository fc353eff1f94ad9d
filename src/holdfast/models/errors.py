"""What can be wrong with a model's answer that pydantic-ai has no error for.

    ModelAPIError (pydantic-ai)
      ModelStalled       one of our limits fired
      ModelTruncated     the stream ended and nobody said that it was complete
      ModelBadResponse   the upstream sent something that is no answer
      ModelBreakerOpen   the upstream failed so often of late that we do not ask it now

They are ModelAPIErrors, so that a user's FallbackModel falls back on them as on any other failure of a model.
"""

from __future__ import annotations

import json
from typing import Final, Literal

import httpx2
from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelConnectionError,
    ModelHTTPError,
    ModelTimeoutError,
    UnexpectedModelBehavior,
)

from holdfast.models.bounds import AnswerUnreadable

_CAUSES_MAX: Final = 10
_LIBRARIES: Final = frozenset({"anthropic", "httpx2", "json", "openai", "pydantic", "pydantic_ai"})  # read answers
Limit = Literal["model_first_content_timeout", "model_idle_timeout", "model_request_timeout"]


class ModelStalled(ModelAPIError):
    """A limit fired: the model sent nothing that counts for `after_s` seconds."""

    def __init__(self, model_name: str, code: Limit, after_s: float) -> None:
        """Name the limit, and how long was waited."""
        what = {
            "model_first_content_timeout": "sent no content at all",
            "model_idle_timeout": "went silent in the middle of its answer",
            "model_request_timeout": "did not finish its answer",
        }[code]
        super().__init__(model_name, f"model {model_name!r} {what} within {after_s:g} s")
        self.code = code
        self.after_s = after_s


class ModelTruncated(ModelAPIError):
    """The stream ended without a finish reason, so what came may be half an answer."""

    def __init__(self, model_name: str) -> None:
        """Name the model."""
        super().__init__(model_name, f"the stream of model {model_name!r} ended without a finish reason")


class ModelBadResponse(ModelAPIError):
    """What the upstream sent cannot be read as an answer."""


class ModelBreakerOpen(ModelAPIError):
    """Nothing was sent: the upstream's breaker is open, or its one probe is under way."""

    def __init__(self, model_name: str, upstream: str, failures: int, opens_in_s: float) -> None:
        """Name the upstream, how often it failed in a row, and when it is asked again."""
        when = f"in {opens_in_s:.1f} s" if opens_in_s > 0 else "now, by another request"
        super().__init__(
            model_name,
            f"model {model_name!r} was not asked: its upstream {upstream} failed {failures} times in a row; "
            f"it is tried again {when}",
        )
        self.upstream = upstream
        self.failures = failures
        self.opens_in_s = opens_in_s


def refine(error: Exception, model_name: str) -> Exception:
    """The same failure with the most exact type we know; to be raised from the one given, unless it is that one."""
    if isinstance(error, ModelStalled | ModelTruncated | ModelBadResponse | ModelBreakerOpen):
        return error
    if (unread := _caused_by_body(error)) is not None:
        return ModelBadResponse(model_name, f"the answer of model {model_name!r} cannot be used: {unread}")
    if isinstance(error, ModelConnectionError | ModelHTTPError):
        return error
    if isinstance(error, ModelAPIError):
        if "finish_reason" in error.message:
            return ModelTruncated(model_name)
        if type(error) is ModelAPIError and not error.in_stream:
            return ModelBadResponse(model_name, error.message)
        return error
    if isinstance(error, UnexpectedModelBehavior):
        return ModelBadResponse(model_name, f"the answer of model {model_name!r} cannot be used: {error}")
    if isinstance(error, httpx2.TimeoutException):
        return ModelTimeoutError(model_name, f"{type(error).__name__}: {error}")
    if isinstance(error, httpx2.TransportError | ConnectionError):
        return ModelConnectionError(model_name, f"{type(error).__name__}: {error}")
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) or _cannot_be_read(error):
        return ModelBadResponse(model_name, f"{type(error).__name__}: {error}")
    return error


def _caused_by_body(error: BaseException | None) -> AnswerUnreadable | None:
    """What our transport said below a client library, which calls everything a connection error."""
    for _ in range(_CAUSES_MAX):
        if error is None or isinstance(error, AnswerUnreadable):
            return error
        error = error.__cause__ or error.__context__
    return None


def _cannot_be_read(error: Exception) -> bool:
    """Whether a client library stumbled over an answer: `null` for an object, a text for a number, nested too deep.

    It is told by where it was raised: what a model of the user's own raises is the user's.
    """
    if not isinstance(error, AttributeError | LookupError | TypeError | ValueError | RecursionError):
        return False
    trace, raised_in = error.__traceback__, ""
    while trace is not None:
        raised_in, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return raised_in.partition(".")[0] in _LIBRARIES

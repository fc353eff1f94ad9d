"""Foreign exceptions as reasons of a run's end: the one place that translates them.

model     -> model_error, model_stalled    what failed is the upstream
budget    -> budget                        a limit on usage that the agent set
all else  -> agent_error                   the agent, its output type, or the library
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic_ai.exceptions import (
    ContentFilterError,
    FallbackExceptionGroup,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelNotFoundError,
    ModelRequestTimeout,
    ModelTimeoutError,
    OutputTokenLimitExceeded,
    RunCancelled,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
    UserError,
)

from holdfast.domain.errors import AgentExit, RunEnded
from holdfast.domain.runs import Reason
from holdfast.models import ModelBadResponse, ModelBreakerOpen, ModelStalled, ModelTruncated

_MODEL = Reason.MODEL_ERROR


def to_run_ended(error: Exception) -> RunEnded:
    """Why the run ends, said for the client; raise it from `error`, so that the cause stays with it."""
    for cause in _chain(error):
        if isinstance(cause, RunEnded):
            return cause
        if isinstance(cause, AgentExit):
            return cause.ended()
    if isinstance(error, FallbackExceptionGroup):  # the agent's own FallbackModel: its last word
        asked = [each for each in error.exceptions if isinstance(each, ModelAPIError)]
        if asked:
            return _model(asked[-1])
    if isinstance(error, ModelAPIError):
        return _model(error)
    match error:
        case UsageLimitExceeded():
            return _ended(
                Reason.BUDGET,
                "usage_limit",
                error,
                remedy="give the agent other usage limits: a WrapperAgent may pass usage_limits to iter",
            )
        case ContentFilterError():
            return _ended(_MODEL, "model_content_filter", error, remedy="change the prompt")
        case OutputTokenLimitExceeded():
            return _ended(_MODEL, "model_output_limit", error, remedy="raise max_tokens, or ask for less")
        case UnexpectedModelBehavior():
            return _ended(
                Reason.AGENT_ERROR,
                "unexpected_model_behavior",
                error,
                retryable=True,
                remedy="see whether the model can follow the agent's tools and output type, or raise its retries",
            )
        case UserError():
            return _ended(Reason.AGENT_ERROR, "agent_config", error, remedy="correct the agent as the message says")
        case RunCancelled():
            return _ended(Reason.AGENT_ERROR, "agent_cancelled_itself", error)
        case _:
            return _ended(Reason.AGENT_ERROR, "agent_exception", error, remedy="see the worker's log for the traceback")


def _model(error: ModelAPIError) -> RunEnded:
    match error:
        case ModelStalled():
            return _ended(
                Reason.MODEL_STALLED,
                error.code,
                error,
                retryable=True,
                remedy="repeat the prompt; raise the setting of that name if the model is slow on purpose",
            )
        case ModelRequestTimeout():
            return _ended(Reason.MODEL_STALLED, "model_request_timeout", error, retryable=True)
        case ModelBreakerOpen():
            when = f"in {error.opens_in_s:.0f} s or more" if error.opens_in_s else "shortly"
            return _ended(
                _MODEL,
                "model_breaker_open",
                error,
                retryable=True,
                remedy=f"check the model server, then repeat the prompt {when}; /api/workers shows the breaker",
            )
        case ModelTruncated():
            return _ended(_MODEL, "model_truncated", error, retryable=True, remedy="repeat the prompt")
        case ModelBadResponse():
            return _ended(_MODEL, "model_bad_response", error, retryable=True, remedy="check the model server")
        case ModelAuthenticationError():
            return _ended(_MODEL, _status(error, "model_auth"), error, remedy="check the model's API key")
        case ModelNotFoundError():
            return _ended(_MODEL, _status(error, "model_not_found"), error, remedy="check the model's name and URL")
        case ModelContextWindowExceededError():
            return _ended(_MODEL, "model_context_window", error, remedy="start a new session, or send less")
        case ModelHTTPError() if error.in_stream:
            return _ended(_MODEL, "model_error_in_stream", error, retryable=_passes(error), remedy="repeat the prompt")
        case ModelHTTPError():
            return _ended(_MODEL, _status(error, ""), error, retryable=_passes(error), remedy="see the model's message")
        case ModelConnectionError():
            return _connection(error)
        case _ if error.in_stream:
            return _ended(_MODEL, "model_error_in_stream", error, retryable=True, remedy="repeat the prompt")
        case _:
            return _ended(_MODEL, "model_api_error", error, retryable=True, remedy="see the model's message")


def _connection(error: ModelConnectionError) -> RunEnded:
    if error.phase in ("connect", "pool"):
        return _ended(
            _MODEL, "model_connect", error, retryable=True, remedy="check that the model server runs at its URL"
        )
    if isinstance(error, ModelTimeoutError):
        return _ended(Reason.MODEL_STALLED, "model_idle_timeout", error, retryable=True, remedy="repeat the prompt")
    return _ended(_MODEL, "model_connection_lost", error, retryable=True, remedy="repeat the prompt")


def _status(error: ModelAPIError, otherwise: str) -> str:
    return f"model_status_{error.status_code}" if isinstance(error, ModelHTTPError) else otherwise


def _passes(error: ModelHTTPError) -> bool:
    """Whether the same request may succeed later."""
    return error.status_code in (408, 409, 425, 429) or error.status_code >= 500


def _ended(reason: Reason, code: str, error: Exception, *, retryable: bool = False, remedy: str = "") -> RunEnded:
    root = error.__cause__ if error.__cause__ is not None else error
    message = _told(error) or str(error) or type(error).__name__
    if reason is Reason.AGENT_ERROR:
        message = f"{type(error).__name__}: {error}"
    return RunEnded(reason, code, message, cause=type(root).__name__, retryable=retryable, remedy=remedy)


def _told(error: Exception) -> str:
    """What the model's server said of a refusal, in its own words; the library shows them as a Python dict."""
    if not isinstance(error, ModelHTTPError) or error.in_stream or error.hint or error.suggested_model_id:
        return ""
    body = error.body
    for _ in range(2):  # OpenAI's client hands out what is in "error", others hand out the whole body
        match body:
            case {"message": str(said)} if said.strip():
                return f"{error.model_name} was refused with status {error.status_code}: {said.strip()}"
            case {"error": inner}:
                body = inner
            case _:
                break
    return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, what it holds if it is a group, and its causes; each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting.append(current.__cause__)
        if isinstance(current, BaseExceptionGroup):
            waiting.extend(current.exceptions)

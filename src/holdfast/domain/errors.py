"""Errors that a client sees: one catalogue of codes, and the exceptions that carry them.

HoldfastError            has a code of the catalogue, a cause and a remedy
  StoreUnavailable       the outcome of a store operation is unknown; repeat it
  RunEnded               an agent, model or tool ended its run, with a reason
  AgentExit              code of a run called exit() or raised KeyboardInterrupt; its run's failure, nobody else's
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from holdfast.domain.events import encodable
from holdfast.domain.runs import Reason
from holdfast.domain.secrets import mask


class Entry(NamedTuple):
    """One line of the catalogue."""

    status: int
    retryable: bool
    remedy: str


CATALOGUE: Final[dict[str, Entry]] = {
    "malformed_request": Entry(400, False, "send a request of HTTP/1.1, or correct what sent this one"),
    "unauthorized": Entry(401, False, "send Authorization: Bearer <api key or JWT>"),
    "forbidden_origin": Entry(403, False, "call the server by a loopback name, or give it API keys"),
    "forbidden_scope": Entry(403, False, "use a key or a token with that scope"),
    "unknown_run": Entry(404, False, "check the run id; GET /api/runs lists yours"),
    "unknown_session": Entry(404, False, "check the session id; GET /api/sessions lists yours"),
    "unknown_agent": Entry(404, False, "name one of the served agents; GET /v1/models lists them"),
    "not_found": Entry(404, False, "see /openapi.json for the paths that exist"),
    "method_not_allowed": Entry(405, False, "see the Allow header and /openapi.json"),
    "session_busy": Entry(409, True, "wait for the active run, or send on_busy supersede or enqueue"),
    "idempotency_conflict": Entry(409, False, "use a new Idempotency-Key for a different body"),
    "already_ended": Entry(409, False, "the run has its terminal event; start a new one"),
    "late_decision": Entry(409, False, "the run no longer waits; start a new one"),
    "gone": Entry(410, False, "the log was deleted or is past its retention; start a new run"),
    "body_too_large": Entry(413, False, "send a smaller body"),
    "invalid_request": Entry(422, False, "correct the field named in detail; /openapi.json has the shapes"),
    "invalid_offset": Entry(422, False, "after is a seq (7) or an event id (7-2)"),
    "upgrade_required": Entry(426, False, "open it as a WebSocket; docs/protocol.md has the frames"),
    "rate_limited": Entry(429, True, "wait for Retry-After seconds"),
    "internal": Entry(500, True, "repeat the request; the server's log names the cause"),
    "not_ready": Entry(503, True, "see /readyz for what is missing"),
    "overloaded": Entry(503, True, "wait for Retry-After seconds, or raise the limit named in detail"),
    "store_unavailable": Entry(503, True, "repeat the request; it is idempotent with an Idempotency-Key"),
}


class HoldfastError(Exception):
    """A failure with a code of the catalogue.

    Attributes:
        code: A key of `CATALOGUE`.
        detail: What happened, the values that disagree, the id.
        remedy: What to do about it.
        fields: Further values for the problem document, such as `retry_after_s` or `run`.
    """

    def __init__(self, code: str, detail: str, *, remedy: str | None = None, **fields: Any) -> None:
        """Take the remedy of the catalogue unless the place of the failure knows a better one."""
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.remedy = remedy if remedy is not None else CATALOGUE[code].remedy
        self.fields = fields

    @property
    def status(self) -> int:
        """The HTTP status of this code."""
        return CATALOGUE[self.code].status

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return CATALOGUE[self.code].retryable


class StoreUnavailable(HoldfastError):
    """The store did not answer; whether it acted is unknown. Every operation may be repeated as it was.

    Attributes:
        full: It did answer: its disk is full, nothing was done, and to repeat it at once is in vain.
    """

    def __init__(self, detail: str, *, full: bool = False, remedy: str | None = None) -> None:
        """Say which operation has no answer, and what the store said."""
        super().__init__("store_unavailable", detail, remedy=remedy)
        self.full = full


class RunEnded(Exception):
    """Raised by agents, models and tools to end their run with a reason that the client sees.

    Attributes:
        reason: One of the reasons of state failed.
        code: A finer word than the reason, such as `model_connect` or `loop_blocked`.
        message: What happened, in one line.
        cause: The type of the underlying exception, or None.
        retryable: Whether the same prompt may succeed later.
        remedy: What to do about it.
    """

    def __init__(
        self,
        reason: Reason,
        code: str,
        message: str,
        *,
        cause: str | None = None,
        retryable: bool = False,
        remedy: str = "",
    ) -> None:
        """Keep every field for the error object of run.failed."""
        super().__init__(message)
        self.reason = reason
        self.code = code
        self.message = message
        self.cause = cause
        self.retryable = retryable
        self.remedy = remedy

    def to_error(self) -> dict[str, Any]:
        """The `error` object of run.failed and of the run record."""
        return run_error(self.code, self.message, self.cause, self.remedy, retryable=self.retryable)


class AgentExit(Exception):
    """In place of a SystemExit or a KeyboardInterrupt, which would end the loop that all runs share.

    An ordinary exception, so that in a tool it is a failed result, and anywhere else the end of that run only.
    """

    def __init__(self, error: BaseException) -> None:
        """Name what was raised; of an exit also its code, if that is a number."""
        self.cause = type(error).__name__
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else None
        super().__init__(f"the agent raised {self.cause}" + ("" if code is None else f"({code})"))

    def ended(self) -> RunEnded:
        """How the run ends of it."""
        remedy = "let agents and tools raise ordinary exceptions"
        return RunEnded(Reason.AGENT_ERROR, "agent_exit", str(self), cause=self.cause, remedy=remedy)


def exit_in(error: BaseException) -> AgentExit | None:
    """The exit that an exception is, or that a group of them holds: a task group wraps what its tasks raise."""
    if isinstance(error, BaseExceptionGroup):
        return next((found for each in error.exceptions if (found := exit_in(each)) is not None), None)
    return error if isinstance(error, AgentExit) else None


def run_error(code: str, message: str, cause: str | None, remedy: str, *, retryable: bool) -> dict[str, Any]:
    """The `error` object of run.failed and of the run record: secrets masked, the message cut at 2,000 characters."""
    return {
        "code": code,
        "message": encodable(mask(message)[:2000]),
        "cause": cause if cause is None else encodable(mask(cause)),
        "retryable": retryable,
        "remedy": remedy,
    }

"""What a session answers to a start or a steer that the store did not take: each error with what helps."""

from __future__ import annotations

from holdfast.domain.errors import HoldfastError
from holdfast.domain.runs import Policy
from holdfast.ports.store import NewRun


def busy(new: NewRun, active: str | None) -> HoldfastError:
    """The session works for somebody else, and `new` may not wait, or not behind so many."""
    said, remedy = f"session {new.session} has an active run", None
    if new.policy is Policy.ENQUEUE:
        most = new.limits.queued_behind_max
        said += f", and {most} {'run waits' if most == 1 else 'runs wait'} behind it"
        remedy = "wait until one has begun, stop one of them, send on_busy supersede, or raise queued_behind"
    return HoldfastError("session_busy", said, remedy=remedy, session=new.session, active=active)


def conflict(key: str, run: str | None) -> HoldfastError:
    """`key` is that of another request."""
    return HoldfastError("idempotency_conflict", f"Idempotency-Key {key!r} was used with another body", run=run)


def inbox_full(run: str, most: int) -> HoldfastError:
    """The run has not read what it was steered with before, and there is a bound for that."""
    return HoldfastError(
        "session_busy",
        f"{most} inputs wait to be read by run {run}",
        remedy="wait until the run has read them, or stop it",
        run=run,
    )

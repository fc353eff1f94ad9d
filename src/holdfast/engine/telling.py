"""The log lines of a run's end, in the order that DESIGN gives them, whoever tells it."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.domain.ids import SYNTHETIC_TENANT
from holdfast.domain.runs import Reason, State
from holdfast.engine.outcomes import Outcome
from holdfast.ports.store import Claim, Ended
from holdfast.telemetry import Log, Scope


def tell_end(log: Log, end: Ended) -> None:
    """stream_cancelled, what became of a superseded stream, stream_end, cleanup_done: at the time of the end."""
    if end.key.tenant == SYNTHETIC_TENANT:
        return
    run, at = end.key.run, end.ended_at
    facts = {"trace": end.trace, "run": run, "session": end.session}
    if end.state is State.CANCELLED:
        log.write("stream_cancelled", at, **facts, reason=end.reason, by=end.by or None)
    if end.reason is Reason.SUPERSEDED:
        word = "prev_stream_timeout_on_cancel" if end.cut_off else "prev_stream_finished_cleanly"
        log.write(word, at, run=run, session=end.session)
    took = max(0, end.ended_at - end.created_at)
    log.write("stream_end", at, **facts, state=end.state, reason=end.reason, duration_ms=took)
    log.write("cleanup_done", at, run=run)


def scope_of(claim: Claim) -> Scope:
    """Whose events telemetry is told."""
    spec = claim.spec
    return Scope(claim.key.run, claim.session, spec.trace, spec.agent, spec.model, claim.attempt, spec.input)


def as_ended(claim: Claim, outcome: Outcome, ended_at: int) -> Ended:
    """The end of a run that its own worker finished."""
    return Ended(
        key=claim.key,
        session=claim.session,
        trace=claim.spec.trace,
        state=outcome.state,
        reason=outcome.reason,
        by=outcome.by,
        cut_off=outcome.abandoned or any(end.ended == "abandoned" for end in outcome.ends),
        created_at=claim.created_at,
        ended_at=ended_at,
    )


def tell_ends(log: Log, ends: Iterable[Ended]) -> None:
    """The ends that a step of the store left to its caller."""
    for end in ends:
        tell_end(log, end)

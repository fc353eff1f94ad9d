"""Between the replies of scripts and values; fields are in the order of scripts/lib/record.lua and its neighbours."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from holdfast.domain.ids import RunKey
from holdfast.domain.messages import HistoryEntry
from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.store import (
    Cap,
    Claim,
    Ended,
    Fence,
    Glance,
    Page,
    Roster,
    RunRecord,
    RunSpec,
    SessionRecord,
    Shed,
    Status,
    WorkerRecord,
)
from holdfast.stores.composing import Result

_spec = msgspec.json.Decoder(RunSpec)
_result = msgspec.json.Decoder(Result)
_entry = msgspec.json.Decoder(HistoryEntry)
_NO_SPEC: Final = RunSpec(input="", agent="")


def uid(key: RunKey) -> str:
    """A run in keys and sorted sets; as `uid_of` in base.lua, whose lengths are in bytes."""
    return f"{len(key.tenant.encode())}:{key.tenant}/{key.run}"


def spec_of(data: bytes | None) -> RunSpec:
    """What a run was asked."""
    return _spec.decode(data) if data else _NO_SPEC


def shed_of(more: list[Any]) -> Shed | None:
    """Why a create was refused, after what it superseded; or None."""
    if len(more) < 2:
        return None
    cap, limit, found, ends, ends_ms = more[1]
    return Shed(Cap(cap.decode()), limit, found, ends, ends_ms)


def record_of(reply: list[Any] | None) -> RunRecord | None:
    """A snapshot of a run, or None."""
    if not reply:
        return None
    (tenant, run, session, spec, policy, state, reason, stopping, head, epoch, attempt, worker, *rest) = reply
    created_at, ready_at, started_at, ended_at, position, due_in_ms, lease_left_ms, result, rehearsal = rest
    end = _result.decode(result) if result else Result()
    return RunRecord(
        key=RunKey(tenant.decode(), run.decode()),
        session=session.decode(),
        spec=spec_of(spec),
        policy=Policy(policy.decode()),
        state=State(state.decode()),
        reason=reason_of(reason),
        stopping=reason_of(stopping),
        seq=head,
        epoch=epoch,
        attempt=attempt,
        worker=worker.decode(),
        created_at=created_at,
        ready_at=ready_at,
        started_at=started_at,
        ended_at=ended_at,
        position=position,
        due_in_ms=due_in_ms,
        lease_left_ms=lease_left_ms,
        usage=end.usage,
        error=end.error,
        receipt=end.receipt,
        output=end.output,
        rehearsal=bool(rehearsal),
        ttft_ms=end.ttft_ms,
    )


def roster_of(reply: list[Any]) -> Roster:
    """How runs stand."""
    rows, upto = reply
    return Roster([Glance(run.decode(), number, mark.decode()) for run, number, mark in rows], upto)


def reason_of(reply: bytes | None) -> Reason | None:
    """A reason, or None."""
    return Reason(reply.decode()) if reply else None


def ended_of(reply: list[Any]) -> Ended:
    """An end that its reader tells."""
    tenant, run, session, trace, state, reason, by, cut_off, created_at, ended_at = reply
    return Ended(
        key=RunKey(tenant.decode(), run.decode()),
        session=session.decode(),
        trace=trace.decode(),
        state=State(state.decode()),
        reason=Reason(reason.decode()),
        by=by.decode(),
        cut_off=bool(cut_off),
        created_at=created_at,
        ended_at=ended_at,
    )


def claim_of(reply: list[Any]) -> Claim:
    """A run that was handed out."""
    tenant, run, session, epoch, token, base, attempt, attempts_max, spec, deadline_left_ms, *rest = reply
    checkpoint, checkpoint_seq, created_at, ready_at, decisions, before = rest
    return Claim(
        key=RunKey(tenant.decode(), run.decode()),
        session=session.decode(),
        fence=Fence(epoch, token.decode()),
        base=base,
        attempt=attempt,
        attempts_max=attempts_max,
        spec=spec_of(spec),
        deadline_left_ms=deadline_left_ms,
        checkpoint=checkpoint,
        checkpoint_seq=int(checkpoint_seq or 0),
        created_at=created_at,
        ready_at=ready_at,
        decisions=msgspec.json.decode(decisions) if decisions else [],
        before=[ended_of(end) for end in before],
    )


def page_of(after: int, reply: list[Any]) -> Page:
    """A part of a log."""
    status, state, head, epoch, resync, entries = reply
    return Page(
        status=Status(status.decode()),
        events=[data for _, data in entries],
        epochs=[int(entry.partition(b"-")[2]) for entry, _ in entries],
        first=after + 1,
        head=head,
        epoch=epoch,
        state=State(state.decode()),
        resync=bool(resync),
    )


def session_of(reply: list[Any] | None) -> SessionRecord | None:
    """A session in a list, or None."""
    if not reply:
        return None
    session, created_at, updated_at, active, queued, runs = reply
    return SessionRecord(session.decode(), int(created_at), int(updated_at), record_of(active), queued, runs)


def history_of(reply: list[bytes]) -> list[HistoryEntry]:
    """What ended runs left, in the order in which they were asked."""
    entries = dict(zip(map(int, reply[::2]), reply[1::2], strict=True))
    return [_entry.decode(entries[n]) for n in sorted(entries)]


def worker_of(reply: list[bytes]) -> WorkerRecord:
    """A worker as it reported itself."""
    name, report = reply
    seen_at, _, facts = report.partition(b"\n")
    return WorkerRecord(name.decode(), int(seen_at), msgspec.json.decode(facts))

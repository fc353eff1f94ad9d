"""Decisions of people, and results from outside, for a run that waits for them.

A run goes on when all requests of its wait are decided. A part of them is kept in the log (`run.decided`, with
what is decided so far and what is still open), so that it holds whatever process dies, and the run waits on. The same
decision again is answered as the first time; another one for the same call is late. Of several that decide at once each
finds what the others said: the store takes a decision only behind the head that it was made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from holdfast.domain.errors import HoldfastError
from holdfast.domain.events import VALUE_BYTES_MAX, EventType, bounded, decode_event, encode_json
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import State
from holdfast.ports.agent import Request
from holdfast.ports.store import Appended, RunRecord, RunStore, Status

DECISIONS_MAX: Final = 256
_TRIES_MAX: Final = 5
_PAGE: Final = 500
_MARKS: Final = (b'"type":"run.waiting"', b'"type":"run.decided"', b'"type":"run.resumed"')

Decision = dict[str, Any]


def told(requests: Sequence[Request]) -> list[dict[str, Any]]:
    """Requests as run.waiting has them; all of them together fit into one event, however large each is."""
    share = VALUE_BYTES_MAX // max(1, len(requests))
    return [
        {
            "call": each.call,
            "name": each.name,
            "args": bounded(each.args, share),
            "kind": each.kind,
            "metadata": bounded(each.metadata, share),
        }
        for each in requests
    ]


class _Wait(NamedTuple):
    """What a run waits for, and what is decided of it, up to the head of its log."""

    asked: int  # the seq of its run.waiting
    requests: list[dict[str, Any]]
    decided: dict[str, Decision]


async def decide(store: RunStore, key: RunKey, decisions: Sequence[Decision], *, partly: bool = False) -> RunRecord:
    """Take these decisions about a waiting run, which goes on once nothing is open; its record then.

    Args:
        store: Where the run is.
        key: The run.
        decisions: Of one or more of its calls.
        partly: Whether some may be left open.

    Raises:
        HoldfastError: unknown_run; invalid_request for a call that does not wait, one that is missing, or a decision
            that does not fit what is asked; late_decision where the run waits no longer, or the call was decided
            otherwise.
    """
    given = _by_call(decisions)
    for _ in range(_TRIES_MAX):
        record = await store.get(key)
        if record is None:
            raise HoldfastError("unknown_run", f"no run {key.run}", run=key.run)
        if record.state is not State.WAITING:
            return await _again(store, record, given)
        wait = await _wait(store, record)
        if wait is None:
            continue  # it went on meanwhile
        _check(wait, given, record, partly=partly)
        answer = await _tell(store, record, wait, given)
        if answer is None:
            return record
        if answer.status is Status.OK:
            found = await store.get(key)
            return record if found is None else found
    raise HoldfastError("store_unavailable", f"run {key.run} changed {_TRIES_MAX} times meanwhile", run=key.run)


async def _tell(store: RunStore, record: RunRecord, wait: _Wait, given: dict[str, Decision]) -> Appended | None:
    """Let the run go on, or keep what is decided; None where all of it is kept already."""
    known = wait.decided | given
    calls = [request["call"] for request in wait.requests]
    told = [known[call] for call in calls if call in known]
    left = [call for call in calls if call not in known]
    if not left:
        return await store.resume(record.key, told, record.seq)
    if known == wait.decided:
        return None
    fields = {"decisions": told, "open": left, "asked": wait.asked}
    if len(encode_json(fields)) > VALUE_BYTES_MAX:
        raise _invalid(f"the decisions so far have more than {VALUE_BYTES_MAX} bytes; decide the rest at once")
    return await store.decide(record.key, fields, record.seq)


def _by_call(decisions: Sequence[Decision]) -> dict[str, Decision]:
    given: dict[str, Decision] = {}
    for each in decisions:
        if given.setdefault(each["call"], each) != each:
            raise HoldfastError("invalid_request", f"call {each['call']!r} is decided twice, in different ways")
    return given


async def open_calls(store: RunStore, record: RunRecord) -> list[str]:
    """The calls that a waiting run still waits for; none where it does not wait, or goes on just now."""
    wait = await _wait(store, record) if record.state is State.WAITING else None
    calls = [request["call"] for request in wait.requests] if wait is not None else []
    return [call for call in calls if wait is not None and call not in wait.decided]


async def _wait(store: RunStore, record: RunRecord) -> _Wait | None:
    """What the run waits for: its log ends with what it asked, or with what was decided of that."""
    last = await _event_at(store, record, record.seq)
    decided: dict[str, Decision] = {}
    asked = record.seq
    if last is not None and last.get("type") == EventType.RUN_DECIDED:
        decided, asked = _by_call(last["decisions"]), last["asked"]
        last = await _event_at(store, record, asked)
    if last is None or last.get("type") != EventType.RUN_WAITING:
        return None
    return _Wait(asked, last["requests"], decided)


async def _event_at(store: RunStore, record: RunRecord, seq: int) -> dict[str, Any] | None:
    """One event of a log that has not grown since the record was read."""
    page = await store.read(record.key, seq - 1, 1)
    return decode_event(page.events[0]) if page.events and page.head == record.seq else None


def _check(wait: _Wait, given: dict[str, Decision], record: RunRecord, *, partly: bool) -> None:
    asked = {request["call"]: request for request in wait.requests}
    unknown = [call for call in given if call not in asked]
    if unknown:
        raise _invalid(f"no request waits for {', '.join(unknown)[:200]}; open are {', '.join(asked)[:500]}")
    missing = [call for call in asked if call not in given and call not in wait.decided]
    if missing and not partly:
        raise _invalid(f"no decision about {', '.join(missing)[:500]}: decide all requests of the run at once")
    for call, decision in given.items():
        if asked[call].get("kind") == "call":
            if "args" in decision or ("result" not in decision and decision.get("approve") is not False):
                raise _invalid(f"call {call!r} runs elsewhere: give its result, or approve false")
        elif not isinstance(decision.get("approve"), bool) or "result" in decision:
            raise _invalid(f"call {call!r} asks for approval: give approve true or false")
        elif "args" in decision and not decision["approve"]:
            raise _invalid(f"call {call!r} is denied: it has no args")
    for call, decision in given.items():
        if wait.decided.get(call, decision) != decision:
            raise HoldfastError(
                "late_decision", f"call {call!r} of run {record.key.run} was decided otherwise", run=record.key.run
            )


async def _again(store: RunStore, record: RunRecord, given: dict[str, Decision]) -> RunRecord:
    """A run that does not wait: the same decisions once more are no error."""
    after, decided, asked = 0, None, False
    while after < record.seq:
        page = await store.read(record.key, after, _PAGE)
        if not page.events:
            break
        for data in page.events:
            after += 1
            if not any(mark in data[:256] for mark in _MARKS):
                continue
            event = decode_event(data)
            if event["type"] in (EventType.RUN_RESUMED, EventType.RUN_DECIDED):
                before = _by_call(event["decisions"])
                if given.keys() <= before.keys():
                    decided = {call: before[call] for call in given}
            elif event["type"] == EventType.RUN_WAITING:
                asked = asked or bool({request["call"] for request in event["requests"]} & given.keys())
    if decided is not None and decided == given:
        return record
    if not asked and not record.state.terminal:
        raise _invalid(f"run {record.key.run} is {record.state} and has not asked about {', '.join(given)[:200]}")
    raise HoldfastError(
        "late_decision",
        f"run {record.key.run} is {record.state}: " + ("decided otherwise before" if decided else "it waits no longer"),
        run=record.key.run,
    )


def _invalid(detail: str) -> HoldfastError:
    return HoldfastError("invalid_request", detail, remedy="run.waiting in the run's log has the requests")

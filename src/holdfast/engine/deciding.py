"""Decisions of people, and results from outside, for a run that waits for them.

All requests of a wait are decided in one request: a part is refused and says what is missing, so that a run never
waits on with half an answer that nobody remembers giving. The same decisions again are answered as the first time;
others are late. Two that decide at once: the store lets one of them through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from holdfast.domain.errors import HoldfastError
from holdfast.domain.events import VALUE_BYTES_MAX, EventType, bounded, decode_event
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import State
from holdfast.ports.agent import Request
from holdfast.ports.store import RunRecord, RunStore, Status

DECISIONS_MAX: Final = 256
_TRIES_MAX: Final = 5
_PAGE: Final = 500

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


async def decide(store: RunStore, key: RunKey, decisions: Sequence[Decision]) -> RunRecord:
    """Let a waiting run go on with these decisions; its record then.

    Raises:
        HoldfastError: unknown_run; invalid_request for a call that does not wait, one that is missing, or a decision
            that does not fit what is asked; late_decision where the run waits no longer.
    """
    for _ in range(_TRIES_MAX):
        record = await store.get(key)
        if record is None:
            raise HoldfastError("unknown_run", f"no run {key.run}", run=key.run)
        given = _by_call(decisions)
        if record.state is not State.WAITING:
            return await _again(store, record, given)
        requests = await _requests(store, record)
        if requests is None:
            continue  # it went on meanwhile
        _check(requests, given)
        answer = await store.resume(key, [given[request["call"]] for request in requests])
        if answer.status is Status.OK:
            found = await store.get(key)
            return record if found is None else found
    raise HoldfastError("store_unavailable", f"run {key.run} changed {_TRIES_MAX} times meanwhile", run=key.run)


def _by_call(decisions: Sequence[Decision]) -> dict[str, Decision]:
    given: dict[str, Decision] = {}
    for each in decisions:
        if given.setdefault(each["call"], each) != each:
            raise HoldfastError("invalid_request", f"call {each['call']!r} is decided twice, in different ways")
    return given


async def _requests(store: RunStore, record: RunRecord) -> list[dict[str, Any]] | None:
    """What the run waits for: the last event of its log, while nobody has decided."""
    page = await store.read(record.key, record.seq - 1, 1)
    event = decode_event(page.events[0]) if page.events else {}
    if page.head != record.seq or event.get("type") != EventType.RUN_WAITING:
        return None
    found: list[dict[str, Any]] = event["requests"]
    return found


def _check(requests: Sequence[dict[str, Any]], given: dict[str, Decision]) -> None:
    asked = {request["call"]: request for request in requests}
    unknown = [call for call in given if call not in asked]
    if unknown:
        raise _invalid(f"no request waits for {', '.join(unknown)[:200]}; open are {', '.join(asked)[:500]}")
    missing = [call for call in asked if call not in given]
    if missing:
        raise _invalid(f"no decision about {', '.join(missing)[:500]}: decide all requests of the run at once")
    for call, decision in given.items():
        if asked[call].get("kind") == "call":
            if "args" in decision or ("result" not in decision and decision.get("approve") is not False):
                raise _invalid(f"call {call!r} runs elsewhere: give its result, or approve false")
        elif not isinstance(decision.get("approve"), bool) or "result" in decision:
            raise _invalid(f"call {call!r} asks for approval: give approve true or false")
        elif "args" in decision and not decision["approve"]:
            raise _invalid(f"call {call!r} is denied: it has no args")


async def _again(store: RunStore, record: RunRecord, given: dict[str, Decision]) -> RunRecord:
    """A run that does not wait: the same decisions once more are no error."""
    after, decided, asked = 0, None, False
    while after < record.seq:
        page = await store.read(record.key, after, _PAGE)
        if not page.events:
            break
        for data in page.events:
            after += 1
            if b'"type":"run.resumed"' not in data[:256] and b'"type":"run.waiting"' not in data[:256]:
                continue
            event = decode_event(data)
            if event["type"] == EventType.RUN_RESUMED:
                before = _by_call(event["decisions"])
                decided = before if before.keys() == given.keys() else decided
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

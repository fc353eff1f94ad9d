"""Judges a run's log: pure functions that return what is wrong with it, in words, or nothing."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from holdfast.domain.events import TERMINAL, EventType
from holdfast.probe.chats import difference

Event = Mapping[str, Any]

_DONE_OF: Final = {EventType.TEXT_DONE: EventType.TEXT_DELTA, EventType.REASONING_DONE: EventType.REASONING_DELTA}
_ENDED: Final = frozenset({"cancelled", "killed", "abandoned", "finished", "unknown"})


def log_problems(events: Sequence[Event]) -> list[str]:
    """What is wrong with a log that was read from its start to its end."""
    problems = _order(events)
    ends = [(i, e["type"]) for i, e in enumerate(events) if e.get("type") in TERMINAL]
    if len(ends) > 1:
        problems.append(f"{len(ends)} terminal events: {', '.join(kind for _, kind in ends)}")
    elif not ends:
        last = events[-1].get("type") if events else "nothing"
        problems.append(f"no terminal event; the last is {last}")
    if ends and ends[0][0] != len(events) - 1:
        after = [str(e.get("type")) for e in events[ends[0][0] + 1 :]]
        problems.append(f"after the terminal event come {len(after)} more: {', '.join(after[:5])}")
    runs = {e.get("run") for e in events}
    if len(runs) > 1:
        problems.append(f"events of {len(runs)} runs in one log: {', '.join(sorted(map(str, runs))[:3])}")
    return problems + _parts(events)


def _order(events: Sequence[Event]) -> list[str]:
    seqs = [seq for e in events if type(seq := e.get("seq")) is int]
    if len(seqs) != len(events):
        return ["an event without a seq"]
    for place, seq in enumerate(seqs, 1):
        if seq != place:
            kind = "repeated or out of order" if seq in seqs[: place - 1] else "missing before it"
            return [f"seq {seq} comes where {place} should: {kind}"]
    if events and events[0].get("type") != EventType.RUN_CREATED:
        return [f"the first event is {events[0].get('type')}"]
    return []


def _parts(events: Sequence[Event]) -> list[str]:
    said: dict[tuple[str, Any], str] = {}
    problems = []
    for event in events:
        kind = event.get("type")
        if kind in _DONE_OF.values():
            key = (str(kind), event.get("part"))
            said[key] = said.get(key, "") + str(event.get("text", ""))
        elif kind in _DONE_OF:
            deltas = said.get((_DONE_OF[EventType(kind)], event.get("part")), "")
            if deltas != event.get("text"):
                problems.append(
                    f"the deltas of part {event.get('part')} do not add up to its {kind}: "
                    f"{difference(deltas, str(event.get('text')))}"
                )
    return problems


def suffix_problem(whole: Sequence[str], found: Sequence[str], after: int) -> str:
    """What is wrong with the events that a reader got after offset `after`; both as the bytes that were sent."""
    want = whole[after:]
    if list(found) == list(want):
        return ""
    seqs = [_seq(data) for data in found]
    missing = [n for n in range(after + 1, len(whole) + 1) if n not in seqs]
    twice = sorted({n for n in seqs if n is not None and (n <= after or seqs.count(n) > 1)})
    what = f"after {after}: {len(found)} events and not {len(want)}"
    if missing:
        what += f", seq {missing[0]} is missing"
    if twice:
        what += f", seq {twice[0]} came again"
    if not missing and not twice:
        what += ", other bytes than before" if len(found) == len(want) else ", in another order"
    return what


def _seq(data: str) -> int | None:
    try:
        found: Any = json.loads(data)
    except ValueError:
        return None
    return found.get("seq") if isinstance(found, dict) else None


def text_of(events: Sequence[Event]) -> str:
    """What the deltas said, attempts that were discarded included."""
    return "".join(str(e.get("text", "")) for e in events if e.get("type") == EventType.TEXT_DELTA)


def end_problem(events: Sequence[Event], kind: str, reason: str | None = None) -> str:
    """Whether a log ended in another way than this."""
    end = events[-1] if events else {}
    found = (end.get("type"), end.get("reason"))
    if found[0] == kind and (reason is None or found[1] == reason):
        return ""
    error = end.get("error") if isinstance(end.get("error"), dict) else {}
    more = f" ({error.get('code')}: {error.get('message')})" if error else ""
    return f"it ended with {found[0] or 'nothing'}, reason {found[1]}{more}"


def receipt_problems(end: Event, partial: str | None) -> list[str]:
    """What is wrong with the receipt of a run that was stopped.

    `partial` is what its deltas said, or None where some of it was discarded.
    """
    receipt = end.get("receipt")
    if not isinstance(receipt, dict):
        return ["the terminal event has no receipt"]
    problems = []
    names = ("requested_at", "ended_at", "elapsed_ms", "upstream_closed_ms", "tools", "abandoned", "by")
    if missing := [name for name in names if name not in receipt]:
        problems.append(f"the receipt lacks {', '.join(missing)}")
    problems += [
        f"the receipt does not say how a tool ended: {tool}"
        for tool in receipt.get("tools") or []
        if not isinstance(tool, dict) or tool.get("ended") not in _ENDED
    ]
    if partial is not None and (end.get("partial") or "") != partial:
        problems.append(f"partial is {difference(str(end.get('partial') or ''), partial)}")
    return problems


def moment(event: Event) -> float | None:
    """When an event was written, in seconds since 1970."""
    try:
        return dt.datetime.fromisoformat(str(event.get("ts"))).timestamp()
    except ValueError:
        return None


def start_of(events: Sequence[Event]) -> Event | None:
    """The first run.started of a log."""
    return next((e for e in events if e.get("type") == EventType.RUN_STARTED), None)


def strict_problem(first: Sequence[Event], second: Sequence[Event]) -> str:
    """Whether a run of a session started before the one before it had ended, by the server's own times."""
    began = start_of(second)
    if began is None or not first:
        return ""
    ended_at, began_at = moment(first[-1]), moment(began)
    if ended_at is None or began_at is None:
        return "an event without a time"
    if began_at < ended_at:
        return f"the second run started {(ended_at - began_at) * 1000:.0f} ms before the first had ended"
    return ""

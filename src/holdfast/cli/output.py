"""How facts look as text: events, receipts, ends, tables. Pure functions; nothing here talks to a server."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import click

from holdfast.domain.events import EventType

Facts = Mapping[str, Any]

_VALUE_CHARACTERS_MAX: Final = 200
# What a model or a tool says may not move the cursor or rename the window: control characters but tab and newline.
_CONTROL: Final = {c: "\ufffd" for c in (*range(32), 127, *range(128, 160)) if c not in (9, 10)}
_DUE: Final = {"queued": "queue_timeout", "running": "run_deadline", "waiting": "approval_deadline"}
_HEAD: Final = frozenset({"seq", "run", "type", "ts"})


def clean(text: str) -> str:
    """Text of a model, a tool or a user, without control characters."""
    return text.replace("\r\n", "\n").translate(_CONTROL)


def one_line(value: Any) -> str:
    """A value as a short piece of one line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = clean(text).replace("\n", "\\n")
    return text if len(text) <= _VALUE_CHARACTERS_MAX else text[: _VALUE_CHARACTERS_MAX - 2] + ".."


def duration(ms: float | None) -> str:
    """Milliseconds as a person says them."""
    if ms is None:
        return "unknown"
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 120_000:
        return f"{ms / 1000:.1f} s"
    if ms < 7_200_000:
        return f"{ms / 60_000:.0f} min"
    return f"{ms / 3_600_000:.1f} h"


def age(at: Any, now: dt.datetime | None = None) -> str:
    """How long ago a timestamp was; "" for what is none."""
    if not isinstance(at, str):
        return ""
    try:
        then = dt.datetime.fromisoformat(at)
    except ValueError:
        return ""
    return duration(max(0.0, ((now or dt.datetime.now(dt.UTC)) - then).total_seconds() * 1000))


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns as wide as their widest cell; None is shown as nothing."""
    cells = [list(headings), *(["" if c is None else one_line(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def print_json(value: Any) -> None:
    """One JSON document, or one line of many."""
    click.echo(json.dumps(value, ensure_ascii=False))


def event_line(event: Facts) -> str:
    """An event as one line: seq, type, then its fields."""
    seq = event.get("seq")
    fields = " ".join(f"{name}={one_line(value)}" for name, value in event.items() if name not in _HEAD)
    return f"{'-' if seq is None else seq:>6}  {event['type']:<18} {fields}".rstrip()


def receipt_words(receipt: Facts) -> list[str]:
    """What was stopped, when, and what could not be; one sentence a line."""
    words = [f"ended {duration(receipt.get('elapsed_ms'))} after the request, by the {receipt.get('by', 'worker')}"]
    closed = receipt.get("upstream_closed_ms")
    if closed is None:
        words.append("no model connection was seen closing: none was open, or nobody could tell")
    else:
        words.append(f"model connection closed after {duration(closed)}")
    words += [_tool_words(tool) for tool in receipt.get("tools", ())]
    if receipt.get("abandoned"):
        words.append("something did not stop in time: it was cut off and can write nothing more")
    return words


def end_words(event: Facts) -> list[str]:
    """How a run ended, from its terminal event; nothing for a run that completed."""
    match event["type"]:
        case EventType.RUN_FAILED:
            return [f"failed: {event.get('reason')}", *error_words(event.get("error"))]
        case EventType.RUN_CANCELLED:
            by = f" by {one_line(event['by'])}" if event.get("by") else ""
            return [f"cancelled: {event.get('reason')}{by}", *receipt_words(event.get("receipt") or {})]
        case _:
            return []


def record_words(record: Facts) -> list[str]:
    """How a run stands, from its record."""
    run, state = record.get("id"), record.get("state")
    if state == "cancelled":
        return [f"run {run} cancelled: {record.get('reason')}", *receipt_words(record.get("receipt") or {})]
    if state == "failed":
        return [f"run {run} failed: {record.get('reason')}", *error_words(record.get("error"))]
    if state == "completed":
        return [f"run {run} had completed"]
    if record.get("stopping"):
        return [f"run {run} was told to stop ({record['stopping']}) and has not ended yet"]
    return [f"run {run} is {state}"]


def error_words(error: Facts | None) -> list[str]:
    """A run's error object: code, message, remedy."""
    if not error:
        return []
    words = [f"{error.get('code')}: {one_line(error.get('message', ''))}"]
    return [*words, one_line(error["remedy"])] if error.get("remedy") else words


def wait_words(inspection: Facts) -> str:
    """What an unfinished run waits on, since when, and what ends that."""
    words = one_line(inspection.get("waiting_on") or "nothing known")
    if inspection.get("since_ms") is not None:
        words += f", for {duration(inspection['since_ms'])}"
    timer = next_timer(inspection)
    return f"{words}; {timer}" if timer else words


def next_timer(inspection: Facts) -> str:
    """The timer that ends the wait first, as `<name> in <time>`. A lease is renewed, so it ends nothing."""
    timers = [
        (timer["left_ms"], timer_name(timer["name"], inspection))
        for timer in inspection.get("timers", ())
        if timer.get("left_ms") is not None and timer["name"] != "lease"
    ]
    if inspection.get("fires") and inspection.get("fires_in_ms") is not None:
        timers.append((inspection["fires_in_ms"], inspection["fires"]))
    if not timers:
        return ""
    left_ms, name = min(timers)
    return f"{name} in {duration(max(0, left_ms))}"


def stack_lines(stacks: Iterable[Facts]) -> list[str]:
    """Where tasks wait and threads are: a line for each, and its frames below it, outermost first."""
    lines = []
    for each in stacks:
        if "task" in each:
            lines.append(f"  task {one_line(each['task'])}")
        else:
            left = ", which nobody waits for any more" if each.get("quarantined") else ""
            lines.append(f"  thread of call {one_line(each.get('call', '?'))}{left}")
        lines += [f"    {one_line(frame)}" for frame in each.get("stack", ())]
    return lines


def timer_name(name: str, inspection: Facts) -> str:
    """The store's timer `due` under the name of the setting that it is in this state."""
    if name == "due" and inspection.get("behind"):
        return "session_wait"
    return _DUE.get(str(inspection.get("state")), name) if name == "due" else name


def _tool_words(tool: Facts) -> str:
    name = one_line(tool.get("name", "?"))
    match tool.get("ended"):
        case "abandoned":
            return f"tool {name} could not be stopped: abandoned, its result counts no more"
        case "unknown":
            return f"tool {name}: nobody knows whether it ended"
        case ended:
            return f"tool {name} {ended}"

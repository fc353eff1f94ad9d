"""How facts look in the commands: events, records, waits, tables. Pure functions; nothing here talks to a server."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

import click

from holdfast.domain.words import Facts, duration, error_words, one_line, receipt_words

_DUE: Final = {"queued": "queue_timeout", "running": "run_deadline", "waiting": "approval_deadline"}
_HEAD: Final = frozenset({"seq", "run", "type", "ts"})


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

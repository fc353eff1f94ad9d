"""How facts look as text at a terminal: values, durations, receipts, ends. Pure; nothing here talks to a server."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any, Final

from holdfast.domain.events import EventType

Facts = Mapping[str, Any]

_VALUE_CHARACTERS_MAX: Final = 200
_QUEUED_MS: Final = 1000  # a shorter wait for other runs is not worth telling
# What a model or a tool says may not move the cursor or rename the window: control characters but tab and newline.
_CONTROL: Final = {c: "\ufffd" for c in (*range(32), 127, *range(128, 160)) if c not in (9, 10)}


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


def answer_words(event: Facts, queued_ms: float = 0) -> str:
    """How long a completed run took without `queued_ms` before its first start; empty where its end says nothing."""
    total: float | None = (event.get("timings") or {}).get("total_ms")
    if total is None:
        return ""
    if queued_ms < _QUEUED_MS:
        return f"answered in {duration(total)}"
    return f"answered in {duration(total - queued_ms)}, after waiting {duration(queued_ms)}"


def error_words(error: Facts | None) -> list[str]:
    """A run's error object: code, message, remedy."""
    if not error:
        return []
    words = [f"{error.get('code')}: {one_line(error.get('message', ''))}"]
    return [*words, one_line(error["remedy"])] if error.get("remedy") else words


def _tool_words(tool: Facts) -> str:
    name = one_line(tool.get("name", "?"))
    match tool.get("ended"):
        case "abandoned":
            return f"tool {name} could not be stopped: abandoned, its result counts no more"
        case "unknown":
            return f"tool {name}: nobody knows whether it ended"
        case ended:
            return f"tool {name} {ended}"

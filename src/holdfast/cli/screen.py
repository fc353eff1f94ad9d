"""A run on a terminal, as lines: the answer as it comes, everything else in brackets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from holdfast.domain.events import EventType
from holdfast.domain.words import clean, duration, end_words, one_line

Write = Callable[[str], None]


class Screen:
    """Shows events in order, one `show` each. Text already shown cannot be taken back, so a retraction is said."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._at_line_start = True
        self._part: int | None = None
        self._shown: set[int] = set()
        self._answered = False

    def show(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        match event["type"]:
            case EventType.TEXT_DELTA:
                self._text(event["part"], event["text"])
            case EventType.REASONING_DELTA:
                self._thinking(event["part"])
            case EventType.RUN_COMPLETED:
                if not self._answered and event.get("output"):
                    self.say(clean(str(event["output"])))
                self.break_line()
            case EventType.RUN_FAILED | EventType.RUN_CANCELLED:
                self.note(*end_words(event))
            case EventType.ATTEMPT_DISCARDED:
                self._discard(event)
            case _:
                words = _words(event)
                if words:
                    self.note(words)

    def note(self, *lines: str) -> None:
        """Lines that are not the answer."""
        self.break_line()
        first, *rest = lines
        self.say(f"[{first}" + "".join(f"\n {line}" for line in rest) + "]\n")

    def break_line(self) -> None:
        """Go to the start of a line."""
        if not self._at_line_start:
            self.say("\n")
        self._part = None

    def say(self, text: str) -> None:
        """Write text as it is."""
        if text:
            self._at_line_start = text.endswith("\n")
            self._write(text)

    def _text(self, part: int, text: str) -> None:
        if part != self._part:
            self.break_line()
            self._part = part
        self._shown.add(part)
        self._answered = True
        self.say(clean(text))

    def _thinking(self, part: int) -> None:
        if part not in self._shown:
            self._shown.add(part)
            self.note("thinking")

    def _discard(self, event: Mapping[str, Any]) -> None:
        if self._shown.intersection(event.get("parts", ())):
            self.note(f"discarded ({one_line(event.get('reason', ''))}): what follows replaces the text above")
        self._answered = False


def _words(event: Mapping[str, Any]) -> str:
    match event["type"]:
        case EventType.TOOL_CALLED:
            return f"{one_line(event['name'])} {one_line(event.get('args'))}"
        case EventType.TOOL_PROGRESS:
            return f".. {one_line(event.get('text', ''))}"
        case EventType.TOOL_FINISHED:
            took = duration(event.get("duration_ms"))
            return f"{one_line(event['name'])}: {event.get('outcome')} in {took}: {one_line(event.get('result'))}"
        case EventType.MODEL_RETRIED:
            return f"model retried in {duration(event.get('wait_ms'))}: {one_line(event.get('reason', ''))}"
        case EventType.RUN_STALLED:
            left, on = duration(event.get("fires_in_ms")), one_line(event.get("waiting_on"))
            end = f", ends in {left} at the latest ({event.get('fires')})" if event.get("fires") else ""
            return f"waiting on {on} for {duration(event.get('since_ms'))}{end}"
        case EventType.DEGRADED:
            return f"degraded: {one_line(event.get('what'))}: {one_line(event.get('why'))}"
        case EventType.RUN_WAITING:
            return f"waiting for a decision: {one_line(event.get('requests'))}"
        case EventType.RUN_DECIDED:
            return f"waiting for the rest of the decisions: {one_line(event.get('open'))}"
        case EventType.RUN_EDITED:
            return f"edited: {one_line(event.get('input', ''))}"
        case EventType.STEERED:
            return f"steered: {one_line(event.get('input', ''))}"
        case "resync":
            return "the server's log began anew: what follows replaces everything above"
        case _:
            return ""

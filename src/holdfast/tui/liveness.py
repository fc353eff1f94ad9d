"""What a run does now, in words: its phase, its tools, how long, and how long ago anything happened. Pure.

A notice that nothing happens is no progress, and neither is reading an old log again: ages are those of the events.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

from holdfast.domain.events import EventType
from holdfast.domain.words import duration, one_line

_NAMES_MAX: Final = 3
_PLAIN_S: Final = 120


class Liveness:
    """The state of one run as its readers know it. Times are seconds since the epoch."""

    def __init__(self, now: float) -> None:
        """A run that nothing is known of, first seen at `now`."""
        self.began = self.heard = now
        self.queued_s: float | None = None  # until its first start
        self.stopping = self.waiting = self.ended = False
        self.connected = True
        self._phase = "queued"
        self._tools: dict[str, str] = {}
        self._stall: tuple[str, str, float] | None = None

    def take(self, event: Mapping[str, Any], now: float) -> None:
        """One event of the log, in order."""
        at = min(now, _seconds(event.get("ts"), now))
        kind = event["type"]
        if kind == EventType.RUN_STALLED:
            self.heard = min(self.heard, at - event["since_ms"] / 1000)
            ends = at + (event.get("fires_in_ms") or 0) / 1000
            self._stall = (one_line(event["waiting_on"]), str(event.get("fires") or ""), ends)
            return
        self.heard, self._stall = max(self.began, at), None
        match kind:
            case EventType.RUN_CREATED:
                self.began = at
            case EventType.RUN_STARTED | EventType.ATTEMPT_DISCARDED:
                if self.queued_s is None:
                    self.queued_s = max(0.0, at - self.began)
                self._phase, self._tools = "starting", {}
            case EventType.MODEL_REQUESTED:
                self._phase = "waiting for the model"
            case EventType.REASONING_DELTA:
                self._phase = "reasoning"
            case EventType.TEXT_DELTA:
                self._phase = "answering"
            case EventType.TOOL_ARGS:
                self._phase = f"asking for {one_line(event['name'])}"
            case EventType.TOOL_CALLED:
                self._tools[event["call"]] = one_line(event["name"])
            case EventType.TOOL_FINISHED:
                self._tools.pop(event["call"], None)
                self._phase = "between two steps"
            case EventType.MODEL_RESPONDED:
                self._phase = "between two steps"
            case EventType.MODEL_RETRIED:
                self._phase = "waiting to ask the model again"
            case EventType.RUN_WAITING | EventType.RUN_RESUMED:
                self.waiting = kind == EventType.RUN_WAITING
                self._phase, self._tools = "queued", {}
            case EventType.RUN_STOPPING:
                self.stopping = True
            case EventType.RUN_COMPLETED | EventType.RUN_FAILED | EventType.RUN_CANCELLED:
                self.ended = True
            case _:
                pass

    def words(self, now: float) -> str:
        """One line for whoever waits."""
        silence = max(0, int(now - self.heard))
        silent = f"{silence} s" if silence < _PLAIN_S else duration(1000 * silence)
        if not self.connected:
            return f"disconnected, the run is not stopped; it was {self._doing()}, last heard of {silent} ago"
        ends = ""
        if self._stall and not self.stopping and self._stall[1]:
            ends = f", ends in {duration(1000 * max(0.0, self._stall[2] - now))} at the latest ({self._stall[1]})"
        so_far = duration(1000 * max(0.0, now - self.began))
        return f"{self._doing()}{ends}; {so_far} so far, last progress {silent} ago"

    def _doing(self) -> str:
        if self.stopping:
            return "stopping"
        if self.waiting:
            return "waiting for a decision"
        if self._stall:
            return f"waiting on {self._stall[0]}"
        names = list(self._tools.values())
        more = f" and {len(names) - _NAMES_MAX} more" if len(names) > _NAMES_MAX else ""
        return f"running {', '.join(names[:_NAMES_MAX])}{more}" if names else self._phase


def _seconds(ts: Any, default: float) -> float:
    try:
        return dt.datetime.fromisoformat(ts).timestamp()
    except (TypeError, ValueError):
        return default

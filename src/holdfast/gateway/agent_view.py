"""The agent view: a run's log as the frames of an agent at work, for clients that know those only.

    agent_started -> (agent_thinking | tool_executing ... tool_completed)* -> agent_completed
                                                                            | agent_failed | agent_cancelled

A pure function of a log prefix: `AgentView` is fed every event from the first on, and what it answers depends on
nothing else. So the frames have numbers of their own, from 1 without a gap, and a reader resumes by those: one event
may make several frames (a run that ends with two tools open makes three), and a cut may fall between them.

Each tool_executing has its tool_completed: where the log has no end of a call (the run was stopped, the attempt was
discarded), the view says so itself, before whatever comes next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from holdfast.domain.events import EventType

Frame = dict[str, Any]

# What is not text and not a tool, as agent_thinking of a kind: the fields that are passed on.
_NOTICES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    EventType.MODEL_REQUESTED: ("model", ("step", "model", "attempt")),
    EventType.REASONING_DELTA: ("reasoning", ("part", "text")),
    EventType.TEXT_DELTA: ("text", ("part", "text")),
    EventType.TOOL_PROGRESS: ("tool", ("call", "text")),
    EventType.MODEL_RETRIED: ("retry", ("step", "attempt", "reason", "wait_ms")),
    EventType.ATTEMPT_DISCARDED: ("discarded", ("step", "reason", "parts", "calls")),
    EventType.RUN_STALLED: ("stalled", ("waiting_on", "since_ms", "fires", "fires_in_ms")),
    EventType.DEGRADED: ("degraded", ("what", "why")),
    EventType.RUN_WAITING: ("waiting", ("requests",)),
    EventType.RUN_DECIDED: ("decided", ("decisions", "open")),
    EventType.RUN_RESUMED: ("resumed", ("decisions",)),
    EventType.STEERED: ("steered", ("input",)),
    EventType.RUN_STOPPING: ("stopping", ("reason", "by")),
}
_ENDS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    EventType.RUN_COMPLETED: ("agent_completed", ("output", "usage", "timings")),
    EventType.RUN_FAILED: ("agent_failed", ("reason", "error", "partial", "usage", "receipt")),
    EventType.RUN_CANCELLED: ("agent_cancelled", ("reason", "by", "partial", "usage", "receipt")),
}


class AgentView:
    """The fold from events to frames. Feed it every event of one run, in order, from the first.

    Attributes:
        frames: How many frames it has made.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._agent = ""
        self._thread = ""
        self._started = False
        self._open: dict[str, str] = {}  # call -> the tool's name, in the order of their calls

    def feed(self, event: Mapping[str, Any]) -> list[Frame]:
        """The frames that `event` makes, none for many of them."""
        kind = event["type"]
        match kind:
            case EventType.RUN_CREATED:
                self._agent, self._thread = event.get("agent", ""), event.get("session", "")
                return []
            case EventType.RUN_STARTED:
                return self._start(event, attempt=event.get("attempt"))
            case EventType.RUN_COMPLETED | EventType.RUN_FAILED | EventType.RUN_CANCELLED:
                return self._end(event)
            case _ if not self._started:
                return []  # a queued run does nothing yet; its first frame is agent_started
            case EventType.TOOL_CALLED:
                return self._call(event)
            case EventType.TOOL_FINISHED:
                return self._finish(event)
            case EventType.ATTEMPT_DISCARDED:
                dropped = [call for call in event.get("calls", ()) if call in self._open]
                closed = [self._close(event, call, "interrupted", discarded=True) for call in dropped]
                return [*closed, *self._notice(event)]
            case _:
                return self._notice(event)

    def _start(self, event: Mapping[str, Any], **fields: Any) -> list[Frame]:
        """The first attempt starts the agent; a later one goes on, and attempt.discarded says from where."""
        if self._started:
            return []
        self._started = True
        return [self._frame(event, "agent_started", **fields)]

    def _end(self, event: Mapping[str, Any]) -> list[Frame]:
        started = self._start(event)  # it may have ended while it was queued
        ended = {tool.get("call"): tool.get("ended") for tool in ((event.get("receipt") or {}).get("tools") or ())}
        closed = [
            self._close(
                event,
                call,
                "unknown" if ended.get(call) == "unknown" else "interrupted",
                **({"ended": ended[call]} if call in ended else {}),
            )
            for call in list(self._open)
        ]
        name, names = _ENDS[event["type"]]
        return [*started, *closed, self._frame(event, name, **_taken(event, names))]

    def _call(self, event: Mapping[str, Any]) -> list[Frame]:
        call = event["call"]
        if call in self._open:
            return []  # it is called again after a restart, and its frame is out
        self._open[call] = event["name"]
        return [self._frame(event, "tool_executing", call=call, tool_name=event["name"], args=event.get("args"))]

    def _finish(self, event: Mapping[str, Any]) -> list[Frame]:
        opened = self._call(event)  # a call that was refused has an end only
        named = ("outcome", "result", "duration_ms")
        del self._open[event["call"]]
        done = self._frame(event, "tool_completed", call=event["call"], tool_name=event["name"], **_taken(event, named))
        return [*opened, done]

    def _close(self, event: Mapping[str, Any], call: str, outcome: str, **fields: Any) -> Frame:
        name = self._open.pop(call)
        return self._frame(
            event, "tool_completed", call=call, tool_name=name, outcome=outcome, result=None, duration_ms=None, **fields
        )

    def _notice(self, event: Mapping[str, Any]) -> list[Frame]:
        found = _NOTICES.get(event["type"])
        if found is None:
            return []
        kind, names = found
        return [self._frame(event, "agent_thinking", kind=kind, **_taken(event, names))]

    def _frame(self, event: Mapping[str, Any], name: str, /, **fields: Any) -> Frame:
        self.frames += 1
        return {
            "type": name,
            "agent_name": self._agent,
            "run_id": event["run"],
            "thread_id": self._thread,
            "timestamp": event["ts"],
            "seq": self.frames,
            "log_seq": event["seq"],
            **fields,
        }


def _taken(event: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: event.get(name) for name in names}

"""The phases in which a run can be when it is stopped: how to get there, and how to measure the stop."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.system.support import Open, System, Watch, until


@dataclass(frozen=True)
class Phase:
    """One phase of a run."""

    name: str
    script: str
    reach: Callable[[System, str], Any]
    upstream: bool = True  # whether a model connection is open in it
    tool: str = ""
    ended: str = ""  # what the receipt must say of the tool
    cooperates: bool = True


@dataclass
class Stopped:
    """What a stop did."""

    run: str
    events: list[dict[str, Any]]
    terminal_ms: float  # from the request to the terminal event at a reader
    upstream_ms: float | None  # from the request to the close that the model saw
    asked_at: float = field(default=0.0)

    @property
    def end(self) -> dict[str, Any]:
        return self.events[-1]

    @property
    def receipt(self) -> dict[str, Any]:
        return self.end["receipt"]


def _model_waits(system: System, run: str) -> None:
    until(lambda: system.model.stats()["open"] == 1, "the model has the request")


def _headers_are_there(system: System, run: str) -> None:
    """Nothing outside tells that a client has the headers: the request is in, and they are out at once."""
    _model_waits(system, run)
    time.sleep(0.05)


def _comments_come(system: System, run: str) -> None:
    """Comments are no events of any log; they come ten times a second."""
    system.until_text(run, "t3 ")
    time.sleep(0.25)


def _stalls(system: System, run: str) -> None:
    system.until_text(run, "t5 ")


def _in_tool(name: str) -> Callable[[System, str], None]:
    def reach(system: System, run: str) -> None:
        system.until_event(run, "tool.called")
        until(lambda: any(t["name"] == name for t in system.inspect(run).get("tools", [])), f"{name} runs")

    return reach


PHASES = (
    Phase("before headers", "!slow_headers for=60", _model_waits),
    Phase("before the first token", "!first_token delay=60", _headers_are_there),
    Phase("mid-stream", "!tokens n=100000 rate=50", lambda system, run: system.until_text(run, "t5 ")),
    Phase("stalled", "!stall after=5 for=600", _stalls),
    Phase("comments only", "!comments after=3 for=600", _comments_come),
    Phase(
        "retry sleep",
        "!status code=429 retry_after=60 times=1000000",
        lambda system, run: system.until_event(run, "model.retried"),
        upstream=False,
    ),
    Phase("async tool", '!tool nap {"seconds": 60}', _in_tool("nap"), False, "nap", "cancelled"),
    Phase("sync tool in a thread", '!tool block {"seconds": 2}', _in_tool("block"), False, "block", "abandoned", False),
    Phase("deaf async tool", '!tool deaf {"seconds": 4}', _in_tool("deaf"), False, "deaf", "abandoned", False),
)


def stop_in(system: System, phase: Phase, session: str) -> Stopped:
    """Bring a run into a phase, stop it, and see what happens."""
    run = system.run(phase.script, session=session, agent="diver")
    watch = Watch(system, run)
    phase.reach(system, run)
    opened = Open(system.model) if phase.upstream else None
    time.sleep(0.01)
    asked = time.monotonic()
    system.stop(run)
    events = watch.end()
    closed_ms = (opened.end() - asked) * 1000 if opened else None
    return Stopped(run, events, (watch.at - asked) * 1000, closed_ms, asked)

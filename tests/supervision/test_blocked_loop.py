"""P11: a tool that blocks cannot block Stop; what cannot be cancelled is killed, and only who blocked is blamed."""

import time
from typing import Any

import pytest

from tests.supervision.conftest import Serve
from tests.supervision.support import (
    STALL_S,
    STOP_BLOCKED_S,
    Follower,
    Pulse,
    attempts,
    began,
    settled,
    tools_of,
    worker_pid,
)
from tests.system.support import System, full, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

BLOCKS = {
    "hog": '!tool hog {"seconds": 30}',
    "regex": "!tool regex {}",
    "child_hog": '!tool child_hog {"seconds": 30}',
}
GOES_ON_S = 5.0


class Neighbours:
    """Runs of other sessions on the same worker: one streams, one sleeps in a tool, one blocks a thread."""

    def __init__(self, system: System) -> None:
        self._system = system
        scripts = {
            "stream": "!tokens n=3000 rate=50",
            "nap": '!tool nap {"seconds": 40}\n!say rested',
            "thread": '!tool block {"seconds": 40}\n!say unblocked',
        }
        self.followers = {name: Follower(system, system.run(script, session=name)) for name, script in scripts.items()}
        until(lambda: "t5 " in self.followers["stream"].said(), "a neighbour streams")
        began(system, "nap")
        began(system, "block")

    def went_on(self, killed_at: float) -> float:
        """The slowest neighbour's first event after the kill; each ends well and has lost no attempt."""
        waits = []
        stream = self.followers["stream"]
        until(lambda: len(attempts(stream.events)) > 1 and stream.events[-1]["type"] == "text.delta", "it streams on")
        self._system.stop(stream.run)  # it has shown what it had to
        for name, follower in self.followers.items():
            events = follower.end(40)
            assert events[-1]["type"] == ("run.cancelled" if follower is stream else "run.completed"), events[-1]
            assert attempts(events) == [1, 1], f"{name} paid for its neighbour: {attempts(events)}"
            waits.append(follower.after(killed_at) or 99.0)
        return max(waits)


@pytest.mark.parametrize("tool", full(["hog", "regex"], ["regex"]))
def test_stop_ends_a_run_that_blocks_its_loop_and_neighbours_go_on(serve: Serve, figures: Any, tool: str):
    """The one case that cancellation cannot solve: Stop, /livez and every other session do not depend on the tool."""
    system = serve()
    settled(system)
    neighbours = Neighbours(system)
    pulse = Pulse(system.http)
    run = system.run(BLOCKS[tool], session="s")
    follower = Follower(system, run)
    began(system, tool)
    time.sleep(0.6)  # past a beat: it is blocked, not about to be
    asked = time.monotonic()
    system.stop(run)
    stop_answered = time.monotonic() - asked
    events = follower.end(10)
    stopped = follower.at[-1] - asked
    end = events[-1]
    assert stopped < STOP_BLOCKED_S, f"{stopped:.2f} s"
    assert stop_answered < 1.0
    assert (end["type"], end["reason"]) == ("run.cancelled", "stopped")
    assert tools_of(end) == [(tool, "killed")]
    assert attempts(events) == [1]
    system.prompt_works("s")
    prompt_answered = time.monotonic() - asked
    went_on = neighbours.went_on(follower.at[-1])
    livez = pulse.worst()
    assert went_on < GOES_ON_S
    assert livez < 1.0
    assert prompt_answered < STOP_BLOCKED_S + 2.0
    figures(
        f"stop of a run that blocks its loop: {tool}",
        [
            f"terminal event {stopped:.2f} s after the stop, next prompt answered after {prompt_answered:.2f} s",
            f"neighbours' next event {went_on:.2f} s after that, worst /livez {livez * 1000:.0f} ms",
        ],
    )


@pytest.mark.chaos
@pytest.mark.parametrize("tool", full(list(BLOCKS), ["child_hog"]))
def test_a_run_that_blocks_its_loop_fails_alone_and_is_not_resumed(serve: Serve, figures: Any, tool: str):
    """Nobody pressed Stop, and still it ends: the culprit fails with a cause, no neighbour loses an attempt."""
    system = serve()
    settled(system)
    neighbours = Neighbours(system)
    pulse = Pulse(system.http)
    run = system.run(BLOCKS[tool], session="s")
    follower = Follower(system, run)
    began(system, tool)
    blocked_at = time.monotonic()
    events = follower.end(15)
    took = follower.at[-1] - blocked_at
    end = events[-1]
    assert took < STALL_S + 1.5, f"{took:.2f} s"
    assert (end["type"], end["reason"], end["error"]["code"]) == ("run.failed", "agent_error", "loop_blocked")
    assert end["error"]["remedy"]
    assert tools_of(end) == [(tool, "killed")]
    assert attempts(events) == [1]
    assert len(system.journal(tool)) == 1, "it is not resumed"
    went_on = neighbours.went_on(follower.at[-1])
    assert went_on < GOES_ON_S
    livez = pulse.worst()
    assert livez < 1.0
    system.prompt_works("s")
    figures(
        f"nobody stops a run that blocks its loop: {tool}",
        [f"failed after {took:.2f} s, neighbours' next event {went_on:.2f} s later, /livez {livez * 1000:.0f} ms"],
    )


def test_a_sync_tool_that_holds_the_interpreter_is_blamed_and_nobody_else(serve: Serve):
    """A regular expression in an ordinary `def` tool blocks the loop from a thread: the loop's mark names nobody."""
    system = serve()
    settled(system)
    neighbours = Neighbours(system)
    follower = Follower(system, system.run("!tool regex_in_thread {}", session="s"))
    began(system, "regex_in_thread")
    end = follower.end(15)[-1]
    assert (end["type"], end.get("reason"), end["error"]["code"]) == ("run.failed", "agent_error", "loop_blocked")
    assert neighbours.went_on(follower.at[-1]) < GOES_ON_S


@pytest.mark.chaos
def test_a_run_that_blocks_its_loop_only_when_it_is_cancelled_is_killed_as_soon(serve: Serve):
    """`except CancelledError:` with a blocking cleanup: the loop still beat after the stop was asked."""
    system = serve()
    settled(system)
    follower = Follower(system, system.run('!tool late_hog {"seconds": 30}', session="s"))
    began(system, "late_hog")
    asked = time.monotonic()
    system.stop(follower.run)
    behind = Follower(system, system.run("!say next", session="s"))
    events = follower.end(10)
    assert follower.at[-1] - asked < STOP_BLOCKED_S
    assert (events[-1]["type"], events[-1]["reason"]) == ("run.cancelled", "stopped")
    assert behind.end(10)[-1]["type"] == "run.completed"
    assert behind.until("text.delta") - asked < STOP_BLOCKED_S + 1.0


@pytest.mark.parametrize("tool", full(["leave", "crash", "crash_in_thread"], ["crash"]))
def test_a_tool_that_ends_its_process_costs_others_no_more_than_a_resume(serve: Serve, figures: Any, tool: str):
    """os._exit and a segmentation fault: the gateway stays, the runs of others go on from their checkpoints."""
    system = serve()
    before, _ = settled(system)
    stream = Follower(system, system.run("!tokens n=150 rate=50", session="stream"))
    until(lambda: "t5 " in stream.said(), "a neighbour streams")
    script = f'!tool {tool} {{"code": 3}}\n!say survived' if tool == "leave" else f"!tool {tool} {{}}\n!say survived"
    pulse = Pulse(system.http)
    culprit = Follower(system, system.run(script, session="s"))
    began(system, tool)
    died_at = time.monotonic()
    events = culprit.end(20)
    outcomes = [(e["name"], e["outcome"]) for e in events if e["type"] == "tool.finished"]
    assert outcomes == [(tool, "unknown")], "it ran, and nobody knows how far"
    assert len(system.journal(tool)) == 1
    assert events[-1]["output"] == "survived"
    assert attempts(events) == [1, 2]
    assert stream.end(20)[-1]["type"] == "run.completed"
    went_on = stream.after(died_at + 0.1)
    assert went_on is not None
    assert went_on < GOES_ON_S
    assert worker_pid(system) != before
    assert pulse.worst() < 1.0
    figures(f"a tool ends its process: {tool}", [f"the neighbour's next event {went_on:.2f} s later"])

"""Observability cannot change a run: whatever a sink does, telling it takes no time and raises nothing."""

from __future__ import annotations

import threading
import time

import pytest

from holdfast.domain.events import EventType
from holdfast.telemetry import NULL, Pump, Scope, Telemetry, Totals
from holdfast.telemetry.facade import QUEUE_MAX
from holdfast.telemetry.spans import Spans
from tests.system.support import until
from tests.telemetry import bad

RUN = Scope("r_1", "s_1", "t", "agent", "model", 1, "the prompt")
STORY = (
    (EventType.RUN_STARTED, {"worker": "w", "attempt": 1, "epoch": 1}),
    (EventType.MODEL_REQUESTED, {"step": 1, "model": "m", "attempt": 1}),
    (EventType.MODEL_RETRIED, {"step": 1, "attempt": 1, "reason": "status_429", "wait_ms": 0}),
    (EventType.MODEL_REQUESTED, {"step": 1, "model": "m", "attempt": 2}),
    (EventType.MODEL_RESPONDED, {"step": 1, "model": "m", "finish_reason": "stop", "usage": {"input_tokens": 3}}),
    (EventType.TOOL_CALLED, {"call": "c1", "name": "echo", "args": {}}),
    (EventType.TOOL_FINISHED, {"call": "c1", "name": "echo", "outcome": "failed", "duration_ms": 3}),
    (EventType.RUN_CANCELLED, {"reason": "stopped", "by": "client", "usage": {}, "timings": {}, "receipt": {}}),
)


class Kept:
    """A sink that works."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.closed = False

    def take(self, record):
        self.kinds.append(str(record.kind))

    def close(self):
        self.closed = True


def tell_story(telemetry: Telemetry, times: int = 1) -> float:
    """The longest that one call took."""
    longest = 0.0
    for _ in range(times):
        follower = telemetry.follow(RUN)
        for kind, fields in STORY:
            began = time.perf_counter()
            follower.event(kind, fields)
            telemetry.fact("stream_end", 0, {"run": "r_1", "state": "x", "reason": "y", "duration_ms": 1})
            longest = max(longest, time.perf_counter() - began)
    return longest


def end(telemetry: Telemetry, limit_s: float = 5.0) -> None:
    telemetry.end()
    until(lambda: telemetry.ended, "the sinks have ended, or are left behind", limit_s)


def refuse():
    raise SystemExit("cannot be made")


BROKEN = {
    "none": lambda: None,
    "cannot be made": refuse,
    "returning none": lambda: Spans(bad.Nothing()),
    "raising": lambda: Spans(bad.Raising()),
    "exiting": lambda: Spans(bad.Exiting()),
    "spans that fail": lambda: Spans(bad.BadSpans()),
    "hanging": lambda: Spans(bad.Hanging()),
    "hanging while it is made": lambda: time.sleep(30),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_sink_costs_its_own_records_only(broken):
    """Document 0: a tracer that returned None ended every run, and hung every turn."""
    good = Kept()
    pumps = [Pump("broken", broken), Pump("good", lambda: good)]
    telemetry = Telemetry(Totals(), pumps)
    tell_story(telemetry, 3)
    end(telemetry)
    assert good.closed
    assert [k for k in good.kinds if k != "stream_end"] == [str(kind) for kind, _ in STORY] * 3
    assert pumps[1].dropped == pumps[1].failures == 0
    assert telemetry.failed == 0


def test_a_call_never_takes_long():
    """A budget of 5 ms for each; measured over many, because the machine pauses at times."""
    telemetry = Telemetry(Totals(), [Pump("hanging", lambda: Spans(bad.Hanging()))])
    began = time.perf_counter()
    tell_story(telemetry, 1000)
    assert (time.perf_counter() - began) / (1000 * len(STORY)) < 0.005
    end(telemetry)


def test_a_full_queue_drops_and_counts():
    """Memory is bounded, and what is missing is known."""
    begun = threading.Event()

    class Stuck(Kept):
        def take(self, record):
            begun.set()
            time.sleep(60)

    pump = Pump("stuck", Stuck)
    telemetry = Telemetry(None, [pump])
    telemetry.follow(RUN).event(*STORY[0])
    assert begun.wait(5)
    for _ in range(QUEUE_MAX + 10):
        telemetry.follow(RUN).event(*STORY[0])
    assert pump.dropped == 10
    began = time.monotonic()
    end(telemetry)
    assert time.monotonic() - began < 5  # it stood still: nobody waits for it


def test_a_failing_sink_is_said_once_in_a_while():
    """Nothing fails silently, and no log is flooded."""
    said = []
    pump = Pump("raising", lambda: Spans(bad.Raising()), lambda *what: said.append(what))
    telemetry = Telemetry(None, [pump])
    tell_story(telemetry, 50)
    end(telemetry)
    assert said == [("raising", "RuntimeError: tracer failed in start_span")]
    assert pump.failures >= 50


def test_the_null_object_takes_everything():
    """Without any configuration the product tells the same, to nobody."""
    tell_story(NULL)
    NULL.request("GET", "/", 200, 0, "", "")
    NULL.observe("no such metric", 1.0)
    NULL.end()
    assert NULL.ended
    assert NULL.failed == 0


def test_a_fault_of_ours_is_counted_and_not_raised():
    """A fact of an unexpected shape ends no run."""
    telemetry = Telemetry(Totals())
    telemetry.fact("stream_end", 0, {})
    telemetry.follow(RUN).event(EventType.MODEL_RESPONDED, {"usage": 3})
    assert telemetry.failed == 2


def test_no_content_is_kept_unless_asked():
    """Prompts and answers stay in the log of the run."""
    seen = []

    class Reads(Kept):
        def take(self, record):
            seen.append(repr(record))

    for content in (False, True):
        telemetry = Telemetry(None, [Pump("reads", Reads)], content=content)
        follower = telemetry.follow(RUN)
        follower.event(EventType.TOOL_CALLED, {"call": "c", "name": "n", "args": {"a": "the argument"}})
        follower.event(EventType.TEXT_DONE, {"part": 1, "text": "the answer"})
        end(telemetry)
    assert len(seen) == 3
    assert "the " not in seen[0]
    assert all(text in "".join(seen[1:]) for text in ("the prompt", "the argument", "the answer"))

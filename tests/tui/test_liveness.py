"""What a run does now, in words."""

import pytest

from holdfast.domain.events import timestamp
from holdfast.domain.words import answer_words
from holdfast.tui.liveness import Liveness

BEGAN = 1_000_000.0


def event(kind, at, **fields):
    return {"type": kind, "ts": timestamp(int((BEGAN + at) * 1000)), **fields}


def live(*events, now):
    made = Liveness(BEGAN + now)
    for each in events:
        made.take(each, BEGAN + now)
    return made.words(BEGAN + now)


def test_a_log_that_is_read_again_is_no_progress():
    """F82: the ages are those of the events, whenever they are read."""
    words = live(event("run.created", 0), event("run.started", 1), event("text.delta", 5), now=65)
    assert words == "answering; 65.0 s so far, last progress 60 s ago"


def test_tools_at_work_are_named_and_a_few_of_many_only():
    """Whoever waits learns for what."""
    calls = [event("tool.called", 1, call=str(n), name=f"t{n}") for n in range(5)]
    assert live(event("run.created", 0), *calls, now=2).startswith("running t0, t1, t2 and 2 more; ")
    done = event("tool.finished", 2, call="0", name="t0")
    assert live(event("run.created", 0), calls[0], done, now=2).startswith("between two steps; ")


def test_a_notice_says_what_is_waited_for_and_what_ends_that():
    """It is no progress itself, and gone with the next event."""
    notice = event("run.stalled", 30, waiting_on="model", since_ms=25_000, fires="model_idle", fires_in_ms=35_000)
    words = live(event("run.created", 0), event("text.delta", 5), notice, now=30)
    assert words == "waiting on model, ends in 35.0 s at the latest (model_idle); 30.0 s so far, last progress 25 s ago"
    assert live(event("run.created", 0), notice, event("text.delta", 31), now=31).startswith("answering; ")


def test_disconnected_is_not_stopped():
    """F48: nobody knows what the run does, and that is what is said."""
    made = Liveness(BEGAN)
    made.take(event("text.delta", 0), BEGAN)
    made.connected = False
    words = made.words(BEGAN + 7)
    assert words == "disconnected, the run is not stopped; it was answering, last heard of 7 s ago"


def test_an_event_of_a_clock_ahead_is_of_now():
    """Two clocks never agree; an age is never negative."""
    assert "last progress 0 s ago" in live(event("run.created", 0), event("text.delta", 50), now=2)


def test_a_wait_for_other_runs_is_no_time_of_the_answer():
    """Who asked behind a long run reads how long the answer took; a later attempt's start is no end of a wait."""
    made = Liveness(BEGAN)
    for each in (event("run.created", 0), event("run.started", 7), event("run.started", 30)):
        made.take(each, BEGAN + 60)
    end = {"timings": {"total_ms": 7_250}}
    assert made.queued_s == pytest.approx(7)
    assert answer_words(end, 1000 * made.queued_s) == "answered in 250 ms, after waiting 7.0 s"
    assert answer_words(end, 20) == "answered in 7.2 s"
    assert answer_words({}, 0) == ""

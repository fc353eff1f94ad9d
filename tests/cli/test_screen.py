"""Events as text on a terminal."""

from __future__ import annotations

import pytest

from holdfast.cli.output import event_line, table
from holdfast.cli.screen import Screen
from holdfast.domain.words import age, clean, duration, one_line, receipt_words


def shown(*events):
    written = []
    screen = Screen(written.append)
    for event in events:
        screen.show(event)
    return "".join(written)


def delta(text, part=0):
    return {"type": "text.delta", "part": part, "text": text}


def test_answer_is_written_as_it_comes():
    """The text on the screen is the text of the deltas, and ends with its line."""
    assert shown(delta("a "), delta("b"), {"type": "run.completed", "output": "a b"}) == "a b\n"


def test_output_that_never_streamed_is_still_shown():
    """An agent that answers in one piece is answered for."""
    assert shown({"type": "run.completed", "output": "all of it"}) == "all of it\n"


def test_discarded_text_is_said():
    """A terminal cannot take back what it showed, so it says that it no longer counts."""
    text = shown(delta("wrong"), {"type": "attempt.discarded", "reason": "retry", "parts": [0]}, delta("right", 1))
    assert text == "wrong\n[discarded (retry): what follows replaces the text above]\nright"


def test_discard_of_what_was_never_shown_is_not_said():
    """A retry before the first word is no news for a reader of text."""
    assert shown({"type": "attempt.discarded", "reason": "retry", "parts": [0]}, delta("right", 1)) == "right"


def test_tools_are_bracketed():
    """What an agent does is told apart from what it says."""
    text = shown(
        delta("let me see"),
        {"type": "tool.called", "call": "c", "name": "search", "args": {"q": "kelp"}},
        {"type": "tool.finished", "call": "c", "name": "search", "outcome": "success", "result": "x", "duration_ms": 5},
        delta("found", 1),
    )
    assert text == 'let me see\n[search {"q": "kelp"}]\n[search: success in 5 ms: x]\nfound'


def test_stall_says_which_timer_will_end_it():
    """F82: never `working` without saying on what, and until when at most."""
    event = {
        "type": "run.stalled",
        "waiting_on": "model",
        "since_ms": 12000,
        "fires": "model_idle",
        "fires_in_ms": 48000,
    }
    assert shown(event) == "[waiting on model for 12.0 s, ends in 48.0 s at the latest (model_idle)]\n"


def test_thinking_is_said_once_a_part():
    """Reasoning is a state of the agent here, not text."""
    think = {"type": "reasoning.delta", "part": 0, "text": "hm"}
    assert shown(think, think, delta("so", 1)) == "[thinking]\nso"


@pytest.mark.parametrize(
    ("ms", "text"),
    [(None, "unknown"), (41, "41 ms"), (1500, "1.5 s"), (540_000, "9 min"), (10_800_000, "3.0 h")],
)
def test_durations_are_short(ms, text):
    """One number and one unit."""
    assert duration(ms) == text


def test_values_stay_on_one_line_and_bounded():
    """A line a fact, whatever a tool returned."""
    assert one_line("a\nb") == "a\\nb"
    assert len(one_line("x" * 5000)) == 200


def test_control_characters_become_visible():
    """All but tab and newline; C1 too, which some terminals obey."""
    assert clean("a\x1b\x9b\r\nb\tc") == "a\ufffd\ufffd\nb\tc"


def test_events_without_a_seq_have_a_line():
    """A resync is not in the log and is printed all the same."""
    assert event_line({"type": "resync", "asked": "7-1"}).split() == ["-", "resync", "asked=7-1"]


def test_honest_receipt_of_the_reaper():
    """What nobody knows is said to be unknown."""
    words = receipt_words(
        {"elapsed_ms": 2500, "upstream_closed_ms": None, "tools": [], "abandoned": False, "by": "reaper"}
    )
    assert words[0] == "ended 2.5 s after the request, by the reaper"
    assert "nobody could tell" in words[1]


def test_table_and_age_pass_over_what_is_missing():
    """A field that an older server lacks is an empty cell, not a traceback."""
    assert table(("A", "B"), [(None, 1)]) == "A  B\n   1"
    assert age(None) == age("soon") == ""

"""The agent view: what a log's prefix looks like to a client that knows seven kinds of frames."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.events import EventType as E
from holdfast.gateway.agent_view import AgentView
from tests.ws.support import AGENT_ENDS

REQUIRED = {"type", "agent_name", "run_id", "thread_id", "timestamp", "seq"}
TYPES = {"agent_started", "agent_thinking", "tool_executing", "tool_completed"} | AGENT_ENDS

Draft = tuple[E, dict[str, Any]]

CREATED: Draft = E.RUN_CREATED, {"session": "s", "agent": "echo", "policy": "supersede", "input": "hi"}
STARTED: Draft = E.RUN_STARTED, {"worker": "w", "attempt": 1, "epoch": 1}
AGAIN: Draft = E.RUN_STARTED, {"worker": "w", "attempt": 2, "epoch": 2}
COMPLETED: Draft = E.RUN_COMPLETED, {"output": "hi", "usage": {"requests": 1}, "timings": {}}
FAILED: Draft = E.RUN_FAILED, {"reason": "model_error", "error": {"code": "x"}, "partial": "h", "usage": {}}


def cancelled(*tools: dict[str, Any]) -> Draft:
    receipt = {"tools": list(tools), "by": "worker"}
    return E.RUN_CANCELLED, {"reason": "stopped", "by": "client", "partial": "", "usage": {}, "receipt": receipt}


def called(call: str, name: str = "look") -> Draft:
    return E.TOOL_CALLED, {"call": call, "name": name, "args": {"x": 1}}


def finished(call: str, outcome: str = "success", name: str = "look") -> Draft:
    return E.TOOL_FINISHED, {"call": call, "name": name, "outcome": outcome, "result": "r", "duration_ms": 3}


def discarded(*calls: str, parts: tuple[int, ...] = ()) -> Draft:
    return E.ATTEMPT_DISCARDED, {"step": 1, "reason": "resumed", "parts": list(parts), "calls": list(calls)}


def text(value: str, part: int = 0) -> Draft:
    return E.TEXT_DELTA, {"part": part, "text": value}


def log(*drafts: Draft) -> list[dict[str, Any]]:
    return [
        {"seq": seq, "run": "r_1", "type": kind, "ts": f"t{seq}", **fields}
        for seq, (kind, fields) in enumerate(drafts, 1)
    ]


def view(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    made = AgentView()
    return [frame for event in events for frame in made.feed(event)]


def kinds(*drafts: Draft) -> list[str]:
    return [frame["type"] for frame in view(log(*drafts))]


def test_a_run_with_a_tool_shows_the_five_events_of_document_1() -> None:
    """The client that document 1 tells of waits for exactly these."""
    requested = (E.MODEL_REQUESTED, {"step": 1, "model": "m", "attempt": 1})
    assert kinds(CREATED, STARTED, requested, called("c1"), finished("c1"), COMPLETED) == [
        "agent_started",
        "agent_thinking",
        "tool_executing",
        "tool_completed",
        "agent_completed",
    ]


def test_each_frame_has_the_required_fields_and_a_number_of_its_own() -> None:
    """A client drops frames of other runs by run_id and finds a gap by seq."""
    frames = view(log(CREATED, STARTED, text("a"), called("c1"), called("c2"), cancelled()))
    assert all(set(frame) >= REQUIRED for frame in frames)
    assert [frame["seq"] for frame in frames] == list(range(1, len(frames) + 1))
    assert {(f["agent_name"], f["run_id"], f["thread_id"]) for f in frames} == {("echo", "r_1", "s")}
    assert [f["log_seq"] for f in frames] == [2, 3, 4, 5, 6, 6, 6]


@pytest.mark.parametrize("end", [COMPLETED, FAILED, cancelled()], ids=["completed", "failed", "cancelled"])
def test_a_run_that_never_began_is_started_and_ended(end: Draft) -> None:
    """A sequence begins with agent_started, whatever becomes of the run."""
    frames = kinds(CREATED, (E.STEERED, {"input": "more"}), end)
    assert (len(frames), frames[0], frames[1] in AGENT_ENDS) == (2, "agent_started", True)


def test_tools_without_an_end_get_theirs_before_the_run_does() -> None:
    """A spinner of a tool that was killed with its run stops; its outcome is what the receipt says."""
    end = cancelled({"call": "c1", "name": "look", "ended": "killed"}, {"call": "c2", "name": "q", "ended": "unknown"})
    frames = view(log(CREATED, STARTED, called("c1"), called("c2", "q"), called("c3"), finished("c3"), end))
    closed = [
        (f["call"], f["tool_name"], f["outcome"], f.get("ended")) for f in frames if f["type"] == "tool_completed"
    ]
    assert closed == [
        ("c3", "look", "success", None),
        ("c1", "look", "interrupted", "killed"),
        ("c2", "q", "unknown", "unknown"),
    ]
    assert frames[-1]["type"] == "agent_cancelled"


def test_a_discarded_attempt_is_said_and_its_tools_are_closed() -> None:
    """What was shown of it is to be dropped: the parts and the calls are named."""
    frames = view(
        log(CREATED, STARTED, text("a"), called("c1"), AGAIN, discarded("c1", parts=(0,)), text("b", 1), FAILED)
    )
    assert [f["type"] for f in frames] == [
        "agent_started",
        "agent_thinking",
        "tool_executing",
        "tool_completed",
        "agent_thinking",
        "agent_thinking",
        "agent_failed",
    ]
    assert (frames[3]["outcome"], frames[3]["discarded"]) == ("interrupted", True)
    assert (frames[4]["kind"], frames[4]["parts"], frames[4]["calls"]) == ("discarded", [0], ["c1"])


def test_a_call_that_was_refused_has_both_its_frames() -> None:
    """An unknown tool is finished without having been called."""
    assert kinds(CREATED, STARTED, finished("c9", "failed"), COMPLETED)[1:3] == ["tool_executing", "tool_completed"]


def test_the_end_says_what_the_run_says() -> None:
    """Output, reason, error, receipt: a client of this view lacks nothing of the end."""
    assert view(log(CREATED, STARTED, COMPLETED))[-1]["output"] == "hi"
    failed = view(log(CREATED, STARTED, FAILED))[-1]
    assert (failed["reason"], failed["error"], failed["partial"]) == ("model_error", {"code": "x"}, "h")
    assert view(log(CREATED, STARTED, cancelled()))[-1]["receipt"]["by"] == "worker"


CALLS = st.sampled_from(["c1", "c2", "c3"])
MIDDLE = st.one_of(
    st.builds(called, CALLS),
    st.builds(finished, CALLS),
    st.builds(discarded, CALLS),
    st.builds(text, st.text(max_size=3)),
    st.just(AGAIN),
    *(st.just((kind, {})) for kind in E if not kind.startswith(("run.c", "run.f", "tool.called", "tool.f", "attempt"))),
)
LOGS = st.builds(
    lambda middle, end: log(CREATED, *middle, end),
    st.lists(MIDDLE, max_size=30),
    st.sampled_from([COMPLETED, FAILED, cancelled(), cancelled({"call": "c1", "name": "look", "ended": "killed"})]),
)


@given(LOGS)
def test_whatever_the_log_holds_the_sequence_keeps_its_rules(events: list[dict[str, Any]]) -> None:
    """It starts with agent_started, ends with one end, and every tool that executes completes, once."""
    frames = view(events)
    assert {f["type"] for f in frames} <= TYPES
    assert [f["type"] for f in frames if f["type"] == "agent_started" or f["type"] in AGENT_ENDS] == [
        frames[0]["type"],
        frames[-1]["type"],
    ]
    assert frames[0]["type"] == "agent_started"
    open_calls: set[str] = set()
    for f in frames:
        if f["type"] == "tool_executing":
            assert f["call"] not in open_calls
            open_calls.add(f["call"])
        elif f["type"] == "tool_completed":
            open_calls.remove(f["call"])
    assert not open_calls
    assert [f["seq"] for f in frames] == list(range(1, len(frames) + 1))


@given(LOGS, st.data())
def test_a_prefix_of_the_log_is_a_prefix_of_the_view(events: list[dict[str, Any]], data: st.DataObject) -> None:
    """No look-ahead: what was sent stays right, so a reader that resumes gets exactly what is missing."""
    cut = data.draw(st.integers(0, len(events)))
    before = view(events[:cut])
    assert view(events)[: len(before)] == before

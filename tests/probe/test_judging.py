"""The kit's judges, without a server: what they find in a log and in a stream, and what they let pass."""

from __future__ import annotations

import json
from typing import Any

import pytest

from holdfast.probe import Options, Outcome, Report, Result, Target, Tool, UnknownScenario, choose, plan
from holdfast.probe.chats import ChatRead, Frame, chat_problems, tokens, whole_problems
from holdfast.probe.logs import log_problems, receipt_problems, strict_problem, suffix_problem

Event = dict[str, Any]


def log(*kinds: str) -> list[Event]:
    """A log of these types, sound but for their order."""
    return [
        {"seq": n, "run": "r_1", "type": kind, "ts": f"2026-01-02T03:04:05.{n:03d}Z", "part": 0, "text": "x"}
        for n, kind in enumerate(kinds, 1)
    ]


def without(events: list[Event], *seqs: int) -> list[Event]:
    return [event for event in events if event["seq"] not in seqs]


SOUND = log("run.created", "run.started", "text.delta", "text.done", "run.completed")


def test_sound_log_has_no_problem():
    """A judge that finds something everywhere is soon ignored."""
    assert log_problems(SOUND) == []


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([], "no terminal event"),
        (SOUND[:-1], "no terminal event; the last is text.done"),
        (SOUND[1:], "seq 2 comes where 1 should: missing before it"),
        (without(SOUND, 3), "seq 4 comes where 3 should: missing before it"),
        ([*SOUND[:3], *SOUND[2:]], "seq 3 comes where 4 should: repeated"),
        ([*SOUND[:4], {"type": "run.completed"}], "without a seq"),
        (log("run.started", "run.completed"), "the first event is run.started"),
        (log("run.created", "run.completed", "run.failed"), "2 terminal events: run.completed, run.failed"),
        (log("run.created", "run.completed", "text.delta"), "after the terminal event come 1 more: text.delta"),
        ([*SOUND[:4], {**SOUND[4], "run": "r_2"}], "events of 2 runs"),
        ([*SOUND[:3], {**SOUND[3], "text": "xy"}, SOUND[4]], "do not add up to its text.done"),
    ],
)
def test_broken_log_is_told_in_words(events: list[Event], words: str):
    """Whoever reads a failure knows which event to look at."""
    assert any(words in problem for problem in log_problems(events)), log_problems(events)


def lines(*seqs: int) -> list[str]:
    return [json.dumps({"seq": seq}) for seq in seqs]


@pytest.mark.parametrize(
    ("found", "after", "words"),
    [
        (lines(3, 4, 5), 2, ""),
        (lines(), 5, ""),
        (lines(4, 5), 2, "seq 3 is missing"),
        (lines(2, 3, 4, 5), 2, "seq 2 came again"),
        (lines(3, 4, 4, 5), 2, "seq 4 came again"),
        (lines(3, 5, 4), 2, "other bytes"),
        (["{}", *lines(4, 5)], 2, "seq 3 is missing"),
    ],
)
def test_suffix_is_exact_or_told_why_not(found: list[str], after: int, words: str):
    """A gap and a duplicate are different failures of a server."""
    problem = suffix_problem(lines(1, 2, 3, 4, 5), found, after)
    assert words in problem
    assert bool(problem) is bool(words)


def test_receipt_says_everything_or_is_a_problem():
    """Stop without an account of what was stopped is a promise that nobody can check."""
    whole = {"requested_at": "", "ended_at": "", "elapsed_ms": 1, "upstream_closed_ms": None, "abandoned": False}
    whole |= {"tools": [{"call": "c", "name": "t", "ended": "cancelled"}], "by": "worker"}
    end = {"type": "run.cancelled", "partial": "ab", "receipt": whole}
    assert receipt_problems(end, "ab") == []
    assert receipt_problems(end, None) == []
    assert "partial is" in receipt_problems(end, "abc")[0]
    assert receipt_problems({**end, "receipt": None}, "ab") == ["the terminal event has no receipt"]
    assert "lacks by" in receipt_problems({**end, "receipt": {k: v for k, v in whole.items() if k != "by"}}, "ab")[0]
    odd = {**whole, "tools": [{"call": "c", "name": "t", "ended": "perhaps"}]}
    assert "does not say how a tool ended" in receipt_problems({**end, "receipt": odd}, "ab")[0]


def test_a_run_that_starts_before_the_one_before_it_has_ended_is_a_problem():
    """Two runs of a session at once are what the strict order is there to prevent."""
    assert strict_problem(SOUND[:1], log("run.created", "run.started")) == ""
    assert "3 ms before the first had ended" in strict_problem(SOUND, log("run.created", "run.started"))


def chunks(*deltas: str, finish: str | None = "stop", done: bool = True) -> list[Frame]:
    """A stream of these pieces, one each 100 ms."""
    found: list[Any] = [{"choices": [{"delta": {"content": text}}]} for text in deltas]
    found += [{"choices": [{"delta": {}, "finish_reason": finish}]}] if finish else []
    data = [json.dumps(chunk) for chunk in found] + (["[DONE]"] if done else [])
    return [Frame(n / 10, "", text) for n, text in enumerate(data, 1)]


def read_chat(frames: list[Frame]) -> ChatRead:
    read = ChatRead()
    for frame in frames:
        read.take(frame)
    return read


def test_sound_stream_has_no_problem_and_is_measured():
    """First token and longest silence are what a user feels; the usage chunk that has no choices is none of them."""
    usage = Frame(0.35, "", json.dumps({"choices": [], "usage": {"total_tokens": 3}}))
    frames = chunks("t1 ", "t2 ")
    read = read_chat([*frames[:3], usage, *frames[3:]])
    assert chat_problems(read, tokens(2)) == []
    assert read.first_at == 0.1
    assert read.silence_ms(0.0) == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (chunks("a", finish=None), "no chunk has a finish_reason"),
        (chunks("a", done=False), "no [DONE]"),
        (chunks(), "it has no content"),
        (chunks("a", "c"), "the text is 2 characters and not 2; from 1 on it has 'c'"),
        ([*chunks("ab"), Frame(9, "", "{}")], "1 frames after [DONE]"),
        ([Frame(0, "", "oops"), *chunks("ab")], "a frame that is no chunk: 'oops'"),
        ([Frame(0, "", '{"error": {"code": "superseded"}}'), *chunks("ab")], "it ended with the error"),
    ],
)
def test_broken_stream_is_told_in_words(frames: list[Frame], words: str):
    """Each way in which a stream can end wrongly has its own words."""
    assert any(words in problem for problem in chat_problems(read_chat(frames), "ab"))


@pytest.mark.parametrize("body", [None, [], {}, {"choices": []}, {"choices": [None]}, {"choices": [{"message": None}]}])
def test_whatever_a_server_answers_is_judged(body: Any):
    """A kit that trips over a broken answer has not found it."""
    assert "no chat completion" in whole_problems(body)[0]


def result(outcome: Outcome) -> Result:
    return Result("a.b", outcome, "", "", "")


@pytest.mark.parametrize(
    ("outcomes", "planned", "cut", "ok"),
    [
        ([Outcome.PASSED, Outcome.SKIPPED], 2, "", True),
        ([Outcome.PASSED, Outcome.FAILED], 2, "", False),
        ([Outcome.SKIPPED], 1, "", False),
        ([Outcome.PASSED], 2, "", False),
        ([Outcome.PASSED], 1, "interrupted", False),
    ],
)
def test_report_is_ok_only_where_something_was_proved_and_nothing_left_out(
    outcomes: list[Outcome], planned: int, cut: str, ok: bool
):
    """A green exit code of a probe that was cut short would be believed."""
    report = Report("", planned=planned, results=[result(outcome) for outcome in outcomes], cut=cut)
    assert report.ok is ok
    assert report.document()["ok"] is ok


def test_scenarios_are_chosen_by_name_and_by_group_in_their_order():
    """--only is how a failure is looked at again."""
    names = [scenario.name for scenario in choose(["stop", "chat.normal"])]
    assert names[0] == "chat.normal"
    assert {name.partition(".")[0] for name in names[1:]} == {"stop"}
    every = [scenario.name for scenario in choose([])]
    assert len(every) == len(set(every))
    with pytest.raises(UnknownScenario, match="no scenario is named 'nope'"):
        choose(["nope"])


def test_plan_counts_what_a_server_can_be_asked():
    """A real model costs money: the count is said before the first prompt, and a silent server gets none."""
    everything = choose([])
    holdfast = plan(Target("holdfast", rehearsal=True), everything)
    assert holdfast == (len(everything), sum(scenario.prompts for scenario in everything))
    real, other = plan(Target("holdfast"), everything), plan(Target("openai"), everything)
    assert holdfast > real > other > (0, 0)
    assert plan(Target("silent"), everything) == (0, 0)


def test_a_tool_call_is_a_name_and_a_json_object():
    """A mistake in --tool is a usage error, and not thirty failed scenarios."""
    assert Tool.parse('sleep {"seconds": 3}') == Tool("sleep", '{"seconds": 3}')
    assert Tool.parse("sleep") == Tool("sleep", "{}")
    for text in ("", "sleep seconds=3", "sleep [3]"):
        with pytest.raises(ValueError, match="is no tool call"):
            Tool.parse(text)


def test_limits_of_promises_grow_by_the_slack_and_never_beyond_the_timeout():
    """--timeout is the longest wait for anything, promises included."""
    assert Options("", slack_s=0.5).within(3.5) == 4.0
    assert Options("", slack_s=0.5, timeout_s=1.0).within(3.5) == 1.0

"""A busy session, on Holdfast's own API: supersede in strict order, enqueue, reject, five at once, two apart."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from holdfast.domain.events import EventType
from holdfast.probe.bench import Bench, together
from holdfast.probe.chats import tokens
from holdfast.probe.logs import end_problem, log_problems, moment, start_of, strict_problem, text_of
from holdfast.probe.options import FIVE_S, SUPERSEDE_S, UPSTREAM_S
from holdfast.probe.reading import Event
from holdfast.probe.results import Failed, Seen
from holdfast.probe.scenario import Scenario

_RAPID_S: Final = 0.05
_FIVE: Final = 5


def _speaks(events: Sequence[Event]) -> bool:
    return any(e.get("type") == EventType.TEXT_DELTA for e in events)


async def supersede(bench: Bench) -> Seen:
    """A second prompt supersedes the first: A's end is in its log before B starts, and nothing follows it."""
    session = bench.session("busy")
    upstream = await bench.upstream()
    first = bench.follow(await bench.start(bench.long(), session=session))
    await first.until(_speaks, "A's text")
    second = bench.follow(await bench.start(bench.short("b"), session=session))
    await second.until(start_of, "B starts", bench.options.within(SUPERSEDE_S))
    begun_ms = (second.stream.frames[-1].at - second.stream.began) * 1000
    ended, answered = await together(first.whole(bench.options.within(SUPERSEDE_S)), second.whole())
    await upstream.closes(bench.options.within(UPSTREAM_S), "A was superseded")
    problems = [*log_problems(ended), *log_problems(answered)]
    problems += filter(
        None,
        (
            end_problem(ended, EventType.RUN_CANCELLED, "superseded"),
            end_problem(answered, EventType.RUN_COMPLETED),
            strict_problem(ended, answered),
        ),
    )
    if problems:
        raise Failed("; ".join(problems), "A ends cancelled, superseded; then B starts, and completes")
    began, ended_at = moment(start_of(answered) or {}), moment(ended[-1])
    apart_ms = ((began or 0.0) - (ended_at or 0.0)) * 1000
    return Seen(
        "A ended cancelled, superseded, before B started; B completed",
        {"b_started_ms": begun_ms, "a_end_to_b_start_ms": apart_ms},
    )


async def enqueue(bench: Bench) -> Seen:
    """Three prompts that wait for each other: answered in their order, one at a time."""
    session = bench.session("line")
    follows = [
        bench.follow(await bench.start(bench.short(f"q{n}"), session=session, on_busy="enqueue")) for n in range(3)
    ]
    logs = await together(*(follow.whole() for follow in follows))
    for events in logs:
        if end := end_problem(events, EventType.RUN_COMPLETED):
            raise Failed(end, "each of the three completes")
    if late := [problem for a, b in pairwise(logs) if (problem := strict_problem(a, b))]:
        raise Failed(late[0], "one at a time, in their order")
    return Seen("three prompts were answered one at a time, in their order")


async def reject(bench: Bench) -> Seen:
    """A prompt that must not disturb: refused while the session is busy, and the run goes on."""
    session = bench.session("shut")
    follow = bench.follow(await bench.start(bench.long(), session=session))
    await follow.until(_speaks, "the first run's text")
    answer = await bench.post_run({"input": bench.short()[0], "session": session, "on_busy": "reject"})
    problem = answer.json if isinstance(answer.json, dict) else {}
    if (answer.status, problem.get("code")) != (409, "session_busy"):
        raise Failed(f"on_busy: reject was answered with {answer.words()}", "409 session_busy")
    await follow.goes_on("the run that works")
    return Seen("409 session_busy, and the run goes on", {"refused_ms": answer.took_ms})


async def five(bench: Bench) -> Seen:
    """Five prompts 50 ms apart in one session: all end, the last completes, never two at a time."""
    session = bench.session("five")
    follows = []
    for number in range(_FIVE):
        prompt = bench.short(f"p{number}")
        if bench.target.rehearsal:
            prompt = (f"!say p{number}\n!tokens n=25 rate=50", None)
        follows.append(bench.follow(await bench.start(prompt, session=session)))
        await asyncio.sleep(_RAPID_S)
    logs = await together(*(follow.whole(bench.end_s(2 * FIVE_S)) for follow in follows))
    for number, events in enumerate(logs, 1):
        if problems := log_problems(events):
            raise Failed(f"run {number}: {'; '.join(problems)}", "a log without a gap, with one terminal event")
        kind, reason = EventType.RUN_COMPLETED, None
        if number < _FIVE and events[-1]["type"] != EventType.RUN_COMPLETED:
            kind, reason = EventType.RUN_CANCELLED, "superseded"
        if end := end_problem(events, kind, reason):
            raise Failed(f"run {number}: {end}", "superseded, and the last one completed")
    if late := [problem for a, b in pairwise(logs) if (problem := strict_problem(a, b))]:
        raise Failed(late[0], "at most one run of a session is active")
    slowest = max((f.stream.ended_at - f.stream.began) * 1000 for f in follows)
    return Seen("all five ended, the last completed, never two at a time", {"slowest_ms": slowest})


async def apart(bench: Bench) -> Seen:
    """Superseding and stopping in one session while another works."""
    one = bench.session("one")
    prompt = ("!tokens n=50 rate=50", tokens(50)) if bench.target.rehearsal else bench.short()
    busy = bench.follow(await bench.start(bench.long(), session=one))
    other = bench.follow(await bench.start(prompt, session=bench.session("two")))
    await busy.until(_speaks, "text in the first session")
    following = await bench.start(bench.long(), session=one)
    await bench.follow(following).until(_speaks, "text of the second prompt of the first session")
    await bench.call("POST", f"/api/sessions/{one}/stop", status=202)
    events = await other.whole()
    problems = log_problems(events)
    if end := end_problem(events, EventType.RUN_COMPLETED):
        problems.append(end)
    if prompt[1] is not None and text_of(events) != prompt[1]:
        problems.append("its text is not whole")
    if problems:
        raise Failed(f"the other session's run: {'; '.join(problems)}", "it is untouched")
    record = await bench.ended(following, bench.options.within(SUPERSEDE_S), "the stop of its session")
    if record["state"] != "cancelled":
        raise Failed(f"after the stop of its session the run is {record['state']}", "cancelled")
    at = [frame.at for frame in other.stream.frames]
    return Seen(
        "a supersede and a stop in one session left the other's run whole",
        {"other_longest_silence_ms": max((b - a for a, b in pairwise(at)), default=0.0) * 1000},
    )


SCENARIOS: Final = (
    Scenario(
        "session.supersede",
        "A second prompt ends the first, in strict order, and is answered.",
        "P4: a superseded run writes nothing after its successor starts",
        2,
        supersede,
        native=True,
    ),
    Scenario(
        "session.enqueue",
        "Prompts that wait are answered in their order.",
        "P4: one run of a session at a time; F24: in their order",
        3,
        enqueue,
        native=True,
    ),
    Scenario(
        "session.reject",
        "A prompt that may not disturb is refused.",
        "F20: a busy session does as the request says",
        2,
        reject,
        native=True,
    ),
    Scenario(
        "session.five",
        "Five prompts 50 ms apart in one session: all end, never two at a time.",
        "F22: exactly one active at any time, no deadlock; document 4, test 4",
        _FIVE,
        five,
        native=True,
    ),
    Scenario(
        "session.apart",
        "A supersede and a stop in one session leave another untouched.",
        "F23: sessions never influence each other; document 4, test 5",
        3,
        apart,
        native=True,
    ),
)

"""Readers of a run that are slow or go away, on Holdfast's own API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from holdfast.domain.events import EventType
from holdfast.probe.bench import Bench
from holdfast.probe.chats import tokens
from holdfast.probe.logs import end_problem, log_problems, suffix_problem, text_of
from holdfast.probe.options import NEXT_S, STOP_S, UPSTREAM_S
from holdfast.probe.reading import Event
from holdfast.probe.results import Failed, Seen, Skipped
from holdfast.probe.scenario import Scenario

_MANY: Final = 1500


def _speaks(events: Sequence[Event]) -> bool:
    return any(e.get("type") == EventType.TEXT_DELTA for e in events)


async def slow(bench: Bench) -> Seen:
    """A reader that takes nothing holds up neither the run nor another reader, and then gets the same log."""
    prompt = (f"!tokens n={_MANY} rate={2 * _MANY}", tokens(_MANY)) if bench.target.rehearsal else bench.short()
    run = await bench.start(prompt)
    held = bench.follow(run, held=True)
    reader = bench.follow(run)
    events = await reader.whole()
    problems = log_problems(events)
    if end := end_problem(events, EventType.RUN_COMPLETED):
        problems.append(end)
    if prompt[1] is not None and text_of(events) != prompt[1]:
        problems.append("the text is not whole")
    took_ms = (reader.stream.ended_at - reader.stream.began) * 1000
    if bench.target.rehearsal and took_ms > 500 + bench.options.within(NEXT_S) * 1000:
        problems.append(f"an answer of 0.5 s took {took_ms:.0f} ms")
    held.stream.release()
    await held.whole()
    if problem := suffix_problem(reader.lines, held.lines, 0):
        problems.append(f"the slow reader: {problem}")
    if problems:
        raise Failed("; ".join(problems), "the run and its other reader take no notice, the slow one gets the same log")
    return Seen(
        "the run and another reader took no notice, and the slow one then got the same log", {"total_ms": took_ms}
    )


async def leaves(bench: Bench) -> Seen:
    """The default: who streams a run and leaves does not end it, and finds it whole when coming back."""
    prompt = ("!tokens n=50 rate=50", tokens(50)) if bench.target.rehearsal else bench.short()
    follow = bench.streamed(prompt)
    await follow.until(_speaks, "the first text")
    run = str(follow.events[0]["run"])
    seen = follow.lines
    follow.stream.leave()
    back = bench.follow(run)
    events = await back.whole()
    problems = log_problems(events)
    if end := end_problem(events, EventType.RUN_COMPLETED):
        problems.append(end)
    if problem := suffix_problem(back.lines[: len(seen)], seen, 0):
        problems.append(problem)
    if prompt[1] is not None and text_of(events) != prompt[1]:
        problems.append("the text is not whole")
    if problems:
        raise Failed("; ".join(problems), "the run goes on to its end, and who comes back has all of it")
    return Seen("the run went on without its reader, who then had all of it", {"events": float(len(events))})


async def cancels(bench: Bench) -> Seen:
    """on_disconnect: cancel: who streams a run and leaves ends it."""
    upstream = await bench.upstream()
    follow = bench.streamed(bench.long(), on_disconnect="cancel")
    if not await follow.until(_speaks, "the first text"):
        raise Skipped("the run ended before its reader could leave; give a prompt with a longer answer, --long-prompt")
    run = str(follow.events[0]["run"])
    await upstream.works()
    left = time.monotonic()
    follow.stream.leave()
    record = await bench.ended(run, bench.options.within(STOP_S), "its reader left")
    figures = {"ended_ms": (time.monotonic() - left) * 1000}
    if (record["state"], record["reason"]) != ("cancelled", "client_disconnect"):
        raise Failed(f"it ended {record['state']}, {record['reason']}", "cancelled, client_disconnect", figures)
    words = ["cancelled, client_disconnect"]
    words.append(await upstream.closes(bench.options.within(UPSTREAM_S), "its reader left"))
    closed = (record.get("receipt") or {}).get("upstream_closed_ms")
    if closed is not None:
        figures["upstream_closed_ms"] = float(closed)
    return Seen("; ".join(filter(None, words)), figures)


async def many(bench: Bench) -> Seen:
    """Several readers of one run, come at different times: all have the same log."""
    prompt = ("!tokens n=40 rate=80", tokens(40)) if bench.target.rehearsal else bench.short()
    run = await bench.start(prompt)
    follows = []
    for _ in range(5):
        follows.append(bench.follow(run))
        await asyncio.sleep(0.08)
    for follow in follows:
        await follow.whole()
    for number, follow in enumerate(follows[1:], 2):
        if problem := suffix_problem(follows[0].lines, follow.lines, 0):
            raise Failed(f"reader {number}: {problem}", "the same log as the first reader")
    if problems := log_problems(follows[0].events):
        raise Failed("; ".join(problems), "a log without a gap")
    return Seen("five readers, come at different times, have the same log", {"events": float(len(follows[0].events))})


SCENARIOS: Final = (
    Scenario(
        "reader.many",
        "Readers that come at different times have the same log.",
        "P3: the same bytes; F39: several viewers see the same run",
        1,
        many,
        native=True,
    ),
    Scenario(
        "reader.slow",
        "A reader that takes nothing holds up neither the run nor another reader.",
        "P10: a slow client slows nobody",
        1,
        slow,
        native=True,
    ),
    Scenario(
        "reader.leaves",
        "A reader that goes away does not end its run, and finds it whole when it comes back.",
        "F1: a run is independent of its connection",
        1,
        leaves,
        native=True,
    ),
    Scenario(
        "reader.cancels",
        "With on_disconnect: cancel, a reader that goes away ends its run.",
        "F42: what a disconnect does is said per request; P2: Stop stops the work",
        1,
        cancels,
        native=True,
    ),
)

"""Readers that come back: from any offset, in the middle of a live run, and with a place that the log never had."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Final

from holdfast.probe.bench import Bench, together
from holdfast.probe.chats import tokens
from holdfast.probe.logs import log_problems, suffix_problem, text_of
from holdfast.probe.reading import Event
from holdfast.probe.results import Failed, Seen
from holdfast.probe.scenario import Scenario

_N: Final = 50
_OFFSETS: Final = 12
_READERS: Final = 3
_CUTS_MAX: Final = 30
_SUFFIX: Final = "exactly the events after the offset, the same bytes"


async def _finished(bench: Bench) -> tuple[str, list[str], list[str]]:
    """A finished run, its log as it was sent, and the ids."""
    prompt = (f"!tokens n={_N} rate=400", tokens(_N)) if bench.target.rehearsal else bench.short()
    run = await bench.start(prompt)
    follow = bench.follow(run)
    events = await follow.whole()
    if problems := log_problems(events):
        raise Failed("; ".join(problems), "a log without a gap")
    return run, follow.lines, [frame.id for frame in follow.stream.frames]


async def offsets(bench: Bench) -> Seen:
    """A finished run from random offsets: by `after`, by `Last-Event-ID`, and by both, where the latter wins."""
    chance = random.Random(bench.options.seed)  # noqa: S311 - chooses offsets, guards nothing  # nosec B311
    run, whole, ids = await _finished(bench)
    chosen = sorted({0, 1, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(_OFFSETS))})
    for number, after in enumerate(chosen):
        last = ids[after - 1] if after and number % 2 else ""
        follow = bench.follow(run, "0" if last else str(after), last=last)
        await follow.whole()
        if problem := suffix_problem(whole, follow.lines, after):
            raise Failed(f"{problem} (by {'Last-Event-ID' if last else 'after'}, seed {bench.options.seed})", _SUFFIX)
    follow = bench.follow(run, str(len(whole)))
    await follow.stream.ended()
    if follow.stream.status != 204:
        raise Failed(f"a reader that has the terminal event was answered with {follow.stream.status}", "204")
    return Seen(
        f"{len(chosen)} offsets gave exactly the missing suffix, the last 204 (seed {bench.options.seed})",
        {"offsets": float(len(chosen)), "events": float(len(whole))},
    )


async def live(bench: Bench) -> Seen:
    """Readers that lose their connection again and again while the run works."""
    prompt = ("!tokens n=60 rate=80", tokens(60)) if bench.target.rehearsal else bench.short()
    run = await bench.start(prompt)
    found = await together(*(_cut_often(bench, run, bench.options.seed + n) for n in range(_READERS)))
    follow = bench.follow(run)
    events = await follow.whole()
    problems = log_problems(events)
    cuts = sum(times for _, times in found)
    problems += [problem for lines, _ in found if (problem := suffix_problem(follow.lines, lines, 0))]
    if prompt[1] is not None and text_of(events).strip() != prompt[1].strip():
        problems.append("the text of the log is not the answer")
    if problems:
        raise Failed(f"{problems[0]} (seed {bench.options.seed})", "every reader has the whole log once, in order")
    return Seen(f"{_READERS} readers, cut {cuts} times, each have the whole log once", {"cuts": float(cuts)})


async def _cut_often(bench: Bench, run: str, seed: int) -> tuple[list[str], int]:
    """Read a log to its end, leaving after a few events each time; what was read, and how often it left."""
    chance = random.Random(seed)  # noqa: S311 - chooses moments, guards nothing  # nosec B311
    lines: list[str] = []
    for cuts in range(_CUTS_MAX):
        follow = bench.follow(run, str(len(lines)))
        few = chance.randrange(1, 12)
        more = await follow.until(partial(_enough, few), f"{few} events more")
        lines += follow.lines[:few]
        follow.stream.leave()
        if not more:
            return lines, cuts
    follow = bench.follow(run, str(len(lines)))
    await follow.whole()
    return lines + follow.lines, _CUTS_MAX


def _enough(few: int, events: Sequence[Event]) -> bool:
    return len(events) >= few


async def foreign(bench: Bench) -> Seen:
    """A place that this log never had: said with one resync frame, and then the log from its start."""
    run, whole, _ = await _finished(bench)
    follow = bench.follow(run, last="999999-77")
    await follow.stream.ended()
    frames = follow.stream.frames
    if not frames or frames[0].event != "resync":
        raise Failed(
            f"the answer begins with {frames[0].event if frames else follow.stream.state()!r}", "a resync frame"
        )
    if problem := suffix_problem(whole, [frame.data for frame in frames[1:]], 0):
        raise Failed(f"after the resync frame: {problem}", "the log from its start")
    return Seen("one resync frame, then the log from its start")


SCENARIOS: Final = (
    Scenario(
        "resume.offsets",
        "A reader that comes back to a finished run gets exactly the missing suffix, from any offset.",
        "P3: no gap, no duplicate, the same bytes",
        1,
        offsets,
        native=True,
    ),
    Scenario(
        "resume.live",
        "Readers that lose their connection while the run works have the whole log once.",
        "P3: no gap, no duplicate; F31: catching up is free of races",
        1,
        live,
        native=True,
    ),
    Scenario(
        "resume.foreign",
        "A place that the log never had is answered with resync, and the log from its start.",
        "P3: what cannot be served is said, never silent",
        1,
        foreign,
        native=True,
    ),
)

"""Stop, in each phase that a run can be in: it ends, its receipt says how, and its session takes the next prompt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from holdfast.domain.events import EventType
from holdfast.probe.bench import RUNS, Bench
from holdfast.probe.logs import end_problem, log_problems, receipt_problems, text_of
from holdfast.probe.options import STOP_S, UPSTREAM_S, Tool
from holdfast.probe.reading import Event, Follow
from holdfast.probe.results import Failed, Seen, Skipped
from holdfast.probe.scenario import Scenario

_SETTLE_S: Final = 0.1  # after the last event that tells of a phase: nothing outside tells that it has begun
_WORDS: Final = 3


@dataclass(frozen=True)
class _Phase:
    """A phase, and how to get there."""

    prompt: Callable[[Bench], tuple[str, str | None]]
    reached: Callable[[Sequence[Event]], object]
    tool: Callable[[Bench], Tool] | None = None
    upstream: bool = True  # a model's answer is open in it


def _seen(kind: EventType) -> Callable[[Sequence[Event]], object]:
    return lambda events: any(e.get("type") == kind for e in events)


def _text(events: Sequence[Event]) -> object:
    return sum(e.get("type") == EventType.TEXT_DELTA for e in events) >= _WORDS


def _scripted(script: str) -> Callable[[Bench], tuple[str, str | None]]:
    return lambda bench: bench.script(script)


def _calls(tool: Callable[[Bench], Tool]) -> Callable[[Bench], tuple[str, str | None]]:
    return lambda bench: bench.script(f"!tool {tool(bench).name} {tool(bench).args}")


def _tool(bench: Bench) -> Tool:
    return bench.options.tool


def _blocking_tool(bench: Bench) -> Tool:
    return bench.options.blocking_tool


_REQUESTED: Final = _seen(EventType.MODEL_REQUESTED)
_CALLED: Final = _seen(EventType.TOOL_CALLED)
_HEADERS: Final = _Phase(_scripted("!slow_headers for=60"), _REQUESTED)
_FIRST: Final = _Phase(_scripted("!first_token delay=60"), _REQUESTED)
_STREAM: Final = _Phase(lambda bench: bench.long(), _text)
_STALLED: Final = _Phase(_scripted(f"!stall after={_WORDS} for=600"), _text)
_RETRY: Final = _Phase(
    _scripted("!status code=429 retry_after=60 times=1000000"), _seen(EventType.MODEL_RETRIED), upstream=False
)
_TOOL: Final = _Phase(_calls(_tool), _CALLED, _tool, upstream=False)
_BLOCKING: Final = _Phase(_calls(_blocking_tool), _CALLED, _blocking_tool, upstream=False)


def _in(phase: _Phase) -> Callable[[Bench], Awaitable[Seen]]:
    async def run(bench: Bench) -> Seen:
        return await _stop_in(bench, phase)

    return run


async def _stop_in(bench: Bench, phase: _Phase) -> Seen:
    session = bench.session("stop")
    upstream = await bench.upstream()
    run = await bench.start(phase.prompt(bench), session=session)
    follow = bench.follow(run)
    if not await follow.until(phase.reached, "the phase in which to stop"):
        raise Skipped(f"the run ended before it could be stopped ({_last(follow)}); see --long-prompt, --tool")
    await asyncio.sleep(_SETTLE_S)
    tool = phase.tool(bench) if phase.tool else None
    if tool is not None:
        _check_works(follow.events, tool)
    elif follow.stream.over:
        raise Skipped("the run ended by itself before it could be stopped; give a prompt with a longer answer")
    if phase.upstream:
        await upstream.works()
    asked = time.monotonic()
    stopped = await bench.wire.ask("POST", f"{RUNS}/{run}/stop", limit_s=bench.options.within(STOP_S))
    if stopped.status != 202:
        raise Failed(f"stop was answered with {stopped.words()}", "202 and the record")
    events = await follow.whole(bench.options.within(STOP_S))
    figures = {"stop_answered_ms": stopped.took_ms, "terminal_ms": (follow.stream.frames[-1].at - asked) * 1000}
    _judge(events, figures)
    receipt = events[-1]["receipt"]
    words = [_receipt_words(receipt)]
    if receipt.get("upstream_closed_ms") is not None:
        figures["upstream_closed_ms"] = float(receipt["upstream_closed_ms"])
    closed = await upstream.closes(bench.options.within(UPSTREAM_S), "the stop")
    words += [closed] if closed and bench.target.stats else []
    figures["next_prompt_ms"] = await bench.works(session, "the stop")
    return Seen("; ".join(words), figures)


def _check_works(events: Sequence[Event], tool: Tool) -> None:
    """Skipped where the agent has no such tool, or it was over too soon."""
    done = next((e for e in events if e.get("type") == EventType.TOOL_FINISHED), None)
    if done is not None:
        raise Skipped(
            f"the tool {tool.name} ended by itself, {done.get('outcome')}: {str(done.get('result'))[:120]} "
            "(name a tool of the agent that takes seconds, with --tool or --blocking-tool)"
        )


def _judge(events: Sequence[Event], figures: dict[str, float]) -> None:
    problems = log_problems(events)
    if end := end_problem(events, EventType.RUN_CANCELLED, "stopped"):
        problems.append(end)
    else:
        discarded = any(e.get("type") == EventType.ATTEMPT_DISCARDED for e in events)
        problems += receipt_problems(events[-1], None if discarded else text_of(events))
    if problems:
        raise Failed("; ".join(problems), "run.cancelled, stopped, with a receipt and what was said so far", figures)


def _receipt_words(receipt: dict[str, Any]) -> str:
    tools = [f"{tool.get('name')} {tool.get('ended')}" for tool in receipt.get("tools") or []]
    left = ["something was abandoned, and said so"] if receipt.get("abandoned") else []
    return ", ".join([f"cancelled, stopped, by the {receipt.get('by')}", *tools, *left])


def _last(follow: Follow) -> str:
    end = follow.events[-1] if follow.events else {}
    error: Any = end.get("error")
    return " ".join(str(x) for x in (end.get("type"), end.get("reason"), error and error.get("code")) if x)


async def queued(bench: Bench) -> Seen:
    """A run that waits behind another: it ends in the step that asks, and the other goes on."""
    session = bench.session("queued")
    first = bench.follow(await bench.start(bench.long(), session=session))
    await first.until(_seen(EventType.TEXT_DELTA), "the first run's text")
    second = await bench.start(bench.short("never"), session=session, on_busy="enqueue")
    if (state := (await bench.record(second))["state"]) != "queued":
        raise Failed(f"the second run of the session is {state}", "queued, behind the first")
    asked = time.monotonic()
    record = await bench.call("POST", f"{RUNS}/{second}/stop", status=202)
    figures = {"stop_answered_ms": (time.monotonic() - asked) * 1000}
    if (record["state"], record["reason"]) != ("cancelled", "stopped"):
        raise Failed(f"the stopped run is {record['state']}, {record['reason']}", "cancelled in the step that asks")
    events = await bench.follow(second).whole()
    if [e["type"] for e in events] != [EventType.RUN_CREATED, EventType.RUN_CANCELLED]:
        raise Failed(f"its log is {[e['type'] for e in events]}", "run.created, run.cancelled", figures)
    await first.goes_on("the run before it")
    return Seen("it ended in the step that asked, and the run before it goes on", figures)


async def twice(bench: Bench) -> Seen:
    """Stop again, at once and after the end: the first reason and the log stay as they are."""
    run = await bench.start(bench.long())
    follow = bench.follow(run)
    await follow.until(_seen(EventType.TEXT_DELTA), "the first text")
    asked = [bench.call("POST", f"{RUNS}/{run}/stop", status=202) for _ in range(3)]
    await asyncio.gather(*asked)
    await follow.whole(bench.options.within(STOP_S))
    record = await bench.call("POST", f"{RUNS}/{run}/stop?wait_s=1", status=202)
    again = bench.follow(run)
    await again.whole()
    if again.lines != follow.lines:
        raise Failed("a stop after the end changed the log", "the log stays as it is")
    if (record["state"], record["reason"]) != ("cancelled", "stopped"):
        raise Failed(f"the record says {record['state']}, {record['reason']}", "cancelled, stopped")
    return Seen("four stops, three of them at once: one terminal event, the log stays as it is")


_BREAKS: Final = "P2: Stop stops the work, and says what was stopped, when, and what could not be"


def _scenario(name: str, about: str, phase: _Phase, *, scripted: bool = True) -> Scenario:
    return Scenario(f"stop.{name}", about, _BREAKS, 2, _in(phase), native=True, scripted=scripted)


SCENARIOS: Final = (
    Scenario(
        "stop.queued",
        "Stop of a run that waits behind another ends it at once, and leaves the other alone.",
        "F13: Stop reaches queued runs",
        2,
        queued,
        native=True,
    ),
    _scenario("before_headers", "Stop while the model has not answered at all.", _HEADERS),
    _scenario("before_first_token", "Stop while the model has not said a word.", _FIRST),
    _scenario("mid_stream", "Stop while the model talks.", _STREAM, scripted=False),
    _scenario("stalled", "Stop while the model has fallen silent.", _STALLED),
    _scenario("retry_sleep", "Stop while a refused request waits for its next attempt.", _RETRY),
    _scenario("in_tool", "Stop while a tool works that can be cancelled.", _TOOL),
    _scenario("in_blocking_tool", "Stop while a tool blocks a thread: it is abandoned, and that is said.", _BLOCKING),
    Scenario(
        "stop.twice",
        "Stop is idempotent, also after the end.",
        "P1: exactly one terminal event; F11: Stop is idempotent",
        1,
        twice,
        native=True,
    ),
)

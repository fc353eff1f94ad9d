"""Who waits is told on what, since when, and what ends it; and nothing about the run changes by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from holdfast.domain.digest import OpenCall
from holdfast.domain.events import TERMINAL
from holdfast.domain.runs import State
from holdfast.engine.stalls import APART_S, Facts, Notices, Waiting, waiting
from holdfast.ports.agent import AgentEvent, ModelRequested, Result, RunContext, TextDelta, ToolCalled
from holdfast.ports.probe import Probe
from tests.engine.rig import QUICK, FunctionAgent, Rig

SOON = QUICK.model_copy(update={"stalled_notice_s": 0.3})


def facts(**more: object) -> Facts:
    return Facts(**{"now": 100.0, "progress_at": 88.0, "deadline_at": 160.0, "open_calls": [], **more})  # type: ignore[arg-type]


def on(name: str) -> Waiting:
    return Waiting(name, 0, "run_deadline", 1)


def walk(notices: Notices, what: list[tuple[float, str]], progress_at: float = 0.0) -> list[float]:
    """The seconds at which a notice was due."""
    return [now for now, name in what if notices.due(on(name), progress_at, now)]


def test_notices_become_rare_while_nothing_changes() -> None:
    """An hour of silence is told in about sixty lines, not in 3600; a hundred are the most."""
    seconds = [float(n) for n in range(20_000)]
    said = walk(Notices(10), [(now, "model") for now in seconds])
    assert said[:5] == [10, 20, 40, 80, 140]
    assert max(b - a for a, b in pairwise(said)) == 60
    assert len(said) == 100


def test_another_cause_is_said_sooner_but_never_in_a_rush() -> None:
    """The retry sleep after the stalled model is news; ten changes in a second are not ten notices."""
    changing = [(10 + n / 10, f"tool {n}") for n in range(300)]
    said = walk(Notices(10), changing)
    assert all(b - a >= APART_S for a, b in pairwise(said))
    assert len(said) == 3


def test_progress_begins_the_wait_anew() -> None:
    """A model that speaks every nine seconds is slow, not stalled."""
    notices = Notices(10)
    assert not any(notices.due(on("model"), progress, progress + 9.0) for progress in range(0, 900, 9))
    assert not Notices(0).due(on("model"), 0.0, 1e9), "0 switches them off"


def test_of_a_store_that_does_not_answer_one_notice_is_kept_for_later() -> None:
    """They could not be written: a hundred of them would arrive at once, when all is well again."""
    assert walk(Notices(10), [(float(n), "store") for n in range(600)]) == [10]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "agent"),
        ({"open_calls": [OpenCall("c1", "look")]}, "tool look"),
        ({"model_open": True}, "model first content"),
        ({"model_open": True, "model_content": True}, "model"),
        ({"store_since": 95.0, "store_outage_s": 60.0}, "store"),
        ({"lease_since": 95.0}, "lease"),
    ],
)
def test_what_a_run_waits_on_is_named_without_its_help(more: dict[str, object], expected: str) -> None:
    """A plain generator says nothing about itself; its log does."""
    found = waiting(Probe(), facts(**more))
    assert found.on == expected
    assert found.since_ms == 12_000
    assert (found.fires, found.fires_in_ms) == (
        ("store_outage", 55_000) if expected == "store" else ("run_deadline", 60_000)
    )


def test_the_timer_that_is_named_is_the_one_that_fires_first() -> None:
    """`ends in N s at the latest` must be true, also where two tools with different limits run at once."""
    probe = Probe()
    probe.waits("tool", fires="tool_timeout", fires_in_s=30)
    probe.tool_started("c1", "look")
    probe.tool_started("c2", "read")
    assert probe.fires_at is not None
    now = probe.since
    found = waiting(probe, facts(now=now, progress_at=now, deadline_at=now + 60))
    assert (found.on, found.fires, found.fires_in_ms) == ("tool look, read", "tool_timeout", 30_000)
    assert waiting(probe, facts(now=now, progress_at=now, deadline_at=now + 20)).fires == "run_deadline"
    past = waiting(probe, facts(now=now + 40, progress_at=now, deadline_at=now + 60))
    assert past.fires == "run_deadline", "the timer of a tool that has ended ends nothing"


async def test_a_run_that_waits_says_on_what_and_its_answer_is_unchanged() -> None:
    """The notice stands between two deltas of one part; the part is whole, the deltas in order."""

    async def slow(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        yield ModelRequested(1, "m", 1)
        yield TextDelta(ctx.first_part, "one ")
        await asyncio.sleep(1.2)
        yield TextDelta(ctx.first_part, "two")
        yield Result("one two")

    async with Rig(FunctionAgent(slow), settings=SOON) as rig:
        key = await rig.start()
        record = await rig.end(key)
        events = await rig.events(key)
    kinds = [e["type"] for e in events]
    notice = events[kinds.index("run.stalled")]
    assert kinds.count("run.stalled") == 1
    assert (notice["waiting_on"], notice["fires"]) == ("model", "run_deadline")
    assert notice["since_ms"] >= 300
    assert 500_000 < notice["fires_in_ms"] <= 600_000
    assert kinds.index("text.delta") < kinds.index("run.stalled") < len(kinds) - 1 - kinds[::-1].index("text.delta")
    assert (record.state, record.output) == (State.COMPLETED, "one two")


async def test_a_stopped_run_says_nothing_more() -> None:
    """A notice must not come between Stop and the end, nor after it, though its agent leaves slowly."""

    async def leaving(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        yield ToolCalled("c1", "look", {})
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(1.0)

    settings = SOON.model_copy(update={"stop_grace_s": 3.0})
    async with Rig(FunctionAgent(leaving), settings=settings) as rig:
        key = await rig.start()
        await rig.until(key, "tool.called")
        await rig.sessions.stop(key, "tester")
        await rig.end(key)
        await asyncio.sleep(0.6)
        kinds = [e["type"] for e in await rig.events(key)]
    assert "run.stalled" not in kinds[kinds.index("run.stopping") :]
    assert kinds[-1] == "run.cancelled"


async def test_a_run_that_was_taken_away_says_nothing_more() -> None:
    """The worker does not know yet that the reaper ended its run: the store refuses the notice, and nobody sees it."""

    async def silent(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        yield TextDelta(ctx.first_part, "x")
        await asyncio.sleep(3600)

    settings = SOON.model_copy(update={"stalled_notice_s": 0.6, "renew_s": 60.0, "lease_s": 120.0})
    async with Rig(FunctionAgent(silent), settings=settings) as rig:
        key = await rig.start()
        await rig.until(key, "text.delta")
        await rig.store.bury("w-test", key)
        await rig.end(key)
        before = await rig.events(key)
        async with asyncio.timeout(8):
            while "run_lost" not in rig.lines.getvalue():
                await asyncio.sleep(0.02)
        assert await rig.events(key) == before
    assert before[-1]["type"] in TERMINAL

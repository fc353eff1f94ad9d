"""Deltas are coalesced, never dropped and never held back longer than they must be."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from holdfast.domain.runs import State
from holdfast.ports.agent import AgentEvent, PartDone, ReasoningDelta, Result, RunContext, TextDelta, ToolArgs
from tests.engine.rig import FunctionAgent, Rig

_TOKENS = [f"t{n} " for n in range(1, 41)]


@pytest.mark.parametrize("gap_ms", [0, 5, 20, 50, 100])
async def test_concatenated_deltas_equal_the_final_text_at_any_pace(gap_ms: int) -> None:
    """A debounce that is cancelled loses text (of 390 characters 0 at 5 ms); a flush by age loses none."""
    tokens = _TOKENS if gap_ms < 100 else _TOKENS[:15]

    async def paced(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        for token in tokens:
            yield TextDelta(0, token)
            if gap_ms:
                await asyncio.sleep(gap_ms / 1000)
        yield Result("".join(tokens))

    async with Rig(FunctionAgent(paced)) as rig:
        key = await rig.start()
        assert (await rig.end(key)).state is State.COMPLETED
        events = await rig.events(key)
    deltas = [e["text"] for e in events if e["type"] == "text.delta"]
    done = next(e["text"] for e in events if e["type"] == "text.done")
    assert "".join(deltas) == done == "".join(tokens)
    if gap_ms == 0:
        assert len(deltas) < len(tokens), "at full speed deltas run together"
    else:
        assert deltas[0] == tokens[0], "the first token goes at once"
    if gap_ms >= 50:
        assert deltas == tokens, "a token that comes alone is sent alone"


async def test_text_survives_a_stop_at_any_moment() -> None:
    """What was yielded before the stop is in the log: a stop flushes, it does not wipe."""
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    yielded: list[str] = []

    async def fast(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        for n in range(100_000):
            yield TextDelta(0, f"t{n} ")
            yielded.append(f"t{n} ")
            if n % 7 == 0:
                await asyncio.sleep(0.001)

    async with Rig(FunctionAgent(fast)) as rig:
        for _ in range(10):
            yielded.clear()  # a stop may come before the agent's first step
            key = await rig.start()
            await asyncio.sleep(chance.random() * 0.1)
            await rig.sessions.stop(key, "tester")
            record = await rig.end(key)
            events = await rig.events(key)
            text = "".join(e["text"] for e in events if e["type"] == "text.delta")
            assert text == (record.output or ""), seed  # None where a stop met it in the queue
            if record.started_at:
                assert text in ("".join(yielded), "".join(yielded) + f"t{len(yielded)} "), seed


async def test_parts_and_calls_are_never_mixed_by_coalescing() -> None:
    """Interleaved text, reasoning and tool arguments stay in their order and in their parts."""
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    sent: dict[object, str] = {}

    async def mixed(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        for n in range(500):
            where = chance.choice([0, 1, 2, "c1", "c2"])
            sent[where] = sent.get(where, "") + f"{n},"
            if where == 1:
                yield ReasoningDelta(1, f"{n},")
            elif isinstance(where, int):
                yield TextDelta(where, f"{n},")
            else:
                yield ToolArgs(where, "t", f"{n},")
            if n % 100 == 99:
                await asyncio.sleep(0.01)
        for part in (0, 1, 2):
            yield PartDone(part)
        yield Result("x")

    async with Rig(FunctionAgent(mixed)) as rig:
        key = await rig.start()
        await rig.end(key)
        events = await rig.events(key)
    got: dict[object, str] = {}
    for event in events:
        if event["type"] in ("text.delta", "reasoning.delta"):
            got[event["part"]] = got.get(event["part"], "") + event["text"]
        elif event["type"] == "tool.args":
            got[event["call"]] = got.get(event["call"], "") + event["delta"]
    assert got == sent, seed

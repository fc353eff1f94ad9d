"""A store that lost what it had acknowledged: a failover to a replica that was behind, a disk that lied."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Reason, State
from holdfast.ports.agent import AgentEvent, Checkpoint, PartDone, Result, RunContext, TextDelta
from tests.engine.rig import QUICK, FunctionAgent, Rig


async def test_a_worker_that_is_ahead_of_its_store_writes_no_more_and_another_claim_goes_on() -> None:
    """Readers were shown those numbers with other content: only an attempt that begins where the store is may go on."""
    lost = asyncio.Event()
    attempts = []

    async def work(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        attempts.append(ctx.attempt)
        part = ctx.first_part
        yield Checkpoint(b"here")
        yield TextDelta(part, f"attempt {ctx.attempt}")
        yield PartDone(part)
        yield Checkpoint(b"there")
        if ctx.attempt == 1:
            await lost.wait()
            yield TextDelta(part + 1, "never to be stored")
            yield Checkpoint(b"nowhere")
            raise AssertionError("it was let go on")
        yield Result(f"attempt {ctx.attempt}")

    settings = QUICK.model_copy(update={"lease_s": 0.5})
    async with Rig(FunctionAgent(work, resumable=True), settings=settings) as rig:
        key = await rig.start()
        await rig.until(key, "text.done")
        await _forget_last(rig.store, key)
        lost.set()
        record = await rig.end(key)
        events = await rig.events(key)
        lines = rig.lines.getvalue()
    assert attempts == [1, 2]
    assert (record.state, record.reason, record.output) == (State.COMPLETED, Reason.FINISHED, "attempt 2")
    assert "never to be stored" not in str(events)
    assert [line for line in lines.splitlines() if line.startswith("run_lost") and "status=gap" in line]


async def _forget_last(store: Any, key: RunKey) -> None:
    def regress(tx: Any) -> None:
        row = tx.one("SELECT n, head FROM runs WHERE id = ?", key.run)
        assert tx.run("DELETE FROM events WHERE run = ? AND seq = ?", row["n"], row["head"]) == 1
        tx.run("UPDATE runs SET head = head - 1 WHERE n = ?", row["n"])

    await store._writer.do("regress", regress)

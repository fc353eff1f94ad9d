"""A worker dies: the next one goes on from the last checkpoint, and nothing that was done is done again."""

import asyncio
from collections import Counter

import pytest
from pydantic_ai import Tool

from holdfast.agents import current_call
from holdfast.domain.runs import Reason
from holdfast.ports.agent import Checkpoint, ModelRequested, TextDelta, ToolCalled, ToolFinished
from tests.agents.rules import problems
from tests.agents.support import Rig, Told, context, tell

SCRIPT = "!say first\n!tool one {}\n!tool two {}\n!say between\n!tool three {}\n!say the end"


class Ledger:
    """Tools that count how often they ran, by idempotency key too."""

    def __init__(self, idempotent: bool) -> None:
        self.ran: Counter[str] = Counter()
        self.keys: dict[str, set[str]] = {}
        self.tools = [
            Tool(self._tool(name), name=name, metadata={"idempotent": idempotent}) for name in ("one", "two", "three")
        ]

    def _tool(self, name: str):
        async def work() -> str:
            self.ran[name] += 1
            call = current_call()
            assert call is not None
            self.keys.setdefault(name, set()).add(call.key)
            if name == "two":
                await asyncio.sleep(0.02)
            return f"{name} is done"

        return work


async def whole(rig: Rig) -> Told:
    return await tell(rig.agent(Ledger(False).tools).run(context(SCRIPT)))


def told_before(told: Told, checkpoint: bytes) -> Told:
    """What the log has: everything up to the checkpoint, that included."""
    before = Told()
    for event in told.events:
        before.events.append(event)
        if checkpoint in (getattr(event, "data", None), getattr(event, "checkpoint", None)):
            break
    return before


@pytest.mark.parametrize("idempotent", [False, True])
async def test_from_every_checkpoint_the_run_ends_as_it_would_have(rig: Rig, idempotent: bool) -> None:
    """The log of both attempts together is one run: each call once, each result once, one answer."""
    full = await whole(rig)
    assert len(full.checkpoints) == 6  # three responses, three results
    for checkpoint in full.checkpoints:
        before = told_before(full, checkpoint)
        ledger = Ledger(idempotent)
        asked_before = len(before.of(ModelRequested))
        requests = rig.stats["requests"]
        ctx = context(SCRIPT, attempt=2, epoch=2, checkpoint=checkpoint, first_part=10)
        after = await tell(rig.agent(ledger.tools).run(ctx))
        assert after.result.output == "the end"
        # What was answered is not asked again, what was said is not said again.
        assert rig.stats["requests"] - requests == len(full.of(ModelRequested)) - asked_before
        assert (before.text + after.text) == full.text
        assert all(event.part >= 10 for event in after.of(TextDelta))
        # Each call was told once and has one result.
        called = [event.call for event in (*before.of(ToolCalled), *after.of(ToolCalled))]
        finished = [event.call for event in (*before.of(ToolFinished), *after.of(ToolFinished))]
        assert len(called) == len(set(called)) == 3
        assert sorted(finished) == sorted(called)
        # What had finished did not run again; what was in flight did only if it may.
        done = {event.name for event in before.of(ToolFinished)}
        flying = {event.name for event in before.of(ToolCalled)} - done
        assert not done & set(ledger.ran)
        assert flying & set(ledger.ran) == (flying if idempotent else set())
        for name in flying:
            assert after.outcomes()[name] == ("success" if idempotent else "unknown")
        assert problems(rig.sent()) == []


async def test_an_idempotent_tool_gets_the_same_key_in_each_attempt(rig: Rig) -> None:
    """A key with the attempt in it charges twice."""
    ledger = Ledger(True)
    full = await tell(rig.agent(ledger.tools).run(context(SCRIPT)))
    await tell(rig.agent(ledger.tools).run(context(SCRIPT, attempt=2, epoch=2, checkpoint=full.checkpoints[0])))
    assert ledger.ran["one"] == 2
    assert all(len(keys) == 1 for keys in ledger.keys.values())


async def test_the_model_is_told_that_an_outcome_is_unknown(rig: Rig) -> None:
    """Silence would let it assume one."""
    full = await whole(rig)
    await tell(rig.agent(Ledger(False).tools).run(context(SCRIPT, attempt=2, checkpoint=full.checkpoints[0])))
    results = [m["content"] for m in rig.sent() if m["role"] == "tool"]
    assert sum("unknown" in text for text in results) == 2


async def test_a_finished_answer_is_not_asked_for_again(rig: Rig) -> None:
    """An agent with instructions would otherwise be asked anew, and say something else than was shown."""
    agent = rig.agent(instructions="be brief")
    full = await tell(agent.run(context("!tokens n=4")))
    requests = rig.stats["requests"]
    ctx = context("!tokens n=4", attempt=2, checkpoint=full.checkpoints[-1], first_part=1)
    after = await tell(agent.run(ctx))
    assert rig.stats["requests"] == requests
    assert [type(event).__name__ for event in after.events] == ["Result"]
    assert after.result.output == "t1 t2 t3 t4 "


async def test_a_resumed_run_can_die_again(rig: Rig) -> None:
    """The second attempt's checkpoints hold the first one's messages."""
    full = await whole(rig)
    second = await tell(rig.agent(Ledger(True).tools).run(context(SCRIPT, attempt=2, checkpoint=full.checkpoints[0])))
    for checkpoint in second.checkpoints:
        third = await tell(rig.agent(Ledger(True).tools).run(context(SCRIPT, attempt=3, checkpoint=checkpoint)))
        assert third.result.output == "the end"
    assert problems(rig.sent()) == []


async def test_a_second_attempt_without_a_checkpoint_begins_anew(rig: Rig) -> None:
    """The first one died before its first response was whole."""
    told = await tell(rig.agent().run(context("!say hello", attempt=2)))
    assert told.result.output == "hello"
    assert told.of(Checkpoint)


async def test_a_stop_right_after_the_resume_keeps_what_the_first_attempt_had(rig: Rig) -> None:
    """A run that is resumed only to be stopped must not lose its finished tools."""
    full = await whole(rig)

    async def hang() -> None:
        await asyncio.sleep(30)

    tools = [Tool(hang, name=name, metadata={"idempotent": True}) for name in ("one", "two", "three")]
    ctx = context(SCRIPT, attempt=2, checkpoint=full.checkpoints[1])
    running = asyncio.ensure_future(tell(rig.agent(tools).run(ctx)))
    await asyncio.sleep(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert b"one is done" in ctx.recovered
    assert b"first" in ctx.recovered


async def test_a_checkpoint_of_another_kind_ends_the_run_with_a_remedy(rig: Rig) -> None:
    """Better than a run that begins again and charges twice."""
    told = await tell(rig.agent().run(context("hi", attempt=2, checkpoint=b"\x00 not ours")))
    assert told.ended is not None
    assert (told.ended.reason, told.ended.code) == (Reason.AGENT_ERROR, "bad_checkpoint")
    assert told.ended.remedy


async def test_a_name_that_an_earlier_attempt_gave_to_a_call_is_not_given_again(rig: Rig) -> None:
    """Readers have dropped that call: what they would hear under its name afterwards, they would drop, too."""
    asked = "!tool one {}\n!say done"
    first = await tell(rig.agent(Ledger(False).tools).run(context(asked)))
    (call,) = [event.call for event in first.of(ToolCalled)]
    again = await tell(rig.agent(Ledger(False).tools).run(context(asked, attempt=2, epoch=2, calls={call})))
    (other,) = [event.call for event in again.of(ToolCalled)]
    assert other != call
    assert [event.call for event in again.of(ToolFinished)] == [other]

"""What an agent yields and no JSON can say: half characters, numbers for text, keys that are tuples."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from holdfast.domain.runs import State
from holdfast.ports.agent import AgentEvent, ReasoningDelta, Result, RunContext, TextDelta, ToolCalled, ToolFinished
from tests.engine.rig import FunctionAgent, Rig

HALF = "\ud83c"  # of a surrogate pair: a model's answer that was cut inside an emoji


async def _says_half(ctx: RunContext) -> AsyncIterator[AgentEvent]:
    yield TextDelta(0, f"so {HALF}")
    yield TextDelta(0, f"{HALF} far")
    yield ReasoningDelta(1, HALF)
    yield Result(f"so {HALF}{HALF} far")


async def _calls_half(ctx: RunContext) -> AsyncIterator[AgentEvent]:
    yield ToolCalled(HALF, "look", {HALF: HALF, (1, 2): {3: float("nan")}})
    yield ToolFinished(HALF, "look", "success", {(1, 2): object(), "half": HALF}, 0)
    yield Result("done")


async def _fails_half(ctx: RunContext) -> AsyncIterator[AgentEvent]:
    yield TextDelta(0, "so far")
    raise ValueError(HALF)


@pytest.mark.parametrize(
    ("work", "state", "said"),
    [
        pytest.param(_says_half, State.COMPLETED, "so \ufffd\ufffd far", id="text"),
        pytest.param(_calls_half, State.COMPLETED, "done", id="tool"),
        pytest.param(_fails_half, State.FAILED, "so far", id="error"),
    ],
)
async def test_half_a_character_is_replaced_and_ends_no_run(
    work: Callable[[RunContext], AsyncIterator[AgentEvent]], state: State, said: str
) -> None:
    """It has no bytes: the run would end when its lease does, and blame a worker that is well; the next prompt, too."""
    async with Rig(FunctionAgent(work)) as rig:
        for _ in range(2):  # the second is given what the first left in the session
            record = await rig.end(await rig.start(session="s"), 1.5)  # less than the lease
            assert (record.state, record.output) == (state, said), rig.lines.getvalue()
            events = await rig.events(record.key)
            parts = ["".join(e["text"] for e in events if e["type"] == f"text.{what}") for what in ("delta", "done")]
            assert parts[0] == parts[1] or state is State.FAILED  # which leaves its part open
    assert "executor_failed" not in rig.lines.getvalue()


WRONG: list[Any] = [
    TextDelta(0, 5),  # type: ignore[arg-type]
    TextDelta(0, b"bytes"),  # type: ignore[arg-type]
    TextDelta(None, "x"),  # type: ignore[arg-type]
    ReasoningDelta("p", "x"),  # type: ignore[arg-type]
    ToolCalled(7, "t", {}),  # type: ignore[arg-type]
    ToolFinished("c", None, "success", 1, 0),  # type: ignore[arg-type]
    ToolFinished("c", "t", "success", 1, "soon"),  # type: ignore[arg-type]
    Result(None),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("event", WRONG, ids=str)
async def test_an_event_with_the_wrong_type_of_value_ends_its_run_and_names_the_field(event: Any) -> None:
    """At once and as the agent's mistake, not as a worker that was lost ten seconds later."""

    async def work(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        yield TextDelta(0, "so far")
        yield event
        yield Result("never")

    async with Rig(FunctionAgent(work)) as rig:
        record = await rig.end(await rig.start(), 1.5)
        assert record.error is not None
        assert record.error["code"] == "agent_bad_event"
        assert type(event).__name__ in record.error["message"]
        assert record.output == "so far"

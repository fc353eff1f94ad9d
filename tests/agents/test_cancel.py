"""Stop: the socket is closed, the tools are cancelled, and what was done is kept."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelRequest, ModelResponse, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from holdfast.agents import PydanticAgent
from holdfast.agents.checkpoint import read
from holdfast.agents.history import history_of
from holdfast.config.settings import Settings
from holdfast.ports.agent import ModelRetried, TextDelta, ToolArgs, ToolFinished
from holdfast.tools import ToolPool
from tests.agents.support import LIMIT_S, Rig, Told, context, tell, until
from tests.agents.test_history import entry

CLOSED_S = 0.3


async def stop(rig: Rig, script: str, when: Callable[[Told], bool], tools: list | None = None):
    """Run, cancel at the moment, and give what is left: what was told, its context, and the seconds it took."""
    ctx, told = context(script), Told()
    running = asyncio.ensure_future(tell(rig.agent(tools).run(ctx), told))
    await until(lambda: when(told) or running.done())
    began = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(LIMIT_S):
            await running
    return told, ctx, time.monotonic() - began


def asked(rig: Rig) -> Callable[[Told], bool]:
    return lambda _: rig.stats["open"] == 1


PHASES = {
    "before the headers": ("!slow_headers for=30", lambda told: False),
    "before the first token": ("!first_token delay=30", lambda told: False),
    "in the stream": ("!tokens n=1000", lambda told: len(told.of(TextDelta)) >= 3),
    "in a stall": ("!stall after=2 for=30", lambda told: len(told.of(TextDelta)) == 2),
    "in the arguments": (
        '!tool add {"a": 1111111111, "b": 2222222222, "c": 3333333333, "d": 4444444444}',
        lambda told: len(told.of(ToolArgs)) >= 1,
    ),
}


@pytest.mark.parametrize("phase", PHASES)
async def test_stop_closes_the_upstream_in_each_phase(rig: Rig, phase: str) -> None:
    """Whatever the model is doing, its socket is closed at once and the probe knows when."""
    script, when = PHASES[phase]
    told, ctx, took = await stop(rig, script, (lambda t: when(t) or asked(rig)(t)) if "before" in phase else when)
    assert took < CLOSED_S
    assert ctx.probe.upstreams_open == 0
    assert ctx.probe.upstream_closed_at is not None
    await until(lambda: rig.stats["client_disconnects"] == 1, CLOSED_S)
    assert rig.stats["open"] == 0
    messages = read(ctx.recovered).messages
    assert isinstance(messages[0], ModelRequest)
    assert script in str(messages[0].parts[-1].content)
    if told.text:
        assert told.text in str(messages[-1])


async def test_stop_in_a_retrys_sleep_ends_at_once(rig: Rig) -> None:
    """Nobody waits for a Retry-After of a run that was stopped."""
    _told, ctx, took = await stop(rig, "!status code=503 retry_after=30", lambda told: bool(told.of(ModelRetried)))
    assert took < CLOSED_S
    assert ctx.probe.upstreams_open == 0


async def test_stop_in_a_tool_cancels_it_and_keeps_its_finished_sibling(rig: Rig) -> None:
    """What a tool finished is never lost, nor asked of it again."""
    cancelled = asyncio.Event()

    async def quick() -> str:
        return "done already"

    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    _told, ctx, took = await stop(
        rig, "!tool quick {}\n!tool slow {}", lambda told: bool(told.of(ToolFinished)), [quick, slow]
    )
    assert took < CLOSED_S
    assert cancelled.is_set()
    assert ctx.probe.tools_running() == {}
    returns = [p for m in read(ctx.recovered).messages for p in m.parts if isinstance(p, ToolReturnPart)]
    assert [part.content for part in returns] == ["done already"]
    again = history_of([entry(native=ctx.recovered, state="cancelled")])
    assert [p.outcome for m in again for p in m.parts if isinstance(p, ToolReturnPart)] == ["success", "interrupted"]


async def test_stop_in_a_blocked_thread_does_not_wait_for_it(rig: Rig) -> None:
    """The thread is quarantined, counted and seen; the run is over."""
    let_go, started = threading.Event(), threading.Event()

    def block() -> None:
        started.set()
        let_go.wait(10)

    _, ctx, took = await stop(rig, "!tool block {}", lambda told: started.is_set(), [block])
    assert took < CLOSED_S
    assert len(ctx.probe.threads_running()) == 1
    assert rig.pool.quarantined == 1
    let_go.set()
    await until(lambda: rig.pool.quarantined == 0)
    assert ctx.probe.threads_running() == set()


async def test_stop_leaves_no_task_behind(rig: Rig) -> None:
    """Tasks return to baseline."""
    before = len(asyncio.all_tasks())
    for _ in range(3):
        await stop(rig, "!stall after=1 for=30", lambda told: bool(told.of(TextDelta)))
    await until(lambda: rig.stats["open"] == 0)
    await until(lambda: len(asyncio.all_tasks()) <= before + 1)


async def test_a_reader_that_just_stops_reading_ends_the_run(rig: Rig) -> None:
    """aclose() is a stop too: nothing may go on working for nobody."""
    run = rig.agent().run(context("!tokens n=1000"))
    async for event in run:
        if isinstance(event, TextDelta):
            break
    await run.aclose()
    await until(lambda: rig.stats["open"] == 0, CLOSED_S)


async def test_a_partial_answer_is_history_and_marked(rig: Rig) -> None:
    """The next prompt must be able to refer to what was on the screen."""
    _told, ctx, _ = await stop(rig, "!stall after=3 for=30", lambda told: len(told.of(TextDelta)) == 3)
    await tell(rig.agent().run(context("!say next", history=[entry(native=ctx.recovered, state="cancelled")])))
    sent = rig.sent()
    assert [m["role"] for m in sent] == ["user", "assistant", "user"]
    assert sent[1]["content"] == "t1 t2 t3  [interrupted]"
    response = read(ctx.recovered).messages[-1]
    assert isinstance(response, ModelResponse)


async def test_an_agent_that_swallows_its_stop_ends_at_its_next_event() -> None:
    """Whoever catches the cancellation and goes on must not go on for ever, for nobody."""
    sleeping, swallowed = asyncio.Event(), asyncio.Event()

    async def stream(messages: list, info: AgentInfo):
        yield "a"
        sleeping.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            swallowed.set()
        while True:
            yield "b"
            await asyncio.sleep(0)

    agent = PydanticAgent(Agent(FunctionModel(stream_function=stream)), "test", Settings(), ToolPool(1, 1.0))
    told = Told()
    running = asyncio.ensure_future(tell(agent.run(context("go")), told))
    await until(lambda: bool(told.text) and sleeping.is_set())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(LIMIT_S):
            await running
    assert swallowed.is_set()
    assert len(agent.owner) == 0

"""pydantic-ai's agents behind our port, on a real socket."""

import asyncio
import contextvars
import threading
import time
from dataclasses import dataclass

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, Tool
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from holdfast.agents import PydanticAgent, current_call
from holdfast.domain.errors import RunEnded
from holdfast.domain.runs import Reason
from holdfast.ports.agent import (
    Checkpoint,
    ModelRequested,
    ModelResponded,
    PartDone,
    ReasoningDelta,
    TextDelta,
    ToolArgs,
    ToolCalled,
    ToolFinished,
)
from tests.agents.rules import problems
from tests.agents.support import Rig, context, tell


async def add(a: int, b: int) -> int:
    return a + b


async def test_text_is_told_as_it_comes_and_is_the_output(rig: Rig) -> None:
    """The simplest run is whole: request, deltas, part, response, checkpoint, result, in this order."""
    told = await rig.run("!tokens n=3")
    kinds = [type(event).__name__ for event in told.events]
    assert kinds == [
        "ModelRequested",
        *["TextDelta"] * 3,
        "PartDone",
        "ModelResponded",
        "Checkpoint",
        "Result",
    ]
    assert told.text == told.result.output == "t1 t2 t3 "


async def test_reasoning_and_text_are_parts_of_their_own_numbered_from_the_first_free_one(rig: Rig) -> None:
    """A resumed run must not use a number that its log has already."""
    told = await rig.run("!think n=2", "!tokens n=2", first_part=7)
    assert {event.part for event in told.of(ReasoningDelta)} == {7}
    assert {event.part for event in told.of(TextDelta)} == {8}
    assert [event.part for event in told.of(PartDone)] == [7, 8]


async def test_a_response_is_told_with_its_raw_finish_reason_and_its_usage(rig: Rig) -> None:
    """pydantic-ai makes a finish reason up where there is none; the log must not."""
    told = await rig.run("!tokens n=2", "!usage prompt=11 completion=22")
    response = told.of(ModelResponded)[0]
    assert (response.finish_reason, response.step) == ("stop", 1)
    assert (response.usage["input_tokens"], response.usage["output_tokens"]) == (11, 22)
    assert response.ttft_ms is not None
    assert response.ttft_ms <= response.duration_ms


async def test_a_tool_starts_only_after_its_call_is_durable(rig: Rig) -> None:
    """A tool that ran without a trace in the log cannot be told apart from one that did not."""
    started = asyncio.Event()

    async def work() -> str:
        started.set()
        return "ok"

    run = rig.agent([work]).run(context("!tool work {}"))
    async for event in run:
        if isinstance(event, Checkpoint):
            await asyncio.sleep(0.05)  # the executor writes; whoever wants to run ahead has the time to
            assert not started.is_set()
            break
    event = await anext(run)
    assert isinstance(event, ToolFinished)
    assert started.is_set()
    await run.aclose()


async def test_a_tool_call_is_told_argument_by_argument_then_called_then_finished(rig: Rig) -> None:
    """A reader that missed the arguments gets them whole in tool.called."""
    told = await rig.run("!say calling", '!tool add {"a": 1, "b": 2}', "!say done", tools=[add])
    called = told.of(ToolCalled)[0]
    assert "".join(event.delta for event in told.of(ToolArgs)) == '{"a": 1, "b": 2}'.replace(" ", "") or called.args
    assert called.args == {"a": 1, "b": 2}
    finished = told.of(ToolFinished)[0]
    assert (finished.call, finished.outcome, finished.result) == (called.call, "success", 3)
    assert [event.step for event in told.of(ModelRequested)] == [1, 2]
    assert told.result.output == "done"
    assert problems(rig.sent()) == []


async def test_parallel_tools_run_together_and_each_is_told_when_it_ends(rig: Rig) -> None:
    """A slow tool does not hide that a quick one has finished."""
    both = asyncio.Barrier(2)

    async def slow() -> str:
        await both.wait()
        await asyncio.sleep(0.1)
        return "slow"

    async def quick() -> str:
        await both.wait()
        return "quick"

    told = await rig.run("!tool slow {}", "!tool quick {}", "!say done", tools=[slow, quick])
    assert [event.name for event in told.of(ToolFinished)] == ["quick", "slow"]


async def test_a_sync_tool_runs_in_our_pool_with_its_call_and_context(rig: Rig) -> None:
    """An idempotency key that is not there in the thread is no key."""
    seen = {}
    mark = contextvars.ContextVar("mark", default="")
    mark.set("of the caller")

    def work() -> str:
        call = current_call()
        assert call is not None
        seen.update(thread=threading.current_thread().name, call=call, mark=mark.get())
        return "ok"

    ctx = context("!tool work {}", epoch=3)
    told = await tell(rig.agent([work]).run(ctx))
    called = told.of(ToolCalled)[0].call
    assert seen["thread"].startswith("holdfast-tool")
    assert (seen["call"].key, seen["call"].epoch, seen["mark"]) == (f"r_1/{called}", 3, "of the caller")
    assert ctx.probe.threads_running() == set()
    assert ctx.probe.tools_running() == {}


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_tool_that_raises_is_a_result_for_the_model(rig: Rig, blocking: bool) -> None:
    """A bug in one tool is not the end of an hour's work."""

    async def boom() -> None:
        raise ValueError("bang")

    def sync_boom() -> None:
        raise ValueError("bang")

    tool = Tool(sync_boom if blocking else boom, name="boom")
    told = await rig.run("!tool boom {}", "!say done", tools=[tool])
    finished = told.of(ToolFinished)[0]
    assert (finished.outcome, finished.result) == ("failed", "ValueError: bang")
    assert [m["content"] for m in rig.sent() if m["role"] == "tool"] == ['{"error":"ValueError: bang"}']
    assert told.result.output == "done"


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_tool_that_exits_ends_neither_its_run_nor_its_worker(rig: Rig, blocking: bool) -> None:
    """sys.exit() in a tool would end the loop, and every other run with it."""

    async def leave() -> None:
        raise SystemExit(3)

    def sync_leave() -> None:
        raise SystemExit(3)

    tool = Tool(sync_leave if blocking else leave, name="leave")
    told = await rig.run("!tool leave {}", "!say done", tools=[tool])
    assert told.outcomes() == {"leave": "failed"}
    assert told.result.output == "done"


@pytest.mark.parametrize("given", [None, 0.1])
async def test_a_tool_that_hangs_times_out_and_the_model_is_told(rig: Rig, given: float | None) -> None:
    """Its own limit, or the deployment's: every tool ends."""
    rig.settings = rig.settings.model_copy(update={"tool_timeout_s": 0.1})

    async def hang() -> None:
        await asyncio.sleep(60)

    told = await rig.run("!tool hang {}", "!say done", tools=[Tool(hang, timeout=given)])
    assert told.outcomes() == {"hang": "timeout"}
    assert "0.1 s" in rig.sent()[-1]["content"]
    assert told.result.output == "done"


async def test_a_tool_that_ignores_its_timeout_is_abandoned_and_seen_running(rig: Rig) -> None:
    """Swallowing CancelledError cannot hold up the run; the probe still names the tool."""
    rig.settings = rig.settings.model_copy(update={"tool_timeout_s": 0.1})
    let_go = asyncio.Event()

    async def stubborn() -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    ctx = context("!tool stubborn {}\n!say done")
    told = await tell(rig.agent([stubborn]).run(ctx))
    assert told.outcomes() == {"stubborn": "timeout"}
    assert told.result.output == "done"
    assert list(ctx.probe.tools_running().values()) == ["stubborn"]
    let_go.set()


async def test_a_sync_tool_that_gets_no_thread_says_so(rig: Rig) -> None:
    """Waiting for a thread is bounded, and the model learns that its tool was never started."""
    let_go = threading.Event()
    for _ in range(rig.settings.tool_threads):
        rig.pool.submit(let_go.wait, 5.0)

    def work() -> str:
        return "never"

    told = await rig.run("!tool work {}", "!say done", tools=[work])
    let_go.set()
    assert told.outcomes() == {"work": "timeout"}
    assert "not started" in told.of(ToolFinished)[0].result


async def test_an_unknown_tool_and_bad_arguments_are_results_too(rig: Rig) -> None:
    """The model's mistakes are the model's to correct."""
    told = await rig.run("!tool nope {}", '!tool add {"a": "x"}', "!say done", tools=[add])
    assert told.outcomes() == {"nope": "failed", "add": "failed"}
    assert told.result.output == "done"
    assert problems(rig.sent()) == []


async def test_a_result_that_is_no_json_is_the_tools_failure(rig: Rig) -> None:
    """It would otherwise end the run in the middle of a checkpoint."""

    async def thing() -> object:
        return object()

    told = await rig.run("!tool thing {}", "!say done", tools=[thing])
    assert told.outcomes() == {"thing": "failed"}
    assert "no JSON" in told.of(ToolFinished)[0].result


async def test_a_large_result_is_bounded_in_the_event_and_whole_for_the_model(rig: Rig) -> None:
    """The log has limits that the model does not have."""

    async def large() -> str:
        return "x" * 200_000

    told = await rig.run("!tool large {}", "!say done", tools=[large])
    assert told.of(ToolFinished)[0].result["truncated"] is True
    assert len(rig.sent()[-1]["content"]) == 200_000


async def test_a_tool_may_end_the_run_with_a_reason(rig: Rig) -> None:
    """RunEnded is the way to say: do not let the model go on."""

    async def halt() -> None:
        raise RunEnded(Reason.TOOL_ERROR, "broken_for_good", "the disk is gone")

    told = await rig.run("!tool halt {}", tools=[halt])
    assert told.ended is not None
    assert (told.ended.reason, told.ended.code) == (Reason.TOOL_ERROR, "broken_for_good")


async def test_call_ids_that_a_provider_repeats_are_made_unique() -> None:
    """`call_0` in each response is common; a log and an idempotency key need one name for one call."""
    answers = iter([True, True, False])

    async def stream(messages: list, info: AgentInfo):
        if next(answers):
            yield {0: DeltaToolCall(name="add", json_args='{"a": 1, "b": 1}', tool_call_id="call_0")}
        else:
            yield "done"

    rig_free = PydanticAgent(Agent(FunctionModel(stream_function=stream), tools=[add]), "test", _settings(), _pool())
    told = await tell(rig_free.run(context("go")))
    assert [event.call for event in told.of(ToolCalled)] == ["call_0", "call_0_2"]
    assert [event.call for event in told.of(ToolFinished)] == ["call_0", "call_0_2"]
    assert told.result.output == "done"


async def test_two_calls_with_one_id_in_one_response_both_run() -> None:
    """pydantic-ai refuses such a response; models send it all the same."""
    answers = iter([True, False])
    ran = []

    async def note(n: int) -> int:
        ran.append(n)
        return n

    async def stream(messages: list, info: AgentInfo):
        if next(answers):
            yield {0: DeltaToolCall(name="note", json_args='{"n": 1}', tool_call_id="same")}
            yield {1: DeltaToolCall(name="note", json_args='{"n": 2}', tool_call_id="same")}
        else:
            yield "done"

    agent = PydanticAgent(Agent(FunctionModel(stream_function=stream), tools=[note]), "test", _settings(), _pool())
    told = await tell(agent.run(context("go")))
    assert sorted(ran) == [1, 2]
    assert len({event.call for event in told.of(ToolFinished)}) == 2
    assert told.result.output == "done"


async def test_an_answer_through_an_output_tool_is_text_to_the_reader() -> None:
    """Who streams text must not be left with nothing because the agent has an output type."""

    class City(BaseModel):
        name: str

    async def stream(messages: list, info: AgentInfo):
        yield {0: DeltaToolCall(name=info.output_tools[0].name, json_args='{"name": "Bonn"}', tool_call_id="o")}

    agent = PydanticAgent(Agent(FunctionModel(stream_function=stream), output_type=City), "test", _settings(), _pool())
    told = await tell(agent.run(context("go")))
    assert told.result.output == told.text == '{"name":"Bonn"}'
    assert told.of(ToolCalled) == told.of(ToolArgs) == []


async def test_a_model_that_cannot_stream_answers_all_the_same() -> None:
    """A user's test double without a stream function is common."""
    from pydantic_ai.messages import ModelResponse, TextPart

    model = FunctionModel(lambda messages, info: ModelResponse(parts=[TextPart("whole")]))
    told = await tell(PydanticAgent(Agent(model), "test", _settings(), _pool()).run(context("go")))
    assert told.text == told.result.output == "whole"


async def test_instructions_and_sampling_hold_for_this_run_only(rig: Rig) -> None:
    """A client's system message must not leak into the session."""
    agent = rig.agent(instructions="of the agent")
    first = context(
        "!say one", instructions="of the run", settings={"temperature": 0.5, "stop": "X", "max_tokens": 9, "odd": 1}
    )
    told = await tell(agent.run(first))
    body = rig.stats["last_request"]
    assert b'"temperature":0.5' in bytes(body)
    assert b'"stop":["X"]' in bytes(body)
    assert b"odd" not in bytes(body)
    assert "of the agent" in str(rig.sent()[0])
    assert "of the run" in str(rig.sent()[:2])
    from tests.agents.test_history import entry

    await tell(agent.run(context("!say two", history=[entry(native=told.result.native)])))
    assert "of the run" not in str(rig.sent())
    assert "of the agent" in str(rig.sent())


@dataclass
class Case:
    script: str
    reason: Reason
    code: str


@pytest.mark.parametrize(
    "case",
    [
        Case("!truncate after=2", Reason.MODEL_ERROR, "model_truncated"),
        Case("!truncate after=0", Reason.MODEL_ERROR, "model_bad_response"),
        Case("!close after=2", Reason.MODEL_ERROR, "model_connection_lost"),
        Case("!bad_json after=2", Reason.MODEL_ERROR, "model_bad_response"),
        Case("!error_in_stream after=2", Reason.MODEL_ERROR, "model_error_in_stream"),
        Case("!status code=400", Reason.MODEL_ERROR, "model_status_400"),
        Case("!status code=401", Reason.MODEL_ERROR, "model_status_401"),
    ],
    ids=lambda case: case.script,
)
async def test_each_fault_of_a_model_ends_the_run_with_its_code(rig: Rig, case: Case) -> None:
    """No fault is silent, none is taken for an answer, and what was said before it is kept."""
    ctx = context(case.script)
    told = await tell(rig.agent().run(ctx))
    assert told.ended is not None
    assert (told.ended.reason, told.ended.code) == (case.reason, case.code)
    assert told.ended.cause
    assert told.ended.remedy
    if "after=2" in case.script:
        assert told.text == "t1 t2 "
        assert b"t1 t2 " in ctx.recovered
    assert ctx.probe.upstreams_open == 0
    assert case.script.encode() in ctx.recovered


async def test_a_refusal_is_told_in_the_words_of_the_models_server(rig: Rig) -> None:
    """The person at the screen reads what the provider said, and no Python dict around it."""
    told = await tell(rig.agent().run(context("!status code=400")))
    assert told.ended is not None
    assert told.ended.message.startswith("rehearsal was refused with status 400: rehearsal: !status code=400")
    assert "{" not in told.ended.message


async def test_the_agents_own_exception_ends_its_run_with_its_type(rig: Rig) -> None:
    """Who wrote the agent must find the bug by the run's error alone."""
    agent = rig.agent()

    @agent.agent.instructions
    def broken() -> str:
        raise KeyError("oops")

    told = await tell(agent.run(context("hello")))
    assert told.ended is not None
    assert (told.ended.reason, told.ended.code) == (Reason.AGENT_ERROR, "agent_exception")
    assert "KeyError" in told.ended.message


async def test_usage_limits_end_the_run_as_budget(rig: Rig) -> None:
    """A loop that never ends costs money."""

    async def stream(messages: list, info: AgentInfo):
        yield {0: DeltaToolCall(name="add", json_args=f'{{"a": 1, "b": {len(messages)}}}')}

    agent = PydanticAgent(Agent(FunctionModel(stream_function=stream), tools=[add]), "test", _settings(), _pool())
    told = await tell(agent.run(context("go")))
    assert told.ended is not None
    assert (told.ended.reason, told.ended.code) == (Reason.BUDGET, "usage_limit")


async def test_a_retry_is_told_while_its_wait_goes_on(rig: Rig) -> None:
    """The client must not see a silent second: model.retried comes before the sleep, not after it."""
    told = await rig.run("!status code=429 retry_after=1 times=1", "!tokens n=1")
    kinds = [type(event).__name__ for event in told.events]
    at = kinds.index("ModelRetried")
    retried = told.events[at]
    assert (retried.reason, retried.wait_ms) == ("status_429", 1000)
    assert told.at[at] < 0.5
    assert told.at[at + 1] - told.at[at] > 0.9
    assert [event.attempt for event in told.of(ModelRequested)] == [1, 2]
    assert told.result.output == "t1 "


async def test_a_run_marks_that_a_rehearsal_model_answered(rig: Rig) -> None:
    """Nothing is simulated without being said."""
    ctx = context("!say hi")
    await tell(rig.agent().run(ctx))
    assert ctx.probe.rehearsal
    assert ctx.probe.last_byte_at is not None


async def test_a_slow_reader_slows_the_model_and_loses_nothing(rig: Rig) -> None:
    """Backpressure instead of memory, and our own slowness is not the model's silence."""
    rig.settings = rig.settings.model_copy(update={"model_idle_s": 0.15})
    texts = []
    began = time.monotonic()
    async for event in rig.agent().run(context("!tokens n=300 rate=100000")):
        if isinstance(event, TextDelta):
            texts.append(event.text)
            if len(texts) == 1:
                await asyncio.sleep(0.4)
    assert len(texts) == 300
    assert time.monotonic() - began >= 0.4


def _settings():
    from holdfast.config.settings import Settings

    return Settings(tool_timeout_s=2.0, budget_steps=50)


def _pool():
    from holdfast.tools import ToolPool

    return ToolPool(2, 1.0)


async def test_a_request_begins_only_when_the_reader_lets_it(rig: Rig) -> None:
    """A worker that may have lost its lease holds the event back; the request must wait with it."""
    async for event in rig.agent().run(context("!say hi")):
        if isinstance(event, ModelRequested):
            await asyncio.sleep(0.05)  # the reader thinks; whoever wants to run ahead has the time to
            assert rig.stats["requests"] == 0
    assert rig.stats["requests"] == 1

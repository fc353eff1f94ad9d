"""Every way in which a tool call can end is a result for the model, paired in the log, and never the run's end."""

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, ModelRetry, Tool, ToolReturn
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred, ToolFailed
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from holdfast.agents import PydanticAgent
from holdfast.config.settings import Settings
from holdfast.domain.errors import RunEnded
from holdfast.domain.runs import Reason
from holdfast.ports.agent import ToolCalled, ToolFinished, Waiting
from holdfast.tools import ToolPool
from tests.agents.rules import problems
from tests.agents.support import Rig, Told, context, tell


async def add(a: int, b: int) -> int:
    return a + b


def paired(told: Told) -> None:
    """Each call that was told has one end, in the log's order; an end from nowhere is as bad as none."""
    called = [event.call for event in told.of(ToolCalled)]
    finished = [event.call for event in told.of(ToolFinished)]
    assert len(called) == len(set(called))
    assert sorted(called) == sorted(finished)


class Loud:
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def raises() -> None:
    raise ValueError("bang")


async def raises_without_words() -> None:
    raise KeyError


async def raises_what_has_no_words() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    raise Mute


async def raises_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(raises())


async def raises_a_base_group() -> None:
    raise BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError("bang")])


async def interrupts() -> None:
    raise KeyboardInterrupt


async def asks_again() -> None:
    raise ModelRetry("again, please")


async def gives_up() -> None:
    raise ToolFailed("it is gone")


async def returns_a_thing() -> Any:
    return Loud()


async def returns_a_loop() -> Any:
    loop: list[Any] = []
    loop.append(loop)
    return loop


async def returns_nested() -> Any:
    return [ToolReturn("one"), ToolReturn("two")]


async def reveals_a_word() -> Any:
    return ToolReturn("one", tools="add")  # type: ignore[arg-type]


async def says_a_thing_beside() -> Any:
    return ToolReturn("one", metadata={"x": Loud()})


async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(1)


FAILING = [
    raises,
    raises_without_words,
    raises_what_has_no_words,
    raises_a_group,
    raises_a_base_group,
    interrupts,
    asks_again,
    gives_up,
    returns_a_thing,
    returns_a_loop,
    returns_nested,
    reveals_a_word,
    says_a_thing_beside,
    cancels_itself,
]


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_whatever_a_tool_does_is_a_failed_result(rig: Rig) -> None:
    """Three times in a row, too: no budget of the library turns a tool's fault into the run's."""
    for tool in FAILING:
        await fails_as_a_result(rig, tool)


async def fails_as_a_result(rig: Rig, tool: Any) -> None:
    name = tool.__name__
    told = await rig.run(
        f"!tool {name} {{}}", "!say a", f"!tool {name} {{}}", f"!tool {name} {{}}", "!say b", tools=[tool]
    )
    assert told.ended is None, name
    assert [event.outcome for event in told.of(ToolFinished)] == ["failed"] * 3, name
    assert told.result.output == "b"
    paired(told)
    assert problems(rig.sent()) == []


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_spent_budget_of_retries_is_a_failed_result(rig: Rig, retries: int) -> None:
    """F57: an error is a result. That a tool may be asked again only so often is not done to the run."""
    script = ["!tool asks_again {}", "!say x"] * 3
    told = await rig.run(*script, "!say done", tools=[Tool(asks_again, max_retries=retries)])
    assert [event.outcome for event in told.of(ToolFinished)] == ["failed"] * 3
    assert "again, please" in rig.sent()[-2]["content"] + rig.sent()[-1]["content"]
    assert told.ended is None
    paired(told)


MISTAKES = [
    "!tool nope {}",
    '!tool add {"a": "x", "b": 1}',
    "!tool_raw add {",
    "!tool_raw add not json at all",
    "!tool_raw add [1, 2]",
    "!tool_raw add",
]


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_a_models_mistake_is_told_as_often_as_it_makes_it(rig: Rig) -> None:
    """F59: an unknown name, or arguments that do not fit or are no JSON, cost a step, not the run."""
    for line in MISTAKES:
        told = await rig.run(*[line, "!say x"] * 4, "!say done", tools=[add])
        assert [event.outcome for event in told.of(ToolFinished)] == ["failed"] * 4, line
        assert told.result.output.endswith("done")
        paired(told)
        assert problems(rig.sent()) == []


async def test_a_mistake_beside_good_calls_costs_them_nothing(rig: Rig) -> None:
    """One bad name in a response of three must not lose the other two."""
    lines = ['!tool add {"a": 1, "b": 2}', "!tool nope {}", '!tool add {"a": 3, "b": 4}']
    told = await rig.run(*lines, "!say x", *lines, "!say y", *lines, "!say done", tools=[add])
    assert [event.outcome for event in told.of(ToolFinished)].count("success") == 6
    paired(told)


async def test_an_argument_validator_that_breaks_is_a_failed_result(rig: Rig) -> None:
    """It is the tool's code as much as the tool is."""

    async def check(ctx: Any, a: int, b: int) -> None:
        raise ZeroDivisionError("in the validator")

    told = await rig.run(
        '!tool add {"a": 1, "b": 2}', "!say x", tools=[Tool(add, args_validator=check, takes_ctx=False)]
    )
    assert told.outcomes() == {"add": "failed"}
    assert "ZeroDivisionError" in told.of(ToolFinished)[0].result
    paired(told)


async def test_the_models_own_word_for_what_failed_has_type_and_message(rig: Rig) -> None:
    """A bare "error" teaches a model nothing."""
    await rig.run("!tool raises {}", "!say done", tools=[raises])
    assert json.loads(rig.sent()[-1]["content"]) == {"error": "ValueError: bang"}


async def test_calls_that_an_answer_overtook_are_told_as_not_run() -> None:
    """An agent that answers through a tool may skip other calls; success would be a lie."""

    class City(BaseModel):
        name: str

    async def stream(messages: list, info: AgentInfo):
        yield {0: DeltaToolCall(name=info.output_tools[0].name, json_args='{"name": "Bonn"}', tool_call_id="o")}
        yield {1: DeltaToolCall(name="add", json_args='{"a": 1, "b": 2}', tool_call_id="a")}

    agent = _alone(Agent(FunctionModel(stream_function=stream), output_type=City, tools=[add], end_strategy="early"))
    told = await tell(agent.run(context("go")))
    assert told.outcomes() == {"add": "interrupted"}
    assert told.result.output == '{"name":"Bonn"}'
    paired(told)


async def test_an_output_tool_with_bad_arguments_is_no_call_of_the_log() -> None:
    """The form of the answer is no work of its own, even when it is wrong at first."""

    class City(BaseModel):
        name: str

    answers = iter(['{"nome": 1}', '{"name": "Bonn"}'])

    async def stream(messages: list, info: AgentInfo):
        yield {0: DeltaToolCall(name=info.output_tools[0].name, json_args=next(answers), tool_call_id="o")}

    agent = _alone(Agent(FunctionModel(stream_function=stream), output_type=City))
    told = await tell(agent.run(context("go")))
    assert told.of(ToolCalled) == told.of(ToolFinished) == []
    assert told.result.output == '{"name":"Bonn"}'


@pytest.mark.parametrize("stubborn", [False, True])
async def test_an_output_function_that_hangs_ends_the_run_in_the_time_of_a_tool(stubborn: bool) -> None:
    """The answer is there and its function never returns: the oldest hang of all, up to the run's deadline."""
    let_go = asyncio.Event()

    async def save(name: str) -> str:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                if not stubborn:
                    raise
        return name

    async def stream(messages: list, info: AgentInfo):
        yield {0: DeltaToolCall(name=info.output_tools[0].name, json_args='{"name": "Bonn"}', tool_call_id="o")}

    agent = _alone(Agent(FunctionModel(stream_function=stream), output_type=save), tool_timeout_s=0.2)
    told = await tell(agent.run(context("go")))
    let_go.set()
    assert told.ended is not None
    assert (told.ended.reason, told.ended.code) == (Reason.TOOL_ERROR, "output_function_timeout")


async def test_an_output_function_may_ask_again_and_may_exit_without_harm() -> None:
    """Its ModelRetry is the library's, its exit is its own fault."""
    asked = []

    async def save(name: str) -> str:
        asked.append(name)
        if len(asked) == 1:
            raise ModelRetry("another one")
        if name == "exit":
            raise SystemExit(3)
        return name.upper()

    answers = iter(["Bonn", "Köln", "exit", "exit"])

    async def stream(messages: list, info: AgentInfo):
        args = json.dumps({"name": next(answers)})
        yield {0: DeltaToolCall(name=info.output_tools[0].name, json_args=args, tool_call_id="o")}

    agent = _alone(Agent(FunctionModel(stream_function=stream), output_type=save))
    assert (await tell(agent.run(context("go")))).result.output == "KÖLN"
    told = await tell(agent.run(context("go")))
    assert told.ended is not None
    assert "exit(3)" in told.ended.message


@pytest.mark.parametrize("error", [ApprovalRequired, CallDeferred])
async def test_a_deferred_tool_asks_and_never_runs_unanswered(rig: Rig, error: type[Exception]) -> None:
    """Whoever runs the agent leaves it there; one that reads on gets no answer that nobody gave."""

    async def ask() -> None:
        raise error

    told = await rig.run("!tool ask {}", tools=[ask])
    assert [request.name for request in told.of(Waiting)[0].requests] == ["ask"]
    assert told.of(ToolFinished) == []
    assert told.ended is not None
    assert told.ended.code == "undecided"


async def test_a_result_of_ten_megabytes_is_bounded_for_the_model_too(rig: Rig) -> None:
    """What fills a context window ends the run one step later; a beginning, marked, does not."""

    async def large() -> str:
        return "x" * 10_000_000

    async def many() -> list[int]:
        return list(range(200_000))

    rig.settings = rig.settings.model_copy(update={"tool_result_bytes": 20_000})  # the rehearsal model keeps no more
    told = await rig.run("!tool large {}", "!tool many {}", "!say done", tools=[large, many])
    assert told.result.output == "done"
    sent = [m["content"] for m in rig.sent() if m["role"] == "tool"]
    for text, n in zip(sent, (10_000_000, 1_288_891), strict=True):
        shown = json.loads(text)
        assert shown["truncated"] is True
        assert shown["bytes"] == n
        assert 1000 < len(text) <= rig.settings.tool_result_bytes
    assert max(map(len, told.checkpoints)) < 2 * rig.settings.tool_result_bytes
    paired(told)


async def test_what_a_tool_says_beside_its_result_is_bounded_too(rig: Rig) -> None:
    """Three ways round a limit are three holes in it."""

    async def beside() -> ToolReturn:
        return ToolReturn("ok", content="y" * 5_000_000, metadata={"z": "z" * 5_000_000})

    async def fails() -> None:
        raise ToolFailed("f" * 5_000_000)

    async def retries() -> None:
        raise ModelRetry("r" * 5_000_000)

    tools = [beside, fails, retries]
    told = await rig.run("!tool beside {}", "!tool fails {}", "!tool retries {}", "!say done", tools=tools)
    assert told.outcomes() == {"beside": "success", "fails": "failed", "retries": "failed"}
    assert len(bytes(rig.stats["last_request"])) < 2 * rig.settings.tool_result_bytes
    assert max(map(len, told.checkpoints)) < 3 * rig.settings.tool_result_bytes


async def test_an_image_is_a_result(rig: Rig) -> None:
    """Bytes that are no text are JSON as base64; they were refused."""

    async def picture() -> BinaryContent:
        return BinaryContent(b"\x89PNG\xff\xfe" * 1000, media_type="image/png")

    told = await rig.run("!tool picture {}", "!say done", tools=[picture])
    assert told.outcomes() == {"picture": "success"}
    assert "data:image/png;base64" in str(rig.sent()[-1])


async def test_an_exception_of_no_ordinary_kind_still_ends_the_run_with_a_cause() -> None:
    """A driver's task that dies of a BaseException must not look like a run without words."""

    class Odd(BaseException):
        pass

    async def stream(messages: list, info: AgentInfo):
        raise Odd("odd")
        yield ""

    told = await tell(_alone(Agent(FunctionModel(stream_function=stream))).run(context("go")))
    assert isinstance(told.ended, RunEnded)
    assert "Odd" in told.ended.message


def _alone(agent: Agent[Any, Any], tool_timeout_s: float = 2.0) -> PydanticAgent:
    settings = Settings(tool_timeout_s=tool_timeout_s, stop_grace_s=0.2)
    return PydanticAgent(agent, "test", settings, ToolPool(2, 1.0))

"""A stream that breaks after text was shown: readers are told what to drop, and the answer is asked for anew."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic_ai.agent import WrapperAgent
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.usage import UsageLimits

from holdfast.agents import PydanticAgent
from holdfast.agents.checkpoint import read
from holdfast.config.settings import Settings
from holdfast.domain.runs import Reason
from holdfast.ports.agent import (
    AttemptDiscarded,
    Checkpoint,
    ModelRequested,
    ModelResponded,
    ModelRetried,
    ReasoningDelta,
    TextDelta,
    ToolArgs,
    ToolCalled,
    ToolFinished,
)
from tests.agents.broken import Dies, HalfACall
from tests.agents.rules import problems
from tests.agents.support import Rig, Told, context, tell, until
from tests.agents.test_history import entry

FAULTS = {
    "!close after=2 times=1": "connection_lost",
    "!truncate after=2 times=1": "truncated",
    "!stall after=2 for=30 times=1": "stalled",
    "!comments after=2 for=30 every=0.05 times=1": "stalled",
    "!error_in_stream after=2 times=1": "error_in_stream",
    "!bad_json after=2 times=1": "bad_response",
}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Patient, so that a machine that pauses does not look like a model that does."""
    return settings.model_copy(
        update={"model_connect_s": 3.0, "model_first_content_s": 4.0, "model_idle_s": 4.0, "model_request_s": 9.0}
    )


async def look() -> str:
    return "found"


def changed(rig: Rig, tools: list[Any] | None = None, **settings: Any) -> PydanticAgent:
    """The rig's agent with other settings."""
    return PydanticAgent(rig.agent(tools).agent, "t", rig.settings.model_copy(update=settings), rig.pool)


@pytest.mark.parametrize("fault", FAULTS)
async def test_each_broken_stream_is_asked_for_again_and_its_parts_are_named(rig: Rig, fault: str) -> None:
    """What the reader has seen is withdrawn, and nothing of it is in the answer or in the history."""
    silent = {"model_idle_s": 0.5} if FAULTS[fault] == "stalled" else {}
    told = await tell(changed(rig, **silent).run(context(f"{fault}\n!say the answer")))
    assert told.result.output == "the answer"
    (dropped,) = told.of(AttemptDiscarded)
    at = told.events.index(dropped)
    before = {e.part for e in told.events[:at] if isinstance(e, TextDelta)}
    after = {e.part for e in told.events[at:] if isinstance(e, TextDelta)}
    assert (dropped.step, dropped.reason, set(dropped.parts), dropped.calls) == (1, FAULTS[fault], before, [])
    assert before
    assert not before & after
    assert [(e.step, e.attempt) for e in told.of(ModelRequested)] == [(1, 1), (1, 2)]
    assert isinstance(told.events[at + 1], ModelRequested)
    assert [e.step for e in told.of(ModelResponded)] == [1]
    asked, answered = read(told.result.native).messages
    assert isinstance(asked, ModelRequest)
    assert isinstance(answered, ModelResponse)
    assert [p.content for p in answered.parts if isinstance(p, TextPart)] == ["the answer"]
    assert (answered.state, rig.stats["requests"]) == ("complete", 2)
    assert rig.sent(0) == rig.sent(1), "the request is the same"


async def test_restarts_are_counted_and_the_last_failure_is_the_runs(rig: Rig) -> None:
    """Every repetition has a limit; what was shown last is kept."""
    ctx = context("!close after=2")
    told = await tell(rig.agent().run(ctx))
    assert told.ended is not None
    assert (told.ended.reason, told.ended.code) == (Reason.MODEL_ERROR, "model_connection_lost")
    assert (rig.stats["requests"], len(told.of(AttemptDiscarded)), told.text) == (2, 1, "t1 t2 ")
    last = read(ctx.recovered).messages[-1]
    assert isinstance(last, ModelResponse)
    assert [p.content for p in last.parts if isinstance(p, TextPart)] == ["t1 t2 "]


async def test_none_where_none_is_allowed(rig: Rig) -> None:
    """Who serves a protocol that cannot take text back may rather have the true error."""
    told = await tell(changed(rig, model_restarts=0).run(context("!close after=2 times=1")))
    assert told.ended is not None
    assert told.ended.code == "model_connection_lost"
    assert told.of(AttemptDiscarded) == []


async def test_none_when_the_runs_time_is_nearly_over(rig: Rig) -> None:
    """A fresh start that the deadline cuts off would hide the true reason."""
    deadline = asyncio.get_running_loop().time() + 0.9
    told = await tell(rig.agent().run(context("!close after=2 times=1", deadline=deadline)))
    assert told.ended is not None
    assert told.ended.code == "model_connection_lost"


async def test_a_request_that_took_too_long_is_not_begun_anew(rig: Rig) -> None:
    """It would take as long again."""
    told = await tell(changed(rig, model_request_s=0.5).run(context("!tokens n=1000 rate=50")))
    assert told.ended is not None
    assert told.ended.code == "model_request_timeout"
    assert told.of(AttemptDiscarded) == []


async def test_a_call_that_broke_off_is_named_and_its_name_not_given_again(rig: Rig) -> None:
    """A discarded call and the one that replaces it must not be taken for one, though the provider calls them alike."""
    agent = rig.agent([look])
    agent.model = HalfACall()
    told = await tell(agent.run(context("go")))
    assert told.result.output == "done"
    (dropped,) = told.of(AttemptDiscarded)
    assert dropped.calls == ["call_0"]
    assert [e.call for e in told.of(ToolArgs)] == ["call_0", "call_0_2"]
    assert [e.call for e in told.of(ToolCalled)] == [e.call for e in told.of(ToolFinished)] == ["call_0_2"]


async def test_a_later_step_begins_anew_from_its_history(rig: Rig) -> None:
    """Tools that have finished are not run again, their results are there, and the checkpoint has not moved."""
    ran = 0

    async def count() -> int:
        nonlocal ran
        ran += 1
        return ran

    told = await rig.run("!say first", "!tool count {}", "!close after=2 times=1", "!say second", tools=[count])
    assert (told.result.output, told.text, ran) == ("second", "firstsecond", 1)
    (dropped,) = told.of(AttemptDiscarded)
    assert dropped.step == 2
    assert [(e.step, e.attempt) for e in told.of(ModelRequested)] == [(1, 1), (2, 1), (2, 2)]
    assert rig.sent(1) == rig.sent(2)
    assert problems(rig.sent()) == []
    at = told.events.index(dropped)
    assert not [e for e in told.events[at - 3 : at + 2] if isinstance(e, Checkpoint)]
    messages = read(told.result.native).messages
    assert [type(m).__name__ for m in messages] == ["ModelRequest", "ModelResponse"] * 2


@dataclass
class Moment:
    lines: tuple[str, ...]
    kept: str
    comes: Callable[[Told], bool] = lambda told: True


@pytest.mark.parametrize(
    "moment",
    [
        Moment(("!close after=2 times=1", "!first_token delay=30"), "t1 t2 "),
        Moment(
            ("!close after=2 times=1", "!think n=1", "!stall after=0 for=30"),
            "t1 t2 ",
            lambda told: bool(told.of(ReasoningDelta)),
        ),
        Moment(("!close after=2 times=1", "!stall after=1 for=30"), "t1 ", lambda told: told.text == "t1 "),
    ],
    ids=["before anything followed", "after a thought", "after a word"],
)
async def test_a_stop_after_a_discard_keeps_what_was_shown_last(rig: Rig, moment: Moment) -> None:
    """The user saw it; what follows replaces it only when there is something."""
    ctx = context("\n".join(moment.lines))
    told = Told()
    running = asyncio.ensure_future(tell(rig.agent().run(ctx), told))
    await until(lambda: rig.stats["requests"] == 2 and rig.stats["open"] == 1)
    await until(lambda: bool(told.of(AttemptDiscarded)) and moment.comes(told))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    messages = read(ctx.recovered).messages
    said = [[p.content for p in m.parts if isinstance(p, TextPart)] for m in messages if isinstance(m, ModelResponse)]
    assert said == [[moment.kept]]
    assert messages[-1].state == "interrupted"
    assert rig.stats["open"] == 0
    assert ctx.probe.upstreams_open == 0


async def test_a_resumed_attempt_can_begin_anew_too(rig: Rig) -> None:
    """The first worker died after the tool; the second one's stream breaks; the third request answers."""
    script = "!tool look {}\n!close after=2 times=2\n!say the end"
    full = await rig.run(script.replace("!close after=2 times=2\n", ""), tools=[look])
    agent = changed(rig, [look], model_restarts=2)
    first = await tell(agent.run(context(script)))
    resumed = await tell(agent.run(context(script, attempt=2, checkpoint=first.checkpoints[1], first_part=10)))
    assert resumed.result.output == first.result.output == full.result.output == "the end"
    assert len(first.of(AttemptDiscarded)) == 2
    kinds = [type(m).__name__ for m in read(resumed.result.native).messages]
    assert kinds == ["ModelRequest", "ModelResponse"] * 2


async def test_a_fresh_start_meets_the_guards_retries(rig: Rig) -> None:
    """Repetitions before anything was shown and fresh starts after it are one count of attempts."""
    told = await rig.run("!status code=503 retry_after=0 times=1", "!close after=2 times=1", "!say fine")
    assert told.result.output == "fine"
    assert [(e.attempt, e.reason) for e in told.of(ModelRetried)] == [(1, "status_503")]
    assert [e.attempt for e in told.of(ModelRequested)] == [1, 2, 3]


async def test_what_was_shown_is_kept_when_the_fresh_start_gets_no_answer(rig: Rig) -> None:
    """The upstream died for good: its last words are the partial."""
    agent = rig.agent()
    agent.model = Dies()
    ctx = context("go")
    told = await tell(agent.run(ctx))
    assert told.ended is not None
    assert told.ended.code == "model_connect"
    assert told.text == ""
    last = read(ctx.recovered).messages[-1]
    assert isinstance(last, ModelResponse)
    assert [p.content for p in last.parts if isinstance(p, TextPart)] == ["half an "]


async def test_the_agents_request_limit_counts_answers_not_broken_ones(rig: Rig) -> None:
    """An agent with one request left must not fail as out of budget because a connection broke."""

    class Limited(WrapperAgent):  # type: ignore[type-arg]
        def iter(self, *args, **kwargs):
            return super().iter(*args, **{**kwargs, "usage_limits": UsageLimits(request_limit=1)})

    agent = rig.agent()
    limited = PydanticAgent(Limited(agent.agent), "t", rig.settings, rig.pool)
    told = await tell(limited.run(context("!close after=2 times=1\n!say fine")))
    assert told.result.output == "fine"


async def test_the_session_goes_on_after_it(rig: Rig) -> None:
    """The next prompt's history has the answer once, and not the broken one."""
    told = await rig.run("!close after=2 times=1", "!say whole")
    await rig.run("!say next", history=[entry(native=told.result.native)])
    sent = rig.sent()
    assert problems(sent) == []
    assert [m["content"] for m in sent if m["role"] == "assistant"] == ["whole"]


async def test_a_fallback_of_the_agents_own_that_is_spent_is_the_models_failure(rig: Rig) -> None:
    """Who looks at the run's reason must not look for a fault in his agent."""
    agent = rig.agent()
    agent.model = FallbackModel(rig.model, rig.model)
    told = await tell(agent.run(context("!status code=503")))
    assert told.ended is not None
    assert (told.ended.reason, told.ended.code) == (Reason.MODEL_ERROR, "model_status_503")


async def test_a_break_that_opens_the_breaker_is_the_runs_failure(rig: Rig) -> None:
    """That the fresh start was refused says less than why."""
    agent = changed(rig, breaker_failures=1)
    ctx = context("!close after=2")
    told = await tell(agent.run(ctx))
    assert told.ended is not None
    assert told.ended.code == "model_connection_lost"
    assert rig.stats["requests"] == 1
    assert b"t1 t2 " in ctx.recovered
    refused = await tell(agent.run(context("!say hello")))
    assert refused.ended is not None
    assert (refused.ended.code, refused.ended.retryable) == ("model_breaker_open", True)
    assert "repeat the prompt in" in refused.ended.remedy

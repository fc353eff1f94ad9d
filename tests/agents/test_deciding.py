"""pydantic-ai's deferred tools: what is asked, and that a crash at any checkpoint asks and runs nothing twice."""

from collections import Counter
from typing import Any

import pytest
from pydantic_ai import DeferredToolRequests, RunContext, Tool
from pydantic_ai.capabilities import HandleDeferredToolCalls
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred
from pydantic_ai.tools import DeferredToolResults

from holdfast.agents.checkpoint import read
from holdfast.ports.agent import Checkpoint, Steered, ToolCalled, ToolFinished, Waiting
from holdfast.ports.store import InputItem
from tests.agents.rules import problems
from tests.agents.support import Rig, Told, context, tell

SCRIPT = '!tool sure {"x": 1}\n!tool some {"x": 2}\n!tool free {"x": 3}\n!tool away {"x": 4}\n!say done'


class Work:
    """Tools of every kind, and what they did."""

    def __init__(self) -> None:
        self.did: Counter[str] = Counter()
        self.tools = [
            Tool(self.sure, requires_approval=True),
            Tool(self.some),
            Tool(self.free),
            Tool(self.away),
        ]

    async def sure(self, x: int) -> str:
        """Asks always."""
        self.did[f"sure {x}"] += 1
        return f"sure {x}"

    async def some(self, ctx: RunContext[Any], x: int) -> str:
        """Asks from within."""
        if not ctx.tool_call_approved:
            raise ApprovalRequired(metadata={"limit": 1})
        self.did[f"some {x}"] += 1
        return f"some {x}"

    async def free(self, x: int) -> str:
        """Asks nobody."""
        self.did[f"free {x}"] += 1
        return f"free {x}"

    async def away(self, x: int) -> str:
        """Runs elsewhere."""
        self.did[f"away {x}"] += 1
        raise CallDeferred


async def parked(rig: Rig, work: Work) -> tuple[Told, Waiting, list[dict[str, Any]]]:
    """A run that asks; and decisions of every kind about it."""
    told = await tell_to_waiting(rig, work)
    (asked,) = told.of(Waiting)
    calls = {request.name: request.call for request in asked.requests}
    decisions: list[dict[str, Any]] = [
        {"call": calls["sure"], "approve": True, "args": {"x": 9}},
        {"call": calls["some"], "approve": True},
        {"call": calls["away"], "result": {"far": 4}},
    ]
    return told, asked, decisions


async def tell_to_waiting(rig: Rig, work: Work) -> Told:
    """As the executor does it: nothing is read after it asks."""
    told = Told()
    events = rig.agent(work.tools).run(context(SCRIPT))
    async for event in events:
        told.events.append(event)
        if isinstance(event, Waiting):
            break
    await events.aclose()  # type: ignore[attr-defined]
    return told


async def test_what_asks_nobody_has_run_and_everything_else_is_asked(rig: Rig) -> None:
    """Kinds, arguments and what a tool says beside them; nothing that asks has begun."""
    work = Work()
    told, asked, _ = await parked(rig, work)
    assert {r.name: (r.kind, r.args, r.metadata) for r in asked.requests} == {
        "sure": ("approval", {"x": 1}, {}),
        "some": ("approval", {"x": 2}, {"limit": 1}),
        "away": ("call", {"x": 4}, {}),
    }
    assert work.did == Counter({"free 3": 1, "away 4": 1})
    assert told.outcomes() == {"free": "success"}
    assert set(read(asked.checkpoint).asked) == {r.call for r in asked.requests}


async def test_a_crash_at_any_checkpoint_after_the_decision_runs_nothing_twice(rig: Rig) -> None:
    """Each call ends once, with what was decided; what had begun and not ended is unknown."""
    work = Work()
    _, asked, decisions = await parked(rig, work)
    whole = await tell(rig.agent(work.tools).run(context(SCRIPT, checkpoint=asked.checkpoint, decisions=decisions)))
    assert whole.result.output == "done"
    assert whole.of(ToolCalled) == []
    results = {event.name: event.result for event in whole.of(ToolFinished)}
    assert results == {"sure": "sure 9", "some": "some 2", "away": {"far": 4}}
    assert work.did == Counter({"free 3": 1, "away 4": 1, "sure 9": 1, "some 2": 1})
    assert problems(rig.sent()) == []
    for checkpoint in whole.checkpoints:
        again = await tell(rig.agent(work.tools).run(context(SCRIPT, checkpoint=checkpoint, decisions=decisions)))
        assert again.result.output == "done", again.ended
        assert problems(rig.sent()) == []
        done = read(checkpoint).finished
        outcomes = again.outcomes()
        assert set(outcomes.values()) <= {"success", "unknown"}
        assert not {event.call for event in again.of(ToolFinished)} & done.keys()
    assert work.did == Counter({"free 3": 1, "away 4": 1, "sure 9": 1, "some 2": 1})


@pytest.mark.parametrize("message", ["not on my watch", ""])
async def test_a_denial_reaches_the_model_and_no_tool(rig: Rig, message: str) -> None:
    """With the words of who denied, or ours."""
    work = Work()
    _, asked, _ = await parked(rig, work)
    decisions = [
        {"call": r.call, "approve": False, **({"message": message} if message else {})} for r in asked.requests
    ]
    told = await tell(rig.agent(work.tools).run(context(SCRIPT, checkpoint=asked.checkpoint, decisions=decisions)))
    assert told.result.output == "done"
    assert set(told.outcomes().values()) == {"denied"}
    assert str(rig.sent()).count(message or "The call was denied.") == 3
    assert work.did == Counter({"free 3": 1, "away 4": 1})


async def test_half_of_the_decisions_asks_for_the_rest(rig: Rig) -> None:
    """Whatever a store hands out, no call runs that nobody has decided about."""
    work = Work()
    _, asked, decisions = await parked(rig, work)
    events = rig.agent(work.tools).run(context(SCRIPT, checkpoint=asked.checkpoint, decisions=decisions[:1]))
    told = Told()
    async for event in events:
        told.events.append(event)
        if isinstance(event, Waiting):
            break
    await events.aclose()  # type: ignore[attr-defined]
    assert {r.call for r in told.of(Waiting)[0].requests} == {d["call"] for d in decisions[1:]}
    assert work.did == Counter({"free 3": 1, "away 4": 1})


async def test_a_steered_input_survives_a_crash_at_any_checkpoint(rig: Rig) -> None:
    """Read after the tools of a step, before the next request; the model gets it once, whatever was resumed."""
    work = Work()
    inbox = [InputItem(1, "!say turned"), InputItem(2, "!say twice")]

    async def unread() -> list[InputItem]:
        found, inbox[:] = list(inbox), []
        return found

    script = '!tool free {"x": 1}\n!say done'
    whole = await tell(rig.agent(work.tools).run(context(script, inbox=unread)))
    assert whole.result.output == "turned\ntwice"
    steered = whole.of(Steered)
    assert [event.n for event in steered] == [1, 2]
    kinds = [type(event) for event in whole.events]
    assert kinds.index(ToolFinished) < kinds.index(Steered)
    last = [e.checkpoint for e in steered]
    for n, checkpoint in enumerate(last, 1):
        again = await tell(rig.agent(work.tools).run(context(script, checkpoint=checkpoint)))
        assert again.of(Steered) == []
        sent = str(rig.sent())
        assert (sent.count("!say turned"), sent.count("!say twice")) == (1, n - 1)
        assert problems(rig.sent()) == []
        assert again.ended is None
    assert work.did == Counter({"free 1": 1})
    assert len(whole.of(Checkpoint)) >= 2


async def test_an_agent_that_decides_by_itself_is_not_parked(rig: Rig) -> None:
    """pydantic-ai's own handler comes first; what it leaves open is asked."""

    async def handle(ctx: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
        return requests.build_results(approve_all=True)

    work = Work()
    agent = rig.agent(work.tools, capabilities=[HandleDeferredToolCalls(handler=handle)])
    told = await tell(agent.run(context('!tool sure {"x": 1}\n!say done')))
    assert told.of(Waiting) == []
    assert told.result.output == "done"
    assert work.did == Counter({"sure 1": 1})

"""Agents that a tool calls: their model requests stand under the promises of the run that they work for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from holdfast.agents import PydanticAgent
from holdfast.agents.delegation import DelegatedModel
from holdfast.models import ModelGuard
from holdfast.ports.agent import Degraded, Result, ToolFinished, ToolResponded
from tests.agents.support import LIMIT_S, Rig, Told, context, tell, until


async def helped(rig: Rig, text: str, url: str = "") -> str:
    """What an agent with a model of its own says, as a team writes it: no wrapper, no limit."""
    async with httpx2.AsyncClient() as http:
        provider = OpenAIProvider(base_url=url or rig.server.url, api_key="none", http_client=http)
        helper: Agent[None, str] = Agent(OpenAIChatModel("helper", provider=provider), name="helper")
        return (await helper.run(text)).output


def asks(rig: Rig, url: str = "") -> Any:
    """A tool that asks the helper and waits for it."""

    async def ask(text: str) -> str:
        return await helped(rig, text, url)

    return ask


def asks_in_a_thread(rig: Rig) -> Any:
    """A tool that does not await."""

    def ask(text: str) -> str:
        return asyncio.run(helped(rig, text))

    return ask


def script(text: str) -> str:
    """The run's own model calls the tool, and then it has said enough."""
    return f"!tool ask {json.dumps({'text': text})}\n!say done"


async def run(rig: Rig, text: str, tool: Any, guard: ModelGuard | None = None) -> Told:
    agent: Agent[None, str] = Agent(rig.model, name="test", tools=[tool])
    return await tell(PydanticAgent(agent, "test", rig.settings, rig.pool, guard=guard).run(context(script(text))))


@pytest.mark.parametrize("make", [asks, asks_in_a_thread], ids=["awaited", "in a thread"])
async def test_what_a_helper_uses_is_told_with_its_call(rig: Rig, make: Any) -> None:
    """A run that delegates everything used nothing, by its record."""
    told = await run(rig, "!say tides\n!usage prompt=7 completion=3", make(rig))
    assert [each.result for each in told.of(ToolFinished)] == ["tides"]
    (said,) = told.of(ToolResponded)
    assert (said.call, said.model) == (told.of(ToolFinished)[0].call, "helper")
    assert (said.usage["input_tokens"], said.usage["output_tokens"]) == (7, 3)
    assert told.of(Result)[0].output == "done"


@pytest.mark.parametrize("fault", ["!stall after=2 for=30", "!comments after=0 for=30"])
async def test_a_helpers_silence_has_the_limits_of_the_deployment(rig: Rig, fault: str) -> None:
    """P7: a helper hung until the tool's limit, and with keepalives for as long as the library waits: ten minutes."""
    told = await run(rig, fault, asks(rig))
    (finished,) = told.of(ToolFinished)
    assert finished.outcome == "failed"
    assert "within" in finished.result
    assert told.of(Result)[0].output == "done"
    assert rig.stats["open"] == 0


async def test_a_helper_is_asked_again_where_that_helps_and_it_is_said(rig: Rig) -> None:
    """The library's own retries are invisible, and wait for as long as the upstream says."""
    told = await run(rig, "!status code=503 retry_after=0 times=1\n!say tides", asks(rig))
    assert [each.result for each in told.of(ToolFinished)] == ["tides"]
    assert [each.what for each in told.of(Degraded)] == ["delegated_model"]
    assert "status_503" in told.of(Degraded)[0].why


async def test_a_helpers_upstream_has_the_breaker_of_the_process(rig: Rig) -> None:
    """An upstream that is down costs each run its time again, if only the runs' own models have a breaker."""
    guard = ModelGuard.of(rig.settings)
    await run(rig, "hello", asks(rig, "http://127.0.0.1:9/v1"), guard)
    (facts,) = [each for each in guard.facts()["breakers"] if "127.0.0.1:9 " in each["upstream"]]
    assert facts["failures"] > 0


@pytest.mark.parametrize("make", [asks, asks_in_a_thread], ids=["awaited", "in a thread"])
async def test_stop_closes_a_helpers_upstream(rig: Rig, make: Any) -> None:
    """P2: the run was cancelled, and its helper's model went on answering to nobody."""
    agent: Agent[None, str] = Agent(rig.model, name="test", tools=[make(rig)])
    ctx = context(script("!tokens n=100000 rate=20"))
    running = asyncio.ensure_future(tell(PydanticAgent(agent, "test", rig.settings, rig.pool).run(ctx), Told()))
    await until(lambda: running.done() or (rig.stats["requests"] == 2 and rig.stats["open"] == 1))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(LIMIT_S):
            await running
    await until(lambda: rig.stats["open"] == 0)
    assert rig.stats["client_disconnects"] == 1
    await until(lambda: not ctx.probe.threads_running())


async def test_an_agent_outside_a_run_is_left_alone(rig: Rig) -> None:
    """What a team does with the library elsewhere in the process is none of ours."""
    assert await helped(rig, "!say tides") == "tides"
    outside: Agent[None, str] = Agent(rig.model, name="outside")
    async with outside.iter("!say tides") as alone:
        model = alone.ctx.deps.model
    assert not isinstance(model, DelegatedModel)

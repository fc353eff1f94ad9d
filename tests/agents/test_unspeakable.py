"""A model that was cut inside an emoji, and a tool that gives half of one back: neither has bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessagesTypeAdapter
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from holdfast.agents import PydanticAgent
from holdfast.agents.checkpoint import read
from holdfast.config import Settings
from holdfast.ports.agent import Result
from holdfast.tools import ToolPool
from tests.agents.support import context, tell

HALF = "\ud83c"


async def half(how: str) -> str:
    """Half a character, as a result or an error."""
    if how == "raise":
        raise ValueError(HALF)
    return HALF


async def test_half_a_character_of_a_model_or_a_tool_poisons_neither_run_nor_session() -> None:
    """P5: it can be stored nowhere and sent to no model, so the session would fail for ever after."""
    asked: list[bytes] = []

    async def stream(messages: list[Any], info: AgentInfo) -> AsyncIterator[Any]:
        asked.append(ModelMessagesTypeAdapter.dump_json(messages))  # as a provider's client does it
        step = len(asked)
        yield f"step {step} {HALF}"
        if step < 3:
            how = ("return", "raise")[step - 1]
            yield {0: DeltaToolCall(name="half", json_args=f'{{"how": "{how}"}}', tool_call_id=f"c{step}")}

    model = FunctionModel(stream_function=stream)
    agent = PydanticAgent(Agent(model, tools=[half]), "half", Settings(), ToolPool(1, 1.0))
    told = await tell(agent.run(context("go")))
    assert told.ended is None, told.ended
    assert isinstance(told.events[-1], Result)
    assert len(asked) == 3
    history = ModelMessagesTypeAdapter.dump_json(read(told.result.native).history())
    assert history.count("\ufffd".encode()) == 5, history  # three answers, a result and an error

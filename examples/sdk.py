"""An agent of the OpenAI Agents SDK under Holdfast's promises. `pip install openai-agents`, and a model at
OPENAI_BASE_URL (any that speaks OpenAI's API; `holdfast rehearse` is one: OPENAI_BASE_URL=http://127.0.0.1:8485/v1
OPENAI_API_KEY=any), then

    holdfast serve sdk:agent

The SDK runs its tools itself, before anybody could store that they were called: so there are no checkpoints, a run is
tried once, and kill -9 of its worker ends it with `worker_lost`. Stop, deadlines, streams and sessions are as always.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

from holdfast.ports.agent import RunContext, ToolCalled, ToolFinished

set_tracing_disabled(True)  # it would send traces to OpenAI


@function_tool
async def wait_for_tide(seconds: float) -> str:
    """Wait until the tide is in."""
    return await asyncio.sleep(seconds, "the tide is in")


async def agent(ctx: RunContext) -> AsyncIterator[Any]:
    async with AsyncOpenAI(max_retries=0, timeout=60) as client:
        model = OpenAIChatCompletionsModel("any", client)
        diver = Agent(name="diver", instructions="Answer in one sentence.", tools=[wait_for_tide], model=model)
        result = Runner.run_streamed(diver, conversation(ctx))
        began: dict[str, float] = {}
        names: dict[str, str] = {}
        now = asyncio.get_running_loop().time
        try:
            async for event in result.stream_events():
                if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                    yield event.data.delta
                elif event.type == "run_item_stream_event" and event.item.type == "tool_call_item":
                    call = event.item.raw_item
                    names[call.call_id], began[call.call_id] = call.name, now()
                    yield ToolCalled(call.call_id, call.name, json.loads(call.arguments or "{}"))
                elif event.type == "run_item_stream_event" and event.item.type == "tool_call_output_item":
                    call_id = event.item.raw_item["call_id"]
                    took_ms = int((now() - began[call_id]) * 1000)
                    yield ToolFinished(call_id, names[call_id], "success", event.item.output, took_ms)
        finally:
            result.cancel()  # it works in a task of its own, which does not hear of ours


def conversation(ctx: RunContext) -> list[dict[str, str]]:
    """The session so far and this prompt, as chat messages; of tools only what was answered with them."""
    said = [message for entry in ctx.history for message in entry.messages if message.text]
    before = [{"role": message.role, "content": message.text} for message in said]
    return [*before, {"role": "user", "content": ctx.input}]

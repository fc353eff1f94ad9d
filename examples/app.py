import asyncio

from pydantic_ai import Agent

agent = Agent(name="diver", instructions="Answer in one sentence.")


@agent.tool_plain
async def wait_for_tide(seconds: float) -> str:
    return await asyncio.sleep(seconds, "the tide is in")

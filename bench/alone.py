"""The same agent without Holdfast: pydantic-ai's own loop in one process; prints the CPU seconds it took.

Run by `bench.cost` as a script, in the directory of the agents under test.
"""

import asyncio
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from agents_under_test import diver
from pydantic_ai import Agent, PartDeltaEvent, PartStartEvent
from pydantic_ai.messages import TextPart, TextPartDelta
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


async def answer(model: OpenAIChatModel, script: str) -> str:
    """One run, event by event, as the adapter drives it."""
    said = []
    async with diver.iter(script, model=model) as run:
        async for node in run:
            if Agent.is_model_request_node(node):
                async with node.stream(run.ctx) as stream:
                    async for event in stream:
                        if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
                            said.append(event.part.content)
                        elif isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
                            said.append(event.delta.content_delta)
    return "".join(said)


async def main(url: str, at_once: int, n: int, rate: int) -> None:
    """Warm up, then measure."""
    model = OpenAIChatModel("rehearsal", provider=OpenAIProvider(base_url=url, api_key="none"))
    await asyncio.gather(*(answer(model, "!tokens n=20 rate=1000") for _ in range(at_once)))
    began = time.process_time()
    texts = await asyncio.gather(*(answer(model, f"!tokens n={n} rate={rate}") for _ in range(at_once)))
    taken = time.process_time() - began
    assert set(texts) == {"".join(f"t{i} " for i in range(1, n + 1))}
    print(taken)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:5])))

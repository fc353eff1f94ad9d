"""A LangGraph graph under Holdfast's promises. `pip install langgraph`, and a model at OPENAI_BASE_URL (any that speaks
OpenAI's API; `holdfast rehearse` is one: OPENAI_BASE_URL=http://127.0.0.1:8485/v1 OPENAI_API_KEY=any), then

    holdfast serve graph:agent

A node's end is a checkpoint: after a crash the run goes on with the next node. The tool is a node of its own, so that
its call is stored before it starts, and its result before anything else does.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from openai import AsyncOpenAI

from holdfast.ports.agent import Checkpoint, Result, RunContext, ToolCalled, ToolFinished


class State(TypedDict, total=False):
    said: list[dict[str, str]]  # the conversation, as the model reads it
    words: int


async def count(state: State) -> State:
    """The tool."""
    await asyncio.sleep(1)
    return {"words": len(state["said"][-1]["content"].split())}


async def answer(state: State) -> State:
    """The model, streamed; a node that is cancelled leaves the `async with`, which closes the connection."""
    write = get_stream_writer()
    text = ""
    async with AsyncOpenAI(max_retries=0, timeout=60) as client:
        told = {"role": "system", "content": f"The user wrote {state['words']} words."}
        stream = await client.chat.completions.create(model="any", messages=[told, *state["said"]], stream=True)
        async for chunk in stream:
            if chunk.choices and (delta := chunk.choices[0].delta.content):
                text += delta
                write(delta)
    return {"said": [*state["said"], {"role": "assistant", "content": text}]}


graph = StateGraph(State)
graph.add_node("count", count)
graph.add_node("answer", answer)
graph.add_edge(START, "count")
graph.add_edge("count", "answer")
graph.add_edge("answer", END)


class GraphAgent:
    name = "graph"
    kind = ""  # no history of its own form: the session's is enough
    resumable = True  # it yields checkpoints, and begins at ctx.checkpoint

    async def run(self, ctx: RunContext) -> AsyncIterator[Any]:
        compiled = graph.compile(checkpointer=InMemorySaver())  # of this attempt: what lasts is in the run's log
        config = {"configurable": {"thread_id": ctx.key.run}}
        begin: State | None = {"said": conversation(ctx)}
        call = f"{ctx.key.run}_count"
        at = json.loads(ctx.checkpoint) if ctx.checkpoint else None
        if at is None:
            yield ToolCalled(call, "count", {})
            yield Checkpoint(json.dumps({"node": ""}).encode())  # both are stored when the next line runs
        elif at["node"]:
            await compiled.aupdate_state(config, at["state"], as_node=at["node"])
            begin = None
        # else it was called and has not ended: counting may be repeated, so it is, and it is not told of anew
        now = asyncio.get_running_loop().time
        began = now()
        async for kind, item in compiled.astream(begin, config, stream_mode=["custom", "updates"]):
            if kind == "custom":
                yield item  # text
                continue
            (node,) = item
            state = (await compiled.aget_state(config)).values
            here = json.dumps({"node": node, "state": state}).encode()
            if node == "count":
                yield ToolFinished(call, "count", "success", state["words"], int((now() - began) * 1000), here)
        yield Result((await compiled.aget_state(config)).values["said"][-1]["content"])


def conversation(ctx: RunContext) -> list[dict[str, str]]:
    """The session so far and this prompt, as chat messages; of tools only what was answered with them."""
    said = [message for entry in ctx.history for message in entry.messages if message.text]
    before = [{"role": message.role, "content": message.text} for message in said]
    return [*before, {"role": "user", "content": ctx.input}]


agent = GraphAgent()

"""The clients that people use understand it: openai's, and pydantic-ai on top of it."""

from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio
from pydantic_ai import Agent
from pydantic_ai.messages import ThinkingPart, ToolCallPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from holdfast.rehearsal import RehearsalServer


@pytest_asyncio.fixture
async def client(server: RehearsalServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=server.url, api_key="any", max_retries=0, timeout=5) as client:
        yield client


@pytest.fixture
def model(client: openai.AsyncOpenAI) -> OpenAIChatModel:
    return OpenAIChatModel("rehearsal", provider=OpenAIProvider(openai_client=client))


def user(script: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": script}]


async def read(client: openai.AsyncOpenAI, script: str) -> str:
    stream = await client.chat.completions.create(model="m", messages=user(script), stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def test_openai_client_reads_stream_and_body(client: openai.AsyncOpenAI) -> None:
    """The schema of both is what the client's models expect."""
    assert await read(client, "!tokens n=3 rate=1000") == "t1 t2 t3 "
    whole = await client.chat.completions.create(model="m", messages=user("!say hi\n!usage prompt=1 completion=2"))
    assert whole.choices[0].message.content == "hi"
    assert whole.usage is not None
    assert whole.usage.total_tokens == 3


async def test_openai_client_lists_models(client: openai.AsyncOpenAI) -> None:
    """A start-up check asks for them."""
    assert [model.id async for model in client.models.list()] == ["rehearsal"]


async def test_openai_client_raises_its_error_for_each_fault(client: openai.AsyncOpenAI) -> None:
    """Each fault is the trouble it stands for, as the client names it."""
    with pytest.raises(openai.RateLimitError) as limited:
        await read(client, "!status code=429 retry_after=3")
    assert limited.value.response.headers["retry-after"] == "3"
    with pytest.raises(openai.InternalServerError):
        await read(client, "!status code=503")
    with pytest.raises(openai.AuthenticationError):
        await read(client, "!status code=401")
    with pytest.raises(openai.BadRequestError, match="unknown directive !nonsense"):
        await read(client, "!nonsense")
    with pytest.raises(openai.APIError, match="error_in_stream"):
        await read(client, "!error_in_stream after=2 rate=1000")
    with pytest.raises(ValueError, match=r"Expecting value|JSON"):
        await read(client, "!bad_json after=1 rate=1000")
    with pytest.raises(Exception, match=r"(?i)incomplete|connection"):
        await read(client, "!close after=2 rate=1000")
    assert await read(client, "!truncate after=2 rate=1000") == "t1 t2 "


async def test_openai_client_retries_through_a_status(server: RehearsalServer) -> None:
    """times=1 fails once: the client's own retry, of the same messages, is answered."""
    async with openai.AsyncOpenAI(base_url=server.url, api_key="any", max_retries=1, timeout=5) as client:
        assert await read(client, "!status code=429 retry_after=0.01 times=1\n!say ok") == "ok"


async def test_pydantic_ai_agent_runs_a_script_of_tools(model: OpenAIChatModel) -> None:
    """An agent's loop walks through the script: parallel calls, their results, an unknown tool, the end."""
    agent = Agent(model)
    asked: list[str] = []

    @agent.tool_plain
    def weather(city: str) -> str:
        asked.append(city)
        return "22 degrees"

    script = '!tool weather {"city": "Rome"}\n!tool weather {"city": "Oslo"}\n!say so\n!tool missing\n!say end'
    result = await agent.run(script)
    assert result.output == "end"
    assert sorted(asked) == ["Oslo", "Rome"]
    calls = [part for message in result.all_messages() for part in message.parts if isinstance(part, ToolCallPart)]
    assert len({call.tool_call_id for call in calls}) == len(calls) == 3


async def test_pydantic_ai_reads_reasoning_as_thinking(model: OpenAIChatModel) -> None:
    """`reasoning_content` is the field that it knows without a setting, streamed and whole."""
    agent = Agent(model)
    script = "!think n=2 rate=1000\n!say done"
    whole = await agent.run(script)
    async with agent.run_stream(script) as streamed:
        assert await streamed.get_output() == whole.output == "done"
    for messages in (whole.all_messages(), streamed.all_messages()):
        thoughts = [part.content for part in messages[-1].parts if isinstance(part, ThinkingPart)]
        assert thoughts == ["r1 r2 "]

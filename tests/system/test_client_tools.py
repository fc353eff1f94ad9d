"""Tools of the client's own, through OpenAI's client and real processes: the run ends, the next request goes on."""

from typing import Any

import openai
import pytest

from tests.system.support import System

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

NAME = "weather"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
CHAT = [{"type": "function", "function": {"name": NAME, "description": "Of a city", "parameters": SCHEMA}}]
RESPONSES = [{"type": "function", "name": NAME, "parameters": SCHEMA}]
ASK = '!say looking\n!tool weather {"city": "Oslo"}\n!say it is done'
KNOWN = ["user", "assistant", "tool", "assistant"]


@pytest.fixture(scope="module")
def client(system: System) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{system.http.port}/v1", api_key="any", max_retries=0, timeout=20)


def test_a_chat_goes_on_with_the_result(client: openai.OpenAI) -> None:
    """By its messages alone: the call, then its result, then the answer."""
    messages: list[Any] = [{"role": "user", "content": ASK}]
    choice = client.chat.completions.create(model="diver", messages=messages, tools=CHAT).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "looking")
    (call,) = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == (NAME, '{"city": "Oslo"}')
    messages += [choice.message.model_dump(exclude_none=True)]
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    choice = client.chat.completions.create(model="diver", messages=messages, tools=CHAT).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("stop", "it is done")


def test_a_chat_in_a_session_goes_on_with_the_result_alone(system: System, client: openai.OpenAI) -> None:
    """Streamed, too; the session keeps the call with the result that the client sent, once."""
    named = {"X-Session-Id": "client-tools"}
    asked = client.chat.completions.create(
        model="diver", messages=[{"role": "user", "content": ASK}], tools=CHAT, stream=True, extra_headers=named
    )
    choices = [chunk.choices[0] for chunk in asked if chunk.choices]
    assert choices[-1].finish_reason == "tool_calls"
    ((call,),) = [choice.delta.tool_calls for choice in choices if choice.delta.tool_calls]
    result = [{"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    got = client.chat.completions.create(model="diver", messages=result, tools=CHAT, extra_headers=named)
    assert got.choices[0].message.content == "it is done"
    said = system.http.get("/api/sessions/client-tools")["messages"]
    assert [message["role"] for message in said] == KNOWN
    assert said[2]["result"] == "rain"
    more = client.chat.completions.create(
        model="diver", messages=[{"role": "user", "content": "!say more"}], extra_headers=named
    )
    assert more.choices[0].message.content == "more"


def test_a_response_goes_on_with_the_result_and_so_does_a_fork(client: openai.OpenAI) -> None:
    """A function_call without an output is the client's; a chain that branches off later knows the result."""
    first = client.responses.create(model="diver", input=ASK, tools=RESPONSES)
    assert [item.type for item in first.output] == ["message", "function_call"]
    output: Any = [{"type": "function_call_output", "call_id": first.output[1].call_id, "output": "snow"}]
    second = client.responses.create(model="diver", input=output, previous_response_id=first.id, tools=RESPONSES)
    assert (second.status, second.output_text) == ("completed", "it is done")
    third = client.responses.create(model="diver", input="!say on", previous_response_id=second.id)
    fork = client.responses.create(model="diver", input="!say fork", previous_response_id=second.id)
    assert (third.output_text, fork.output_text) == ("on", "fork")


@pytest.mark.parametrize("last", ["a tool", "the user"])
def test_a_result_that_nobody_asked_for_is_refused(client: openai.OpenAI, last: str) -> None:
    """A model that is told of a call it never made answers nonsense; the client hears of its mistake."""
    named = {"X-Session-Id": f"client-tools-{last.replace(' ', '-')}"}
    messages: list[Any] = [{"role": "tool", "tool_call_id": "call_nobody", "content": "rain"}]
    messages += [{"role": "user", "content": "!say hi"}] if last == "the user" else []
    with pytest.raises(openai.UnprocessableEntityError, match="answers no call"):
        client.chat.completions.create(model="diver", messages=messages, tools=CHAT, extra_headers=named)
    first = client.responses.create(model="diver", input="!say hi")
    output: Any = [{"type": "function_call_output", "call_id": "call_nobody", "output": "snow"}]
    output += [{"role": "user", "content": "!say hi"}] if last == "the user" else []
    with pytest.raises(openai.UnprocessableEntityError, match="answers no call"):
        client.responses.create(model="diver", input=output, previous_response_id=first.id, tools=RESPONSES)

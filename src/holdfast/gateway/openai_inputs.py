"""A request of OpenAI's Responses API, read: its input items, and what we cannot do with it.

Fields we do not know are passed over, as OpenAI's own clients expect; fields we know and cannot honour are refused,
because an answer that quietly ignored them would be wrong.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from holdfast.domain.runs import OnDisconnect, Policy
from holdfast.gateway.openai_messages import (
    ChatFunction,
    ChatMessage,
    ChatPart,
    ChatToolCall,
    Conversation,
    Tokens,
    conversation_of,
)
from holdfast.gateway.openai_tools import response_format
from holdfast.gateway.problems import invalid

_PASSED_OVER = frozenset({"reasoning"})  # a model's own notes, which it does not need back
_MESSAGES = frozenset({"message", "", None})


class ResponseItem(msgspec.Struct):
    """An item of the input: a message, a function_call, a function_call_output, or a reasoning item."""

    type: str | None = None
    role: str | None = None
    content: str | list[ChatPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ChatPart] | None = None


class Reasoning(msgspec.Struct):
    """How much a model is to think."""

    effort: str | None = None


class TextConfig(msgspec.Struct):
    """The form of the answer."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponseBody(msgspec.Struct):
    """A request for a response. `on_busy` and `on_disconnect` are ours."""

    input: Annotated[str, msgspec.Meta(min_length=1)] | list[ResponseItem]
    model: str | None = None
    instructions: str | None = None
    stream: bool | None = None
    background: bool | None = None
    store: bool | None = None
    previous_response_id: Annotated[str, msgspec.Meta(max_length=200)] | None = None
    conversation: Any = None
    metadata: dict[str, Any] | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: Tokens | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    user: str | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    prompt: Any = None
    max_tool_calls: int | None = None
    on_busy: Policy | None = Policy.SUPERSEDE
    on_disconnect: OnDisconnect | None = None


def asked_of(body: ResponseBody, *, continues: bool) -> Conversation:
    """What a request asks: the prompt, the instructions, and what its own items say before the prompt.

    Args:
        body: The request.
        continues: Whether the server knows what was said before, such as the calls that items have the results of.
    """
    if isinstance(body.input, str):
        return Conversation(body.input, body.instructions or "", [])
    asked = conversation_of(_messages(body.input), "input", continues=continues)
    instructions = [part for part in (body.instructions, asked.instructions) if part]
    return asked._replace(instructions="\n\n".join(instructions))


def sampling_of(body: ResponseBody) -> dict[str, Any]:
    """The sampling fields that were sent, in the words of chat completions."""
    found = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "max_completion_tokens": body.max_output_tokens,
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "verbosity": body.text.verbosity if body.text else None,
        "user": body.user,
    }
    sent = {name: value for name, value in found.items() if value is not None}
    return sent | response_format(body.text.format if body.text else None, "text.format", nested=False)


def refuse_unsupported(body: ResponseBody) -> None:
    """Raise invalid_request for what is known and cannot be honoured."""
    if body.store is False:
        remedy = "every run is kept in the log until its retention ends: leave store out, and DELETE the response"
        raise invalid(f"store is false; {remedy}", param="store")
    if body.prompt is not None:
        raise invalid("prompt: there are no stored prompts here; send input and instructions", param="prompt")
    if body.max_tool_calls is not None:
        raise invalid("max_tool_calls is the server's setting (budget_tool_calls); send none", param="max_tool_calls")
    if body.conversation is not None:
        raise invalid("conversation: send previous_response_id, or the header X-Session-Id", param="conversation")


def _messages(items: list[ResponseItem]) -> list[ChatMessage]:
    """Items in the form of chat completions: calls belong to the assistant's message before them."""
    found: list[ChatMessage] = []
    for number, item in enumerate(items):
        place = f"input[{number}]"
        if item.type == "function_call":
            called = ChatToolCall(_needed(item.call_id, f"{place}.call_id"), _function(item, place))
            last = found[-1] if found else None
            if last is None or last.role != "assistant":
                last = ChatMessage("assistant", "")
                found.append(last)
            last.tool_calls = [*(last.tool_calls or []), called]
        elif item.type == "function_call_output":
            found.append(ChatMessage("tool", item.output, tool_call_id=_needed(item.call_id, f"{place}.call_id")))
        elif item.type in _MESSAGES:
            found.append(ChatMessage(_needed(item.role, f"{place}.role"), item.content))
        elif item.type not in _PASSED_OVER:
            raise invalid(f"{place}: an item of type {str(item.type)[:40]!r} cannot be taken", param="input")
    return found


def _function(item: ResponseItem, place: str) -> ChatFunction:
    return ChatFunction(_needed(item.name, f"{place}.name"), item.arguments or "")


def _needed(value: str | None, place: str) -> str:
    if not value:
        raise invalid(f"{place} is missing", param="input")
    return value

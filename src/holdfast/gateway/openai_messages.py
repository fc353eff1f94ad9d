"""A chat-completions request, read: its messages, its sampling fields, and what we cannot do with it.

Fields we do not know are passed over, as OpenAI's own clients expect; fields we know and cannot honour are refused,
because an answer that quietly ignored them would be wrong.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import msgspec

from holdfast.domain.errors import HoldfastError
from holdfast.domain.messages import Message, ToolCall
from holdfast.domain.runs import OnDisconnect, Policy
from holdfast.gateway.openai_tools import response_format
from holdfast.gateway.problems import invalid

SAMPLING = (
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "parallel_tool_calls",
    "reasoning_effort",
    "verbosity",
    "user",
)
Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=2**31)]


class ChatPart(msgspec.Struct):
    """A part of a message; only text is taken."""

    type: str
    text: str | None = None
    refusal: str | None = None


class ChatFunction(msgspec.Struct):
    """The function of a tool call."""

    name: str
    arguments: str = ""


class ChatToolCall(msgspec.Struct):
    """A tool call of an earlier assistant message."""

    id: str
    function: ChatFunction


class ChatMessage(msgspec.Struct):
    """A message of the conversation."""

    role: str
    content: str | list[ChatPart] | None = None
    name: str | None = None
    tool_calls: list[ChatToolCall] | None = None
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct):
    """What a stream carries beside the text."""

    include_usage: bool | None = None


class ChatBody(msgspec.Struct):
    """A chat-completions request. `prompt` stands for one user message; `on_busy` and `on_disconnect` are ours."""

    messages: list[ChatMessage] | None = None
    prompt: str | None = None
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    stop: str | list[str] | None = None
    seed: Seed | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    user: str | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    on_busy: Policy | None = Policy.SUPERSEDE
    on_disconnect: OnDisconnect | None = OnDisconnect.CANCEL


class Conversation(NamedTuple):
    """What a request asks: the prompt, what holds for this run only, and what was said before."""

    prompt: str
    instructions: str
    context: list[Message]
    goes_on: bool = False  # the last message is a tool's: there is no prompt


def conversation(body: ChatBody, *, in_session: bool) -> Conversation:
    """Take a request's messages apart.

    Args:
        body: The request.
        in_session: Whether the server has the history; then only the last user message is taken.
    """
    if body.prompt is not None and not body.messages:
        return Conversation(body.prompt, "", [])
    if body.prompt is not None:
        raise invalid("send messages or prompt, not both")
    return conversation_of(body.messages or [], "messages", in_session=in_session)


def conversation_of(
    messages: list[ChatMessage], param: str, *, in_session: bool = False, continues: bool = False
) -> Conversation:
    """Take messages apart, which are the field `param` of a request; see `conversation`.

    The last is the user's, or the result of a tool of the client's own: then the prompt is "".

    Args:
        messages: The messages.
        param: The field.
        in_session: The server has the history: only what came after the last answer is taken.
        continues: The messages go on from a history that the server has.
    """
    system: list[str] = []
    said: list[Message] = []
    for number, message in enumerate(messages):
        text = _text(message.content, f"{param}[{number}].content", param)
        if message.role in ("system", "developer"):
            system.append(text)
        else:
            said.append(_neutral(message, text, f"{param}[{number}]", param))
    instructions = "\n\n".join(s for s in system if s)
    if in_session:
        said = _since_answer(said)
    if said and said[-1].role == "tool":
        context = _results_first(said) if in_session or continues else _paired(said)
        if not context or context[-1].role != "tool" or said[-1].call not in {message.call for message in context}:
            raise invalid(f"{param}: the last result answers no call in it", param=param)
        return Conversation("", instructions, context, goes_on=True)
    last = max((n for n, message in enumerate(said) if message.role == "user"), default=None)
    if last is None:
        raise invalid(f"{param} has no user message", param=param)
    if not in_session and last != len(said) - 1:
        raise invalid("the last message is neither the user's nor a tool's", param=param)
    if in_session:
        context = [message for message in said if message.role == "tool"]
    else:
        context = _results_first(said[:last]) if continues else _paired(said[:last])
    return Conversation(said[last].text, instructions, context)


def _since_answer(said: list[Message]) -> list[Message]:
    """What came after the last answer; all from the last user message on, where an answer is the last."""
    answers = [n for n, message in enumerate(said) if message.role == "assistant"]
    after = said[answers[-1] + 1 :] if answers else said
    if after:
        return after
    last = max((n for n, message in enumerate(said) if message.role == "user"), default=0)
    return said[last : last + 1]


def _results_first(said: list[Message]) -> list[Message]:
    """Results of calls that an earlier response made, then the rest, in pairs."""
    calls = {call.call for message in said for call in message.calls}
    return [*(m for m in said if m.role == "tool" and m.call not in calls), *_paired(said)]


def sampling(body: ChatBody) -> dict[str, Any]:
    """The sampling fields that were sent, in OpenAI's words; the agent's adapter translates them."""
    sent = {name: value for name in SAMPLING if (value := getattr(body, name)) is not None}
    return sent | response_format(body.response_format, "response_format", nested=True)


def refuse_unsupported(body: ChatBody) -> None:
    """Raise invalid_request for what is known and cannot be honoured."""
    if body.n not in (None, 1):
        raise invalid(f"n={body.n}: one choice is made for each request", param="n")
    if body.functions:
        raise invalid("functions: send tools in place of them", param="functions")


def choose_agent(model: str | None, served: list[str]) -> str:
    """The agent that `model` names: any name where one agent is served, "" (the first) where it is absent."""
    if not model or len(served) <= 1:
        return ""
    if model in served:
        return model
    raise HoldfastError("unknown_agent", f"no model {model[:200]!r}; served are {', '.join(served)}", param="model")


def _neutral(message: ChatMessage, text: str, place: str, param: str) -> Message:
    match message.role:
        case "user":
            return Message(role="user", text=text)
        case "assistant":
            calls = [
                ToolCall(call=c.id, name=c.function.name, args=_args(c.function.arguments))
                for c in message.tool_calls or []
            ]
            return Message(role="assistant", text=text, calls=calls)
        case "tool":
            call = message.tool_call_id or ""
            return Message(role="tool", call=call, name=message.name or "", outcome="success", result=text)
        case other:
            raise invalid(f"{place}.role is {other[:40]!r}", param=param)


def _paired(said: list[Message]) -> list[Message]:
    """Each call with its result right behind it and each result with its call: what a model API accepts."""
    results = {message.call: message for message in said if message.role == "tool"}
    out: list[Message] = []
    for message in said:
        if message.role == "tool":
            continue
        out.append(message)
        for call in message.calls:
            result = results.get(call.call)
            if result is None:
                text = "the tool call was interrupted before a result was produced"
                result = Message(role="tool", call=call.call, outcome="interrupted", result=text)
            out.append(msgspec.structs.replace(result, name=call.name))
    return out


def _text(content: str | list[ChatPart] | None, place: str, param: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = []
    for part in content:
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in ("text", "input_text", "output_text", "refusal") or text is None:
            raise invalid(f"{place}: a part of type {part.type[:40]!r} is not text", param=param)
        parts.append(text)
    return "".join(parts)


def _args(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return text

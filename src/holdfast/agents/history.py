"""What a session's runs left, as messages that every provider accepts.

The rules: a user turn and an assistant turn alternate; each tool call has exactly one result, directly after it; call
ids are unique; nothing is empty; the first turn is the user's and the last the assistant's. Where the history breaks
them it is mended by adding, not by deleting: what a user wrote and what a tool finished is always kept, a partial
answer is kept and marked, a run without an answer gets a line that says so. Dropped is only what nobody has ever
seen whole: reasoning and half-written calls of a response that was cut short.

One pass, and a second pass changes nothing. pydantic-ai's `repair_messages` runs on top before each request; it finds
nothing to do (tested).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    RetryFeedbackPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from holdfast.agents.checkpoint import BadCheckpoint, read
from holdfast.agents.convert import NO_TIME, to_native
from holdfast.domain.messages import HistoryEntry
from holdfast.domain.runs import State

KIND: Final = "pydantic-ai"
NO_ANSWER: Final = "[interrupted before an answer]"
ANSWERED: Final = "[answered by the tool call above]"
CUT: Final = " [interrupted]"
NO_INPUT: Final = "[no message]"
NO_RESULT: Final = "The tool call was interrupted before a result was produced."


def history_of(entries: Iterable[HistoryEntry]) -> list[ModelMessage]:
    """The session so far, oldest first, valid for any provider."""
    return given_and_mended(entries)[1]


def given_and_mended(
    entries: Iterable[HistoryEntry], *, goes_on: bool = False
) -> tuple[list[ModelMessage], list[ModelMessage]]:
    """The session as its runs left it, and valid for any provider.

    Args:
        entries: What its runs left.
        goes_on: No user's turn follows, but the model's: the last entry has results of the client's tools.
    """
    mended = _Mended()
    given: list[ModelMessage] = []
    runs = [(entry, _of_run(entry)) for entry in entries]
    for n, (entry, messages) in enumerate(runs):
        for message in messages:
            given.append(message)
            mended.add(message)
        following = runs[n + 1][1] if n + 1 < len(runs) else None
        if _is_answered_later(following) if following is not None else goes_on:
            mended.close_calls()
        else:
            mended.end_run(answered=entry.state == State.COMPLETED)
    return given, mended.messages


def mend(messages: Sequence[ModelMessage]) -> list[ModelMessage]:
    """`messages` as one run's that broke off where they end, valid for any provider."""
    mended = _Mended()
    for message in messages:
        mended.add(message)
    mended.end_run(answered=False)
    return mended.messages


def call_ids(messages: Iterable[ModelMessage]) -> set[str]:
    """Every id that a call of `messages` has."""
    return {part.tool_call_id for message in messages for part in message.parts if isinstance(part, ToolCallPart)}


def _is_answered_later(following: list[ModelMessage]) -> bool:
    """Whether what follows a run is its own continuation: results of the client's tools, or the answer to them."""
    first = following[0] if following else None
    if isinstance(first, ModelRequest):
        return bool(first.parts) and all(isinstance(part, ToolReturnPart) for part in first.parts)
    return first is not None


def _of_run(entry: HistoryEntry) -> list[ModelMessage]:
    if entry.native_kind == KIND and entry.native:
        try:
            native = read(entry.native).history()
        except BadCheckpoint:
            return to_native(entry.messages)
        return [*native, *to_native(entry.tail)]
    return to_native(entry.messages)


class _Mended:
    """Messages that keep the rules, built one message at a time."""

    def __init__(self) -> None:
        self.messages: list[ModelMessage] = []
        self._open: dict[str, ToolCallPart] = {}  # calls of the last response without a result
        self._results: list[ToolReturnPart] = []  # results of the last response, not yet written
        self._closed: dict[str, tuple[int, int, str]] = {}  # given id -> where a made-up result stands
        self._renamed: dict[str, str] = {}  # id as given -> as written, of the last response
        self._seen: set[str] = set()
        self._copies: dict[str, int] = {}

    def add(self, message: ModelMessage) -> None:
        """Take the next message."""
        if isinstance(message, ModelRequest):
            self._request(message)
        else:
            self._response(message)

    def end_run(self, *, answered: bool) -> None:
        """The run is over: what it left open is closed, and the last word is the assistant's."""
        self.close_calls()
        last = self.messages[-1] if self.messages else None
        if isinstance(last, ModelRequest):
            by_tool = answered and isinstance(last.parts[-1], ToolReturnPart)
            self._say([TextPart(ANSWERED if by_tool else NO_ANSWER)])

    def _request(self, message: ModelRequest) -> None:
        beside: list[ModelRequestPart] = []
        for part in message.parts:
            if isinstance(part, ToolReturnPart) or (part.part_kind == "retry-prompt" and part.tool_name is not None):
                self._result(part)
            elif not isinstance(part, RetryFeedbackPart) or self._after_response():
                beside.append(part)
        if beside:
            self.close_calls()
            self._ask(beside, message)

    def _after_response(self) -> bool:
        """Whether an assistant's turn is the last: feedback on one that was dropped means nothing to anybody."""
        return bool(self.messages) and isinstance(self.messages[-1], ModelResponse)

    def _ask(self, parts: list[ModelRequestPart], message: ModelRequest) -> None:
        """A user's turn; joined to the one before it, if that has no answer yet."""
        last = self.messages[-1] if self.messages else None
        if not isinstance(last, ModelRequest):
            self.messages.append(replace(message, parts=_one_prompt(parts), state="complete"))
            return
        self.messages[-1] = replace(last, parts=_one_prompt([*last.parts, *parts]))

    def _result(self, part: Any) -> None:
        """A tool's result: to its call, in place of a made-up one, or with a call made up for it."""
        given = part.tool_call_id
        written = self._renamed.get(given, given)
        if written in self._open:
            open_ = self._open.pop(written)
            self._results.append(replace(part, tool_call_id=written, tool_name=part.tool_name or open_.tool_name))
            return
        if given in self._closed:
            at, index, written = self._closed.pop(given)
            request = self.messages[at]
            if isinstance(request, ModelRequest):
                parts = list(request.parts)
                name = part.tool_name or getattr(parts[index], "tool_name", "")
                parts[index] = replace(part, tool_call_id=written, tool_name=name)
                self.messages[at] = replace(request, parts=parts)
            return
        self._response(
            ModelResponse(
                parts=[ToolCallPart(tool_name=part.tool_name, args={}, tool_call_id=given)], timestamp=NO_TIME
            )
        )
        self._result(part)

    def _response(self, message: ModelResponse) -> None:
        self.close_calls()
        parts = _kept(message)
        if not parts:
            return
        self._renamed = {}
        parts = [self._unique(part) if isinstance(part, ToolCallPart) else part for part in parts]
        self._say(parts, message)
        self._open = {part.tool_call_id: part for part in parts if isinstance(part, ToolCallPart)}

    def _say(self, parts: list[ModelResponsePart], message: ModelResponse | None = None) -> None:
        """An assistant's turn; joined to the one before it, if nobody spoke in between."""
        if not self.messages:
            self._ask([UserPromptPart(NO_INPUT, timestamp=NO_TIME)], ModelRequest(parts=[], timestamp=NO_TIME))
        last = self.messages[-1]
        if isinstance(last, ModelResponse):
            self.messages[-1] = replace(last, parts=[*last.parts, *parts])
            return
        given = message if message is not None else ModelResponse(parts=[], timestamp=NO_TIME)
        self.messages.append(replace(given, parts=parts, state="complete"))

    def close_calls(self) -> None:
        """Write the results of the last response, and make up those that are missing."""
        if not self._open and not self._results:
            return
        response = self.messages[-1]
        given_ids = {written: given for given, written in self._renamed.items()}
        results = {part.tool_call_id: part for part in self._results}
        parts: list[ModelRequestPart] = []
        for part in response.parts:
            if not isinstance(part, ToolCallPart):
                continue
            call = part.tool_call_id
            if call not in results:
                self._closed[given_ids.get(call, call)] = (len(self.messages), len(parts), call)
                results[call] = _made_up(part, response)
            parts.append(results[call])
        self.messages.append(ModelRequest(parts=parts, timestamp=response.timestamp))
        self._open, self._results = {}, []

    def _unique(self, part: ToolCallPart) -> ToolCallPart:
        given = part.tool_call_id
        name = given
        while name in self._seen:
            self._copies[given] = self._copies.get(given, 1) + 1
            name = f"{given}_{self._copies[given]}"
        self._seen.add(name)
        self._renamed[given] = name
        self._closed.pop(given, None)
        return part if name == given else replace(part, tool_call_id=name)


def _kept(message: ModelResponse) -> list[ModelResponsePart]:
    """The parts of a response that a model may be shown again."""
    whole = message.state == "complete"
    parts = [part for part in message.parts if _has_content(part)]
    if whole:
        only_thought = all(isinstance(part, ThinkingPart) for part in parts)
        return [] if only_thought else parts
    texts = [part for part in parts if isinstance(part, TextPart)]
    if not texts:
        return []
    last = texts[-1]
    return [*texts[:-1], replace(last, content=last.content + CUT)]


def _has_content(part: ModelResponsePart) -> bool:
    return bool(part.content.strip()) if isinstance(part, TextPart) else True


def _made_up(call: ToolCallPart, response: ModelMessage) -> ToolReturnPart:
    return ToolReturnPart(
        tool_name=call.tool_name,
        content=NO_RESULT,
        tool_call_id=call.tool_call_id,
        timestamp=response.timestamp or NO_TIME,
        outcome="interrupted",
    )


def _one_prompt(parts: list[ModelRequestPart]) -> list[ModelRequestPart]:
    """Prompts that follow each other as one; OpenAI's format would make a user turn of each."""
    joined: list[ModelRequestPart] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, UserPromptPart) and isinstance(last, UserPromptPart):
            joined[-1] = replace(last, content=_joined(last, part))
        else:
            joined.append(part)
    return [_spoken(part) if isinstance(part, UserPromptPart) else part for part in joined]


def _joined(first: UserPromptPart, second: UserPromptPart) -> Any:
    if isinstance(first.content, str) and isinstance(second.content, str):
        return f"{first.content}\n\n{second.content}"
    one = [first.content] if isinstance(first.content, str) else list(first.content)
    two = [second.content] if isinstance(second.content, str) else list(second.content)
    return [*one, *two]


def _spoken(part: UserPromptPart) -> UserPromptPart:
    """A prompt of blanks is none to a provider."""
    if isinstance(part.content, str) and not part.content.strip():
        return replace(part, content=NO_INPUT)
    return part

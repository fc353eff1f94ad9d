"""Makes a conversation smaller, and keeps it valid; pure.

By rule and not by asking a model for a summary, because that takes no time worth a limit, costs nothing, cannot fail,
and gives the same bytes for the same history. In this order, oldest first, as far as is needed:

1. large tool results, arguments and files keep their beginning;
2. long texts of earlier turns keep theirs;
3. whole turns are dropped, the first prompt excepted, which often says what all is about;
4. tool results of this run's earlier steps are dropped to the mark alone.

Never touched: what the user wrote in this run, and the last results, which the model has not seen yet. Each place
says how much is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    RetryFeedbackPart,
    RetryPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from holdfast.agents.convert import NO_TIME

SHRINK_MIN: Final = 0.95  # what saves less is not worth a request
HEAD: Final = 400  # characters that an abbreviated text keeps
FILE_CHARS: Final = 4 / 3  # of a byte, in base64
WHY: Final = "to fit the model's context window"


class Compacted(NamedTuple):
    """A conversation made smaller.

    Attributes:
        messages: As valid as those it was made from.
        touched: How many of those were shortened or dropped.
        of: How many there were.
    """

    messages: list[ModelMessage]
    touched: int
    of: int


def size_of(messages: Sequence[ModelMessage]) -> int:
    """Characters of what the conversation says; a measure to compare by, not a count of tokens."""
    return sum(_size(message) for message in messages)


def compact(messages: Sequence[ModelMessage], since: int, target: int) -> Compacted | None:
    """The conversation in about `target` characters, or in as few as it can be; None if that saves next to nothing.

    Args:
        messages: Valid, the last one a request.
        since: The index of the run's first message; what the user wrote from there on is kept as it is.
        target: In characters, as `size_of` counts them.
    """
    working = _Working(messages, since, target)
    working.shorten(range(working.last), _bulk)
    working.shorten(range(working.begin), _texts)
    working.drop_turns()
    working.shorten(range(working.begin, working.last), _bare)
    if working.size > working.size_before * SHRINK_MIN:
        return None
    return Compacted(working.messages, working.touched, len(messages))


class _Working:
    """A conversation that is being made smaller."""

    def __init__(self, messages: Sequence[ModelMessage], since: int, target: int) -> None:
        self.messages = list(messages)
        self.size = self.size_before = size_of(messages)
        self._target = target
        self._changed: set[int] = set()
        self._dropped = 0
        asked = [at for at, message in enumerate(messages) if _is_prompt(message)]
        self.begin = min(since, asked[-1]) if asked else 0  # of this run; a history processor may have moved it

    @property
    def last(self) -> int:
        """Where that begins which nothing may change: the last results, and the calls that they answer."""
        return max(0, len(self.messages) - (1 if _is_prompt(self.messages[-1]) else 2))

    @property
    def touched(self) -> int:
        return len(self._changed) + self._dropped

    def shorten(self, where: range, by: Callable[[Any], Any]) -> None:
        """Apply `by` to the parts of each message, oldest first, as long as that is needed."""
        for at in where:
            if self.size <= self._target:
                return
            message = self.messages[at]
            shorter = _with(message, [self._part(at, part, by) for part in message.parts])
            saved = _size(message) - _size(shorter)
            if saved > 0:
                self.messages[at] = shorter
                self.size -= saved
                self._changed.add(at)

    def _part(self, at: int, part: Any, by: Callable[[Any], Any]) -> Any:
        return part if at >= self.begin and isinstance(part, UserPromptPart) else by(part)

    def drop_turns(self) -> None:
        """Drop what stands between the first prompt and this run, whole turns, as few as suffice."""
        starts = [at for at, message in enumerate(self.messages[: self.begin]) if _is_prompt(message)]
        if self.size <= self._target or not starts or starts[0] != 0:
            return
        size, before = self.size, 1
        for end in [*starts[1:], self.begin]:
            size -= size_of(self.messages[before:end])
            before = end
            if size <= self._target:
                break
        gone = self.messages[1:before]
        mark = f"[{len(gone)} messages left out here {WHY}]"
        first = self.messages[0]
        kept = [part for message in gone if isinstance(message, ModelRequest) for part in message.parts if _lasts(part)]
        if kept:
            own = [part for part in first.parts if _lasts(part)]
            said = [part for part in first.parts if not _lasts(part)]
            first = _with(first, [*own, *kept, *said])
        response = ModelResponse(parts=[TextPart(mark)], timestamp=NO_TIME)
        self.messages[:before] = [first, response]
        self._dropped = len(gone)
        self._changed = {0} & self._changed | {at - before + 2 for at in self._changed if at >= before}
        self.begin -= before - 2
        self.size = size_of(self.messages)


def _is_prompt(message: ModelMessage) -> bool:
    """Whether a turn begins here: a user speaks, and no result belongs to a call before."""
    if not isinstance(message, ModelRequest):
        return False
    answers = any(
        isinstance(part, ToolReturnPart) or (isinstance(part, RetryPromptPart) and part.tool_name is not None)
        for part in message.parts
    )
    return not answers and any(isinstance(part, UserPromptPart) for part in message.parts)


def _lasts(part: Any) -> bool:
    """Whether a part holds for all that follows, as a system prompt does."""
    return not isinstance(part, UserPromptPart | ToolReturnPart | RetryPromptPart | RetryFeedbackPart)


def _with(message: Any, parts: list[Any]) -> Any:
    return replace(message, parts=parts)


def _bulk(part: Any) -> Any:
    """Results, arguments and files keep their beginning."""
    return _shortened(part, HEAD)


def _bare(part: Any) -> Any:
    return _shortened(part, 0)


def _shortened(part: Any, head: int) -> Any:
    if type(part) is ToolReturnPart:
        said = part.content if isinstance(part.content, str) else part.model_response_str()
        return replace(part, content=_cut(said, head)) if len(_cut(said, head)) < len(said) else part
    if isinstance(part, RetryPromptPart) and isinstance(part.content, str):
        return replace(part, content=_cut(part.content, head))
    if type(part) is ToolCallPart:
        length = len(part.args_as_json_str())
        return replace(part, args={"left_out": f"{length} characters {WHY}"}) if length > max(head, 100) else part
    if isinstance(part, UserPromptPart) and not isinstance(part.content, str):
        items = [f"[a file left out {WHY}]" if isinstance(item, BinaryContent) else item for item in part.content]
        return replace(part, content=items)
    return part


def _texts(part: Any) -> Any:
    """What was said in earlier turns keeps its beginning."""
    if isinstance(part, TextPart | UserPromptPart) and isinstance(part.content, str):
        return replace(part, content=_cut(part.content, HEAD))
    if isinstance(part, UserPromptPart):
        return replace(part, content=[_cut(i, HEAD) if isinstance(i, str) else i for i in part.content])
    return part


def _cut(text: str, head: int) -> str:
    mark = f"[{len(text) - head} characters left out {WHY}]"
    return text if len(text) <= head + len(mark) + 1 else f"{text[:head]} {mark}".strip()


def _size(message: ModelMessage) -> int:
    return sum(_part_size(part) for part in message.parts)


def _part_size(part: Any) -> int:
    match part:
        case ToolReturnPart():
            return len(part.content) if isinstance(part.content, str) else len(part.model_response_str())
        case ToolCallPart():
            return len(part.tool_name) + len(part.args_as_json_str())
        case UserPromptPart() if not isinstance(part.content, str):
            return sum(_item_size(item) for item in part.content)
        case _:
            content = getattr(part, "content", "")
            return len(content) if isinstance(content, str) else 0


def _item_size(item: Any) -> int:
    if isinstance(item, BinaryContent):
        return int(len(item.data) * FILE_CHARS)
    return len(item) if isinstance(item, str) else 0

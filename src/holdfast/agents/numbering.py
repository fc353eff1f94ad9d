"""Numbers the parts and names the calls of one run, so that both are unique in it whatever a provider sends.

pydantic-ai counts parts from 0 in each response, and some providers begin their call ids anew in each response
(`call_0`). We count through, and give a repeated id a suffix; before the tools run, the response itself is rewritten,
so that the model, the tools, the log and a resumed attempt all use the same name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from pydantic_ai.messages import (
    AgentStreamEvent,
    ModelResponse,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
)

from holdfast.ports.agent import PartDone, ReasoningDelta, TextDelta, ToolArgs

Streamed = TextDelta | ReasoningDelta | PartDone | ToolArgs


class Numbering:
    """The numbers of one run; `begin` starts each response."""

    def __init__(self, first_part: int, taken: Iterable[str], hidden: Callable[[str], bool]) -> None:
        """Continue after what is there.

        Args:
            first_part: The first free part number.
            taken: Call ids that history or an earlier attempt has.
            hidden: Whether a tool, by name, is no work of its own but the form of the answer.
        """
        self._next_part = first_part
        self._taken = set(taken)
        self._copies: dict[str, int] = {}
        self._hidden = hidden
        self._parts: dict[int, int] = {}  # index in the response -> part
        self._kinds: dict[int, type[TextDelta] | type[ReasoningDelta]] = {}
        self._calls: dict[int, tuple[str, str, str]] = {}  # index -> id as given, as named, tool
        self._told_parts: list[int] = []  # of this response, in order of appearance
        self._told_calls: list[str] = []

    def begin(self) -> None:
        """A response starts."""
        self._parts, self._kinds, self._calls = {}, {}, {}
        self._told_parts, self._told_calls = [], []

    def drop(self) -> tuple[list[int], list[str]]:
        """Every part and call that the reader has of the response, which is no more; no name is given twice."""
        parts, calls = self._told_parts, self._told_calls
        self.begin()
        return parts, calls

    def next_part(self) -> int:
        """A number of its own, for a part that no response has."""
        number = self._next_part
        self._next_part += 1
        return number

    def events(self, event: AgentStreamEvent) -> Iterator[Streamed]:
        """What the reader is told of one event of the stream."""
        match event:
            case PartStartEvent():
                yield from self._start(event)
            case PartDeltaEvent():
                yield from self._delta(event)
            case PartEndEvent():
                number = self._parts.pop(event.index, None)
                if number is not None:
                    yield PartDone(number)
            case _:
                pass

    def end(self) -> Iterator[PartDone]:
        """The response is whole: so are its parts."""
        for number in self._parts.values():
            yield PartDone(number)
        self._parts = {}

    def name_calls(self, response: ModelResponse) -> None:
        """Give the calls of a whole response the names that the reader knows, in place."""
        announced = list(self._calls.values())
        parts = list(response.parts)
        for at, part in enumerate(parts):
            if isinstance(part, ToolCallPart):
                known = next((entry for entry in announced if entry[0] == part.tool_call_id), None)
                if known is not None:
                    announced.remove(known)
                name = known[1] if known is not None else self._unique(part.tool_call_id)
                if name != part.tool_call_id:
                    parts[at] = replace(part, tool_call_id=name)
        response.parts = parts

    def _start(self, event: PartStartEvent) -> Iterator[Streamed]:
        index, part = event.index, event.part
        self._kinds.pop(index, None)
        replaced = self._parts.pop(index, None)
        if replaced is not None:
            yield PartDone(replaced)
        match part:
            case TextPart():
                self._kinds[index] = TextDelta
                yield from self._say(index, part.content)
            case ThinkingPart():
                self._kinds[index] = ReasoningDelta
                yield from self._say(index, part.content)
            case ToolCallPart():
                if index not in self._calls:
                    name = self._unique(part.tool_call_id)
                    self._calls[index] = (part.tool_call_id, name, part.tool_name)
                yield from self._args(index, part.args)
            case _:
                pass

    def _delta(self, event: PartDeltaEvent) -> Iterator[Streamed]:
        match event.delta:
            case TextPartDelta() | ThinkingPartDelta():
                yield from self._say(event.index, event.delta.content_delta or "")
            case ToolCallPartDelta():
                yield from self._args(event.index, event.delta.args_delta)
            case _:
                pass

    def _say(self, index: int, text: str) -> Iterator[Streamed]:
        kind = self._kinds.get(index)
        if kind is None or not text:
            return
        if index not in self._parts:
            self._parts[index] = self.next_part()
            self._told_parts.append(self._parts[index])
        yield kind(self._parts[index], text)

    def _args(self, index: int, args: Any) -> Iterator[ToolArgs]:
        known = self._calls.get(index)
        if not args or known is None or self._hidden(known[2]):
            return
        if known[1] not in self._told_calls:
            self._told_calls.append(known[1])
        yield ToolArgs(known[1], known[2], args if isinstance(args, str) else json.dumps(args, default=str))

    def _unique(self, given: str) -> str:
        name = given
        while name in self._taken:
            self._copies[given] = self._copies.get(given, 1) + 1
            name = f"{given}_{self._copies[given]}"
        self._taken.add(name)
        return name

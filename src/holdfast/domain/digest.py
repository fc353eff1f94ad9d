"""What a log amounts to: text, tools, usage, messages. One fold over the events, used by every writer of an end.

The executor folds the events it sends, the store folds the events it has; both get the same output, partial,
usage and history, because parts and calls that `attempt.discarded` names count nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from holdfast.domain.events import EventType, moment_ms
from holdfast.domain.messages import Message, ToolCall
from holdfast.domain.usage import Usage

INTERRUPTED: Final = "the tool call was interrupted before a result was produced"


class _Part:
    __slots__ = ("chunks", "discarded", "done", "number", "step", "text_kind")

    def __init__(self, number: int, step: int, *, text_kind: bool) -> None:
        self.number = number
        self.step = step
        self.text_kind = text_kind  # text, else reasoning
        self.chunks: list[str] = []
        self.done = False
        self.discarded = False

    @property
    def text(self) -> str:
        if len(self.chunks) > 1:
            self.chunks = ["".join(self.chunks)]
        return self.chunks[0] if self.chunks else ""


class _Call:
    __slots__ = ("args", "at", "call", "discarded", "name", "outcome", "result", "step")

    def __init__(self, call: str, name: str, args: Any, step: int, at: str) -> None:
        self.call = call
        self.name = name
        self.args = args
        self.step = step
        self.at = at
        self.outcome: str | None = None
        self.result: Any = None
        self.discarded = False


class OpenCall:
    """A tool call without a tool.finished."""

    __slots__ = ("at", "call", "name")

    def __init__(self, call: str, name: str, at: str = "") -> None:
        """Name the call and its tool; `at` is when it was called, "" where the log was folded without its times."""
        self.call = call
        self.name = name
        self.at = at

    def cut_short(self, duration_ms: float | None) -> dict[str, Any]:
        """The fields of its tool.finished, where the run ends before it did."""
        return {
            "call": self.call,
            "name": self.name,
            "outcome": "interrupted",
            "result": INTERRUPTED,
            "duration_ms": duration_ms,
        }


class Digest:
    """The fold. Feed it every event of one run in order, from the first or from a checkpoint on."""

    def __init__(self, events: Iterable[Mapping[str, Any]] = ()) -> None:
        """Start empty, or from decoded events."""
        self._items: list[_Part | _Call | str] = []  # a str is a steered input
        self._parts: dict[int, _Part] = {}
        self._calls: dict[str, _Call] = {}
        self._named: dict[str, bool] = {}  # every call a reader has heard of, half-written ones too -> discarded
        self._step = 0
        self.spent = Usage()
        self._last_discarded = ""
        self.input = ""
        self.asked: frozenset[str] = frozenset()  # the calls that a decision is awaited for
        self.attempts = 0
        self.finish_reason: str | None = None  # of the last model response
        self._created_at = self._content_at = ""
        for event in events:
            self.feed(event["type"], event)

    def feed(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Take the next event: its type and its fields (others in the mapping are not looked at)."""
        match kind:
            case EventType.TEXT_DELTA | EventType.REASONING_DELTA:
                part = self._part(fields["part"], text_kind=kind == EventType.TEXT_DELTA)
                part.chunks.append(fields["text"])
                self._content_at = self._content_at or fields.get("ts", "")
                if part.text_kind:
                    self._last_discarded = ""
                self.spent.streamed(len(fields["text"]))
            case EventType.TOOL_ARGS:
                self._named.setdefault(fields["call"], False)
                self.spent.streamed(len(fields.get("delta") or ""))
            case EventType.TEXT_DONE | EventType.REASONING_DONE:
                self._part_done(fields, text_kind=kind == EventType.TEXT_DONE)
            case EventType.TOOL_CALLED:
                self._last_discarded = ""
                call = _Call(fields["call"], fields["name"], fields.get("args"), self._step, fields.get("ts", ""))
                self._calls[call.call] = call
                self._named[call.call] = False
                self._items.append(call)
            case EventType.TOOL_FINISHED:
                self._finished(fields)
            case EventType.MODEL_REQUESTED:
                self._step = fields.get("step", self._step)
                self.spent.requested(fields.get("model", ""), fields.get("attempt", 1))
            case EventType.MODEL_RESPONDED:
                self.spent.responded(fields.get("usage"))
                self.finish_reason = fields.get("finish_reason")
            case EventType.TOOL_RESPONDED:
                self.spent.delegated(fields.get("usage"))
            case EventType.ATTEMPT_DISCARDED:
                self._discard(fields)
            case EventType.RUN_STARTED:
                self.attempts = fields.get("attempt", self.attempts)
            case EventType.RUN_CREATED | EventType.RUN_EDITED:
                self._created_at = self._created_at or fields.get("ts", "")
                self.input = fields.get("input", "")
            case EventType.STEERED:
                self._items.append(fields.get("input", ""))
            case EventType.RUN_WAITING:
                self.asked = frozenset(request["call"] for request in fields.get("requests", ()))
            case EventType.RUN_RESUMED:
                self.asked = frozenset()
            case _:
                pass

    def text(self) -> str:
        """Every undiscarded text part, joined in order of appearance: what a reader has on the screen."""
        return "".join(part.text for part in self._items if isinstance(part, _Part) and self._shown(part))

    def partial(self) -> str:
        """`text()`, with the last discarded text where nothing followed it."""
        return self.text() + self._last_discarded

    def usage(self) -> dict[str, int | float]:
        """Sums over model.responded and tool.responded: requests, input and output tokens, what else models count."""
        return self.spent.totals()

    @property
    def ttft_ms(self) -> int | None:
        """From the creation to the first text or reasoning, by the times in the log; None where there is neither."""
        if not (self._created_at and self._content_at):
            return None
        return max(0, moment_ms(self._content_at) - moment_ms(self._created_at))

    @property
    def tool_calls(self) -> int:
        """How many calls were asked for; one that was taken back before it ended is not counted."""
        return sum(1 for c in self._calls.values() if not c.discarded or c.outcome is not None)

    def part_text(self, number: int) -> str:
        """The text of one part so far."""
        part = self._parts.get(number)
        return "" if part is None else part.text

    def open_calls(self) -> list[OpenCall]:
        """The tool calls without an end, in order."""
        return [OpenCall(c.call, c.name, c.at) for c in self._calls.values() if c.outcome is None and not c.discarded]

    def open_parts(self) -> list[int]:
        """The undiscarded parts without a done, in order."""
        return [p.number for p in self._parts.values() if not p.done and not p.discarded]

    def next_part(self) -> int:
        """The first free part number."""
        return max(self._parts, default=-1) + 1

    def parts(self) -> list[int]:
        """Every undiscarded part, for attempt.discarded."""
        return [p.number for p in self._parts.values() if not p.discarded]

    def calls(self) -> list[str]:
        """Every undiscarded call, for attempt.discarded; one whose arguments were never whole is shown, too."""
        return [name for name, discarded in self._named.items() if not discarded]

    def names(self) -> frozenset[str]:
        """Every call that was ever named: a later one needs a name of its own."""
        return frozenset(self._named)

    def messages(self, *, completed: bool, user: str | None = None) -> list[Message]:
        """The run as neutral messages: each call has a result, an answer that was cut short says so.

        Args:
            completed: Whether the run completed; else its last answer is marked interrupted.
            user: The user's message; None takes the input of run.created, "" leaves it out.
        """
        fold = _Fold(handed=completed)
        first = self.input if user is None else user
        if first:
            fold.out.append(Message(role="user", text=first))
        for item in self._items:
            if isinstance(item, str):
                fold.user(item)
                continue
            if item.discarded:
                continue
            if isinstance(item, _Part):
                if item.text_kind:
                    fold.say(item.text)
            else:
                fold.call(item)
        if self._last_discarded and not completed:
            fold.say(self._last_discarded)
        fold.close(interrupted=not completed)
        return fold.out

    def _part(self, number: int, *, text_kind: bool) -> _Part:
        part = self._parts.get(number)
        if part is None:
            part = self._parts[number] = _Part(number, self._step, text_kind=text_kind)
            self._items.append(part)
        return part

    def _part_done(self, fields: Mapping[str, Any], *, text_kind: bool) -> None:
        part = self._part(fields["part"], text_kind=text_kind)
        part.chunks = [fields["text"]] if isinstance(fields["text"], str) else part.chunks
        part.done = True

    def _finished(self, fields: Mapping[str, Any]) -> None:
        call = self._calls.get(fields["call"])
        if call is not None and call.outcome is None:
            call.outcome = fields["outcome"]
            call.result = fields.get("result")

    def _discard(self, fields: Mapping[str, Any]) -> None:
        dropped = []
        for number in fields.get("parts", ()):
            part = self._parts.get(number)
            if part is not None and not part.discarded:
                part.discarded = True
                if part.text_kind:
                    dropped.append(part.text)
        for name in fields.get("calls", ()):
            self._named[name] = True
            call = self._calls.get(name)
            if call is not None:
                call.discarded = True
        self._last_discarded = "".join(dropped) or self._last_discarded

    @staticmethod
    def _shown(part: _Part) -> bool:
        return part.text_kind and not part.discarded


class _Fold:
    """Builds messages: consecutive text and calls share one assistant message, results close it."""

    def __init__(self, *, handed: bool) -> None:
        self._handed = handed  # whether a call without an end is the client's to answer
        self.out: list[Message] = []
        self._text: list[str] = []
        self._calls: list[_Call] = []

    def say(self, text: str) -> None:
        if self._calls:
            self.close(interrupted=False)
        if text:
            self._text.append(text)

    def call(self, call: _Call) -> None:
        if self._calls and self._calls[-1].step != call.step:
            self.close(interrupted=False)
        self._calls.append(call)

    def user(self, text: str) -> None:
        self.close(interrupted=False)
        self.out.append(Message(role="user", text=text))

    def close(self, *, interrupted: bool) -> None:
        if not self._text and not self._calls:
            return
        text, calls = "".join(self._text), self._calls
        self._text, self._calls = [], []
        asked = [ToolCall(call=c.call, name=c.name, args=c.args) for c in calls]
        self.out.append(
            Message(
                role="assistant",
                text=text,
                calls=asked,
                interrupted=interrupted and not calls,
            )
        )
        for c in calls:
            if self._handed and c.outcome is None:
                continue
            outcome = c.outcome or "interrupted"
            result = c.result if c.outcome else INTERRUPTED
            self.out.append(
                Message(
                    role="tool",
                    call=c.call,
                    name=c.name,
                    outcome=outcome,
                    result=result,
                )
            )

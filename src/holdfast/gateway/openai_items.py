"""The output items of OpenAI's Responses API, each with the stream events of its life. Pure.

Each part of text is a message item of its own, each part of reasoning a reasoning item. A call is a function_call
item; of the agent's own tools a function_call_output item follows, so that no client takes the call for its own to
answer.
"""

from __future__ import annotations

from typing import Any, Final

from holdfast.domain.events import encode_json

Told = dict[str, Any]  # a stream event without its number
Value = dict[str, Any]

_INTERRUPTED: Final = "the tool call was interrupted before a result was produced"


class TextItem:
    """A part of text as a message, or a part of reasoning as a reasoning item."""

    def __init__(self, run: str, name: str, index: int, *, reasoning: bool) -> None:
        """Name it; `begin` tells of it."""
        self.closed = False
        self._reasoning = reasoning
        self._index = index
        self._id = f"{'rs' if reasoning else 'msg'}_{run}_{name}"
        self._status = "in_progress"
        self._chunks: list[str] = []

    def begin(self) -> list[Told]:
        """The item and its one part of content, both empty."""
        return [_added(self._index, self.value(empty=True)), self._part("response.content_part.added")]

    def delta(self, text: str) -> list[Told]:
        """More text."""
        self._chunks.append(text)
        kind = "response.reasoning_text.delta" if self._reasoning else "response.output_text.delta"
        return [{"type": kind, **self._place(), "delta": text, **self._logprobs()}]

    def close(self, status: str) -> list[Told]:
        """The whole text, and the end of the item."""
        self.closed, self._status = True, status
        kind = "response.reasoning_text.done" if self._reasoning else "response.output_text.done"
        return [
            {"type": kind, **self._place(), "text": self._text(), **self._logprobs()},
            self._part("response.content_part.done"),
            _done(self._index, self.value()),
        ]

    def value(self, *, empty: bool = False) -> Value:
        """The item."""
        content = [] if empty else [self._content()]
        if self._reasoning:
            return {"id": self._id, "type": "reasoning", "summary": [], "content": content, "status": self._status}
        return {"id": self._id, "type": "message", "role": "assistant", "status": self._status, "content": content}

    def _part(self, kind: str) -> Told:
        return {"type": kind, **self._place(), "part": self._content()}

    def _content(self) -> Value:
        if self._reasoning:
            return {"type": "reasoning_text", "text": self._text()}
        return {"type": "output_text", "text": self._text(), "annotations": [], "logprobs": []}

    def _text(self) -> str:
        if len(self._chunks) > 1:
            self._chunks = ["".join(self._chunks)]
        return self._chunks[0] if self._chunks else ""

    def _place(self) -> Value:
        return {"item_id": self._id, "output_index": self._index, "content_index": 0}

    def _logprobs(self) -> Value:
        return {} if self._reasoning else {"logprobs": []}


class CallItem:
    """A call as a function_call item."""

    def __init__(self, run: str, number: int, call: str, name: str, index: int) -> None:
        """Name it; `begin` tells of it."""
        self.call = call
        self.closed = False  # its arguments are whole, or never will be
        self.answered = False
        self._name = name
        self._index = index
        self._id = f"fc_{run}_{number}"
        self._status = "in_progress"
        self._arguments = ""
        self._deltas: list[str] = []

    def begin(self) -> list[Told]:
        """The item, without arguments."""
        return [_added(self._index, self.value())]

    def delta(self, text: str) -> list[Told]:
        """More of its arguments."""
        self._deltas.append(text)
        return [{"type": "response.function_call_arguments.delta", **self._place(), "delta": text}]

    def close(self, status: str, args: Any = None) -> list[Told]:
        """The whole arguments, and the end of the item."""
        self.closed, self._status = True, status
        written = "".join(self._deltas)
        self._deltas = []
        self._arguments = written or ("" if args is None else args if isinstance(args, str) else _json(args))
        told: list[Told] = []
        if status == "completed":
            kind = "response.function_call_arguments.done"
            told = [{"type": kind, **self._place(), "name": self._name, "arguments": self._arguments}]
        return [*told, _done(self._index, self.value())]

    def value(self) -> Value:
        """The item."""
        return {
            "id": self._id,
            "type": "function_call",
            "call_id": self.call,
            "name": self._name,
            "arguments": self._arguments,
            "status": self._status,
        }

    def _place(self) -> Value:
        return {"item_id": self._id, "output_index": self._index}


class OutputItem:
    """What a tool of the agent's own answered, as a function_call_output item."""

    closed = True

    def __init__(self, run: str, number: int, call: str, index: int, result: Any, outcome: str) -> None:
        """Take the result; `outcome` as in tool.finished, or "" where the call never had one."""
        text = result if isinstance(result, str) else "" if result is None and outcome else _json(result)
        self._index = index
        self._value = {
            "id": f"fco_{run}_{number}",
            "type": "function_call_output",
            "call_id": call,
            "output": text if outcome else _INTERRUPTED,
            "status": "completed" if outcome == "success" else "incomplete",
        }

    def begin(self) -> list[Told]:
        """The item, which comes whole."""
        return [_added(self._index, self._value), _done(self._index, self._value)]

    def value(self) -> Value:
        """The item."""
        return self._value


Item = TextItem | CallItem | OutputItem


def _added(index: int, item: Value) -> Told:
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def _done(index: int, item: Value) -> Told:
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def _json(value: Any) -> str:
    return encode_json(value).decode()

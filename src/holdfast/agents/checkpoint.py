"""A run's own messages as bytes: checkpoints, results and what is recovered of a run that broke off are one form.

    {"v": 1, "step": 2, "messages": [...], "finished": {"call_1": [...]}}

`messages` are pydantic-ai's, of this run only, never of the session before it. `finished` holds the results of
the last response's calls that have ended so far: the loop writes them into `messages` only when all have. So a
checkpoint, too, can be read as history. `asked` names those of its calls that have not begun, because a decision about
them is awaited: call -> kind. `steered` is what the user wrote since.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pydantic
import pydantic_core
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    ToolCallPart,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
)

from holdfast.domain.events import mended

VERSION = 1


def as_one(steered: list[str]) -> str:
    """Inputs that are read at once are one turn of the user's: no provider takes two in a row."""
    return "\n\n".join(steered)


class BadCheckpoint(ValueError):
    """Bytes that this adapter did not write, or wrote in a form that it no longer reads."""


class _Form(msgspec.Struct):
    v: int
    step: int
    messages: msgspec.Raw
    finished: dict[str, msgspec.Raw] = {}
    asked: dict[str, str] = {}
    steered: list[str] = []


class Finished(msgspec.Struct, frozen=True):
    """A tool's result, and what the tool wants the model to read beside it."""

    part: ToolReturnPart
    content: Any = None

    def request(self) -> ModelRequest:
        """As a message of its own."""
        beside = [UserPromptPart(self.content)] if self.content else []
        return ModelRequest(parts=[self.part, *beside])


class Progress(msgspec.Struct):
    """How far a run has come.

    Attributes:
        step: Model responses so far.
        messages: The run's messages, input first.
        finished: Call -> result, of the last response's calls.
        asked: Call -> kind, of those that wait for a decision.
        steered: What the user wrote since the last response.
    """

    step: int
    messages: list[ModelMessage]
    finished: dict[str, Finished] = {}
    asked: dict[str, str] = {}
    steered: list[str] = []

    def history(self) -> list[ModelMessage]:
        """All of it as messages, the finished calls of an unfinished step included."""
        results = [done.request() for done in self.finished.values()]
        steered = [ModelRequest(parts=[UserPromptPart(as_one(self.steered))])] if self.steered else []
        return [*self.messages, *results, *steered]

    def in_flight(self) -> list[str]:
        """The calls of the last response that have no result: they may have run, or not."""
        last = self.messages[-1] if self.messages else None
        if not isinstance(last, ModelResponse):
            return []
        calls = [part.tool_call_id for part in last.parts if isinstance(part, ToolCallPart)]
        return [call for call in calls if call not in self.finished and call not in self.asked]


class Writer:
    """Encodes one run's progress; each message list is encoded once, however many tools finish after it."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._encoder = msgspec.json.Encoder()
        self._form = _Form(VERSION, 0, msgspec.Raw(b"[]"))

    def messages(self, step: int, messages: list[ModelMessage]) -> bytes:
        """A checkpoint after a whole response, or the whole run."""
        self._form = _Form(VERSION, step, msgspec.Raw(_dumped(messages)), {}, {}, [])
        return self._encoder.encode(self._form)

    def recovered(self, step: int, messages: list[ModelMessage]) -> bytes:
        """A run that broke off: its messages, and the results that the loop has not yet written into them."""
        told = {part.tool_call_id for message in messages for part in message.parts if isinstance(part, ToolReturnPart)}
        finished = {call: raw for call, raw in self._form.finished.items() if call not in told}
        said = [part.content for message in messages for part in message.parts if isinstance(part, UserPromptPart)]
        steered = [] if as_one(self._form.steered) in said else self._form.steered
        self.messages(step, messages)
        self._form.finished, self._form.steered = finished, steered
        return self._encoder.encode(self._form)

    def resume(self, progress: Progress) -> None:
        """Go on from what an earlier attempt wrote."""
        self.messages(progress.step, progress.messages)
        for call, done in progress.finished.items():
            self.finished(call, done.part, done.content)
        self._form.asked, self._form.steered = dict(progress.asked), list(progress.steered)

    def asked(self, calls: dict[str, str]) -> bytes:
        """The same checkpoint where `calls` wait for a decision, and none where they begin."""
        self._form.asked = calls
        return self._encoder.encode(self._form)

    def steered(self, text: str) -> bytes:
        """The same checkpoint with one more input."""
        self._form.steered.append(text)
        return self._encoder.encode(self._form)

    def finished(self, call: str, part: ToolReturnPart, content: str | list[UserContent] | None) -> bytes:
        """The same checkpoint with one more result."""
        done = _dumped([Finished(part, content).request()])
        self._form.finished[call] = msgspec.Raw(done)
        return self._encoder.encode(self._form)


def read(data: bytes) -> Progress:
    """What `Writer` wrote.

    Raises:
        BadCheckpoint: It did not write this.
    """
    try:
        form = msgspec.json.decode(data, type=_Form)
        if form.v != VERSION:
            raise BadCheckpoint(f"checkpoint of version {form.v}, this adapter reads {VERSION}")
        messages = ModelMessagesTypeAdapter.validate_json(bytes(form.messages))
        finished = {call: _finished(bytes(raw)) for call, raw in form.finished.items()}
    except (msgspec.MsgspecError, pydantic.ValidationError) as error:
        raise BadCheckpoint(f"unreadable checkpoint of {len(data)} bytes: {error}"[:500]) from error
    return Progress(form.step, messages, finished, form.asked, form.steered)


def _dumped(messages: list[ModelMessage]) -> bytes:
    try:
        return ModelMessagesTypeAdapter.dump_json(messages)
    except pydantic_core.PydanticSerializationError:  # half a character of a model: it could not be sent back either
        for message in messages:
            for part in message.parts:
                for name, value in vars(part).items():
                    setattr(part, name, mended(value))
        return ModelMessagesTypeAdapter.dump_json(messages)


def _finished(raw: bytes) -> Finished:
    request = ModelMessagesTypeAdapter.validate_json(raw)[0]
    part = request.parts[0]
    if not isinstance(part, ToolReturnPart):
        raise BadCheckpoint(f"a finished call holds a {type(part).__name__}")
    beside = request.parts[1] if len(request.parts) > 1 else None
    return Finished(part, beside.content if isinstance(beside, UserPromptPart) else None)

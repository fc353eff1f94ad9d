"""OpenAI's chat completions as bytes: the request decoded, pieces of an answer encoded as chunks or as one body.

The first delta carries the role together with its token, so that a stream of n tokens is n content chunks. Reasoning
goes into `reasoning_content`, which clients of DeepSeek, vLLM and pydantic-ai read.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, assert_never

import msgspec

from holdfast.rehearsal.answer import (
    CallArgs,
    CallStart,
    Comment,
    Ending,
    Finish,
    Garbage,
    Piece,
    Text,
    Thought,
)

__all__ = ["DONE", "BadRequest", "Body", "Chunks", "Request", "encode", "error_body", "read_request"]

DONE = b"data: [DONE]\n\n"
FINGERPRINT = "holdfast-rehearsal"
MODEL = "rehearsal"
STREAM_ERROR = "rehearsal: the error of !error_in_stream"
GARBAGE = b'{"id": "chatcmpl-rehearsal", "choices": [{"delta": {"content": '

encode = msgspec.json.encode


class BadRequest(ValueError):
    """A request that is not one, and why."""


class Part(msgspec.Struct):
    """A part of a message's content; only text parts are read."""

    type: str
    text: str | None = None


class Message(msgspec.Struct):
    """A message of the request, as far as a rehearsal reads it."""

    role: str
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        """The text of the message, whichever way it was sent."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.type == "text" and part.text)
        return self.content or ""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Wire(msgspec.Struct):
    messages: msgspec.Raw
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class Request(NamedTuple):
    """What a rehearsal needs to know of a request."""

    messages: Sequence[Message]
    model: str
    stream: bool
    include_usage: bool
    digest: str  # equal for equal lists of messages

    @property
    def prompt(self) -> str:
        """What the user said last."""
        return next((message.text for message in reversed(self.messages) if message.role == "user"), "")

    @property
    def prompt_tokens(self) -> int:
        """A count that grows with the prompt: its words."""
        return sum(len(message.text.split()) for message in self.messages)


class Usage(NamedTuple):
    """Token counts as reported."""

    prompt: int
    completion: int
    reasoning: int

    def as_json(self) -> dict[str, Any]:
        """OpenAI's `usage`."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


def read_request(body: bytes) -> Request:
    """Decode the body of a chat completions request; fields that a rehearsal has no use for are ignored.

    Raises:
        BadRequest: The body is not such a request; the message says where.
    """
    try:
        wire = msgspec.json.decode(body, type=_Wire)
        messages = msgspec.json.decode(wire.messages, type=list[Message])
        canonical = encode(msgspec.json.decode(wire.messages), order="sorted")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"not a chat completions request: {error}") from None
    return Request(
        messages=messages,
        model=wire.model or MODEL,
        stream=bool(wire.stream),
        include_usage=bool(wire.stream_options and wire.stream_options.include_usage),
        digest=hashlib.blake2b(canonical, digest_size=8).hexdigest(),
    )


def error_body(message: str, kind: str, code: str | None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class Chunks:
    """Encodes the pieces of a streamed answer as server-sent events."""

    def __init__(self, answer_id: str, model: str) -> None:
        """Fix what every chunk of this answer repeats."""
        head = {
            "id": answer_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }
        self._head = b"data: " + encode(head)[:-1] + b',"choices":['
        self._role: dict[str, Any] = {"role": "assistant"}

    def piece(self, piece: Piece) -> bytes:
        """The event, or the bytes, of one piece."""
        match piece:
            case Text(text=text):
                return self._delta({"content": text})
            case Thought(text=text):
                return self._delta({"reasoning_content": text})
            case CallStart(index=index, call=call, name=name):
                function = {"name": name, "arguments": ""}
                start = {"index": index, "id": call, "type": "function", "function": function}
                return self._delta({"tool_calls": [start]})
            case CallArgs(index=index, text=text):
                return self._delta({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            case Comment():
                return b": rehearsal\n\n"
            case Garbage():
                return b"data: " + GARBAGE + b"\n\n"
            case Finish(reason=reason):
                return self._delta({}, reason)
            case Ending(kind="error", error=code):
                error = error_body(STREAM_ERROR, "server_error", code)
                return b"data: " + encode(error) + b"\n\n"
            case Ending():
                return b""
            case _:
                assert_never(piece)

    def usage(self, usage: Usage) -> bytes:
        """The chunk that only reports usage."""
        return self._head + b'],"usage":' + encode(usage.as_json()) + b"}\n\n"

    def _delta(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        if self._role:
            delta = {**self._role, **delta}
            self._role = {}
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return self._head + encode(choice) + b"]}\n\n"


class Body:
    """Collects the pieces of an answer that is not streamed into its one body."""

    def __init__(self, answer_id: str, model: str) -> None:
        """Fix the frame of the body."""
        self._id = answer_id
        self._model = model
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []
        self._finish = "stop"
        self._garbled = False

    def take(self, piece: Piece) -> None:
        """Add one piece."""
        match piece:
            case Text(text=text):
                self._texts.append(text)
            case Thought(text=text):
                self._thoughts.append(text)
            case CallStart(call=call, name=name):
                self._calls.append((call, name, []))
            case CallArgs(index=index, text=text):
                self._calls[index][2].append(text)
            case Garbage():
                self._garbled = True
            case Finish(reason=reason):
                self._finish = reason
            case Comment() | Ending():
                pass
            case _:
                assert_never(piece)

    def encode(self, usage: Usage) -> bytes:
        """The whole body; not JSON if a piece of it was not."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts) or None}
        if self._thoughts:
            message["reasoning_content"] = "".join(self._thoughts)
        if self._calls:
            message["tool_calls"] = [
                {"id": call, "type": "function", "function": {"name": name, "arguments": "".join(args)}}
                for call, name, args in self._calls
            ]
        body = encode(
            {
                "id": self._id,
                "object": "chat.completion",
                "created": int(time.time()),
                "model": self._model,
                "system_fingerprint": FINGERPRINT,
                "choices": [{"index": 0, "message": message, "finish_reason": self._finish}],
                "usage": usage.as_json(),
            }
        )
        return GARBAGE + body if self._garbled else body

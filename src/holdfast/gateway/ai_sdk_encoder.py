"""A run's log as the AI SDK's UI message stream, version 1.

One run is one assistant message, `msg_<run>`. Every byte follows from the log: a stream that is resumed is the same
stream from its start, which is how `useChat` resumes (the chunk `start` lets it build the message anew).

A step of the message is one request to the model with the calls that it asked for. `attempt.discarded` takes parts
and calls of the last step back: `reset-step` empties that step, and what stays of it is said again. A discard that
reaches into an earlier step ends the stream with an error, because the protocol cannot take those back.

Chunks that end a message: `finish` (completed, or it waits for somebody), `error` (failed), `abort` (cancelled);
exactly one of them, then `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from holdfast.domain.events import EventType, decode_event, encode_json
from holdfast.ports.store import Page, RunRecord

DONE: Final = b"data: [DONE]\n\n"
_NOTICES: Final = frozenset({EventType.MODEL_RETRIED, EventType.RUN_STALLED, EventType.DEGRADED})
_FINISH: Final = {"length": "length", "content_filter": "content-filter", "error": "error"}
_OPEN: Final = "the run ended before this call did"

Chunk = dict[str, Any]


class _Part:
    """A text or a reasoning on the screen."""

    __slots__ = ("chunks", "done", "id", "kind")

    def __init__(self, kind: str, number: int) -> None:
        self.kind = kind  # text or reasoning, as the chunks are named
        self.id = str(number)
        self.chunks: list[str] = []
        self.done = False

    def again(self) -> list[Chunk]:
        """Everything that was said in it, once more."""
        said: list[Chunk] = [{"type": f"{self.kind}-start", "id": self.id}]
        said.append({"type": f"{self.kind}-delta", "id": self.id, "delta": "".join(self.chunks)})
        return said + self.end() if self.done else said

    def end(self) -> list[Chunk]:
        self.done = True
        return [{"type": f"{self.kind}-end", "id": self.id}]


class _Call:
    """A tool call on the screen."""

    __slots__ = ("args", "called", "chunks", "ended", "id", "name", "started")

    def __init__(self, call: str, name: str) -> None:
        self.id = call
        self.name = name
        self.args = ""
        self.started = False  # its arguments came in pieces
        self.called: Any = None  # its whole arguments, in a list of one
        self.ended = False
        self.chunks: list[Chunk] = []  # what was said of it since

    def again(self) -> list[Chunk]:
        """Everything that was said of it, once more."""
        said = [self.start(), self.delta(self.args)] if self.started else []
        return [*said, *([self.available()] if self.called else []), *self.chunks]

    def start(self) -> Chunk:
        return {"type": "tool-input-start", "toolCallId": self.id, "toolName": self.name}

    def delta(self, text: str) -> Chunk:
        return {"type": "tool-input-delta", "toolCallId": self.id, "inputTextDelta": text}

    def available(self) -> Chunk:
        return {"type": "tool-input-available", "toolCallId": self.id, "toolName": self.name, "input": self.called[0]}

    def broken(self) -> Chunk:
        """How a call ends that had no end in the log."""
        if self.called:
            return {"type": "tool-output-error", "toolCallId": self.id, "errorText": _OPEN}
        named = {"toolCallId": self.id, "toolName": self.name}
        return {"type": "tool-input-error", **named, "input": self.args, "errorText": _OPEN}


class UIMessageEncoder:
    """Chunks of one run's log. Pure: a function of the events it was given and of where its reader is."""

    media_type = "text/event-stream"
    keepalive = b": keepalive\n\n"

    def __init__(self, record: RunRecord, *, after: int = 0, through: int = 0) -> None:
        """Take where the reader is.

        Args:
            record: The run.
            after: The reader has what the log says up to here: nothing of it is written.
            through: A `run.waiting` up to here was decided already and ends nothing.
        """
        self._named = {"run": record.key.run, "session": record.session}
        self._id = message_id(record.key.run)
        self._after = after
        self._through = max(after, through)
        self._parts: dict[int, _Part] = {}
        self._calls: dict[str, _Call] = {}
        self._step: list[_Part | _Call] | None = None  # what the open step shows
        self._text_shown = False
        self._finish = "stop"
        self._ended = False
        self.waiting = False  # it ended because the run waits for somebody

    def begin(self) -> bytes:
        """The message's id, at once: a client has headers and a body before the model's first word."""
        return _frames([{"type": "start", "messageId": self._id, "messageMetadata": self._named}])

    def ended(self) -> bool:
        """After [DONE] nothing is written."""
        return self._ended

    def page(self, page: Page) -> bytes:
        """The chunks of a page's events."""
        out = []
        for seq, data in enumerate(page.events, page.first):
            if self._ended:
                break
            event = decode_event(data)
            chunks = self._event(event["type"], event, seq)
            if seq > self._after:
                out.append(_frames(chunks))
        if self._ended:
            out.append(DONE)
        return b"".join(out)

    def notice(self, kind: str, fields: dict[str, Any]) -> bytes:
        """A log that cannot be read on ends the stream with an error."""
        if kind == "resync":
            return b""
        self._ended = True
        return _frames([_error(str(fields.get("detail", kind)), str(fields.get("remedy", "")))]) + DONE

    def _event(self, kind: str, event: dict[str, Any], seq: int) -> list[Chunk]:
        match kind:
            case EventType.TEXT_DELTA | EventType.REASONING_DELTA:
                return self._delta(event, "text" if kind == EventType.TEXT_DELTA else "reasoning")
            case EventType.TEXT_DONE | EventType.REASONING_DONE:
                return self._done(event, "text" if kind == EventType.TEXT_DONE else "reasoning")
            case EventType.TOOL_ARGS | EventType.TOOL_CALLED | EventType.TOOL_PROGRESS | EventType.TOOL_FINISHED:
                return self._tool(kind, event)
            case EventType.MODEL_REQUESTED:
                return self._close_step()
            case EventType.MODEL_RESPONDED:
                self._finish = _FINISH.get(str(event.get("finish_reason")), "stop")
                return []
            case EventType.ATTEMPT_DISCARDED:
                return self._discard(event)
            case EventType.RUN_WAITING:
                return self._wait(event, seq)
            case EventType.RUN_RESUMED:
                return self._resumed(event)
            case EventType.STEERED:
                return [{"type": "data-steered", "id": f"steered-{seq}", "data": {"input": event.get("input")}}]
            case EventType.RUN_COMPLETED | EventType.RUN_FAILED | EventType.RUN_CANCELLED:
                return self._end(kind, event)
            case _ if kind in _NOTICES:
                told = {k: v for k, v in event.items() if k not in ("seq", "run", "ts")}
                return [{"type": "data-notice", "data": told, "transient": True}]
            case _:
                return []

    def _delta(self, event: dict[str, Any], kind: str) -> list[Chunk]:
        opened = self._part(event["part"], kind)
        part = self._parts[event["part"]]
        part.chunks.append(event["text"])
        self._text_shown = self._text_shown or kind == "text"
        return [*opened, {"type": f"{kind}-delta", "id": part.id, "delta": event["text"]}]

    def _done(self, event: dict[str, Any], kind: str) -> list[Chunk]:
        part = self._parts.get(event["part"])
        if part is None or part.done:
            return []
        return part.end()

    def _part(self, number: int, kind: str) -> list[Chunk]:
        if number in self._parts:
            return []
        part = self._parts[number] = _Part(kind, number)
        return [*self._show(part), {"type": f"{kind}-start", "id": part.id}]

    def _tool(self, kind: str, event: dict[str, Any]) -> list[Chunk]:
        call = self._calls.get(event["call"])
        opened: list[Chunk] = []
        if kind == EventType.TOOL_PROGRESS:
            told = {"call": event["call"], "text": event.get("text")}
            return [{"type": "data-tool-progress", "data": told, "transient": True}]
        if call is None:
            call = self._calls[event["call"]] = _Call(event["call"], event.get("name", ""))
            opened = self._show(call)
        if kind == EventType.TOOL_ARGS:
            first = [] if call.started else [call.start()]
            call.started = True
            call.args += event["delta"]
            return [*opened, *first, call.delta(event["delta"])]
        if kind == EventType.TOOL_CALLED:
            return opened + self._called(call, event.get("args"))
        if call.ended:
            return opened
        if not call.called:
            opened += self._called(call, None)
        call.ended = True
        chunk = _output(event)
        call.chunks.append(chunk)
        return [*opened, chunk]

    @staticmethod
    def _called(call: _Call, args: Any) -> list[Chunk]:
        """Its arguments; a second time only where somebody who decided about it changed them."""
        if call.called and call.called[0] == args:
            return []
        call.called = [args]
        return [call.available()]

    def _discard(self, event: dict[str, Any]) -> list[Chunk]:
        parts = {number for number in event.get("parts", ()) if number in self._parts}
        calls = {name for name in event.get("calls", ()) if name in self._calls}
        step = self._step or []
        calls |= {item.id for item in step if isinstance(item, _Call) and not item.called}
        if not parts and not calls:
            return []
        dropped: list[_Part | _Call] = [self._parts.pop(n) for n in parts] + [self._calls.pop(n) for n in calls]
        if any(item not in step for item in dropped):
            self._ended = True
            why = f"the answer so far was withdrawn ({event.get('reason')}), further back than this protocol can say"
            return [*self._close_open(), _error(why, "load the chat's messages again")]
        self._step = [item for item in step if item not in dropped]
        self._text_shown = any(part.kind == "text" for part in self._parts.values())
        return [{"type": "reset-step"}, *(chunk for item in self._step for chunk in item.again())]

    def _wait(self, event: dict[str, Any], seq: int) -> list[Chunk]:
        out: list[Chunk] = []
        for request in event.get("requests", ()):
            call = self._calls.get(request["call"])
            if call is None:
                call = self._calls[request["call"]] = _Call(request["call"], request.get("name", ""))
                out += self._show(call)
            if not call.called:
                out += self._called(call, request.get("args"))
            if request.get("kind") == "approval":
                chunk: Chunk = {"type": "tool-approval-request", "approvalId": call.id, "toolCallId": call.id}
                if request.get("metadata"):
                    chunk["approvalDescriptor"] = request["metadata"]
                call.chunks.append(chunk)
                out.append(chunk)
        if seq <= self._through:
            return out
        self._ended = self.waiting = True
        for part in self._open_parts():
            out += part.end()
        metadata = {**self._named, "state": "waiting"}
        return [
            *out,
            *self._close_step(),
            {"type": "finish", "finishReason": "tool-calls", "messageMetadata": metadata},
        ]

    def _resumed(self, event: dict[str, Any]) -> list[Chunk]:
        out: list[Chunk] = []
        for decision in event.get("decisions", ()):
            call = self._calls.get(decision["call"])
            if call is None or not any(chunk["type"] == "tool-approval-request" for chunk in call.chunks):
                continue
            chunk: Chunk = {"type": "tool-approval-response", "approvalId": call.id}
            chunk["approved"] = bool(decision.get("approve"))
            if decision.get("message"):
                chunk["reason"] = decision["message"]
            call.chunks.append(chunk)
            out.append(chunk)
            if chunk["approved"] and "args" in decision:
                out += self._called(call, decision["args"])
        return out

    def _end(self, kind: str, event: dict[str, Any]) -> list[Chunk]:
        out: list[Chunk] = []
        output = event.get("output")
        if kind == EventType.RUN_COMPLETED and isinstance(output, str) and output and not self._text_shown:
            number = max(self._parts, default=-1) + 1
            out += self._delta({"part": number, "text": output}, "text")
        elif kind == EventType.RUN_COMPLETED and output is not None and not isinstance(output, str):
            out.append({"type": "data-output", "id": "output", "data": output})
        out += self._close_open() + self._close_step(last=True)
        self._ended = True
        state = kind.removeprefix("run.")
        metadata = {
            **self._named,
            "state": state,
            "reason": event.get("reason", "finished"),
            "usage": event.get("usage"),
        }
        if kind == EventType.RUN_COMPLETED:
            return [*out, {"type": "finish", "finishReason": self._finish, "messageMetadata": metadata}]
        out.append({"type": "message-metadata", "messageMetadata": metadata})
        if kind == EventType.RUN_CANCELLED:
            return [*out, {"type": "abort", "reason": str(event.get("reason", ""))}]
        error = event.get("error") or {}
        message = error.get("message") or f"the run failed: {str(event.get('reason', '')).replace('_', ' ')}"
        return [*out, _error(message, error.get("remedy") or "")]

    def _show(self, item: _Part | _Call) -> list[Chunk]:
        """Put it into the open step, which is opened if there is none."""
        if self._step is not None:
            self._step.append(item)
            return []
        self._step = [item]
        return [{"type": "start-step"}]

    def _close_step(self, *, last: bool = False) -> list[Chunk]:
        if not self._step and not (last and self._step is not None):
            return []  # none, or one that was emptied and is begun anew
        self._step = None
        return [{"type": "finish-step"}]

    def _open_parts(self) -> Iterable[_Part]:
        return [part for part in self._parts.values() if not part.done]

    def _close_open(self) -> list[Chunk]:
        """End what the log left open: nothing on the screen goes on for ever."""
        out = [chunk for part in self._open_parts() for chunk in part.end()]
        for call in self._calls.values():
            if not call.ended:
                call.ended = True
                out.append(call.broken())
        return out


def message_id(run: str) -> str:
    """The id of the message that a run is."""
    return f"msg_{run}"


def _output(event: dict[str, Any]) -> Chunk:
    call, outcome, result = event["call"], event.get("outcome"), event.get("result")
    if outcome == "success":
        return {"type": "tool-output-available", "toolCallId": call, "output": result}
    if outcome == "denied":
        return {"type": "tool-output-denied", "toolCallId": call}
    text = result if isinstance(result, str) else encode_json(result).decode()
    return {"type": "tool-output-error", "toolCallId": call, "errorText": f"{outcome}: {text}"}


def _error(message: str, remedy: str) -> Chunk:
    return {"type": "error", "errorText": f"{message}; {remedy}" if remedy else message}


def _frames(chunks: Iterable[Chunk]) -> bytes:
    return b"".join(b"data: %b\n\n" % encode_json(chunk) for chunk in chunks)

"""A run's log as AG-UI 1.0 events.

Message ids follow from the log: `<run>-<part>` for texts and reasoning, the call for a call, `<call>-result` for its
result. What `attempt.discarded` takes back is ended, and a MESSAGES_SNAPSHOT without it follows: it says the whole
conversation anew, which is how this protocol corrects what a client has. A reader that comes back gets the same: the
snapshot of what is finished, then whatever is still being said, from its start.

The last event is exactly one of RUN_FINISHED (outcome success, interrupt or cancelled) and RUN_ERROR.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from holdfast.domain.events import EventType, decode_event, encode_json
from holdfast.domain.messages import HistoryEntry, Message
from holdfast.ports.store import Page, RunRecord

_NOTICES: Final = frozenset({EventType.MODEL_RETRIED, EventType.RUN_STALLED, EventType.DEGRADED})
_OPEN: Final = "interrupted: the run ended before this call did"
_APPROVAL: Final = {
    "type": "object",
    "properties": {
        "approved": {"type": "boolean"},
        "editedArgs": {"type": "object"},
        "reason": {"type": "string"},
    },
    "required": ["approved"],
}

Event = dict[str, Any]


class _Part:
    __slots__ = ("chunks", "done", "id", "text_kind")

    def __init__(self, message: str, *, text_kind: bool) -> None:
        self.id = message
        self.text_kind = text_kind
        self.chunks: list[str] = []
        self.done = False

    def message(self) -> Event:
        role = "assistant" if self.text_kind else "reasoning"
        return {"id": self.id, "role": role, "content": "".join(self.chunks)}

    def start(self) -> list[Event]:
        if self.text_kind:
            return [{"type": "TEXT_MESSAGE_START", "messageId": self.id, "role": "assistant"}]
        return [
            {"type": "REASONING_START", "messageId": self.id},
            {"type": "REASONING_MESSAGE_START", "messageId": self.id, "role": "reasoning"},
        ]

    def delta(self, text: str) -> list[Event]:
        kind = "TEXT_MESSAGE_CONTENT" if self.text_kind else "REASONING_MESSAGE_CONTENT"
        return [{"type": kind, "messageId": self.id, "delta": text}]

    def end(self) -> list[Event]:
        self.done = True
        if self.text_kind:
            return [{"type": "TEXT_MESSAGE_END", "messageId": self.id}]
        return [
            {"type": "REASONING_MESSAGE_END", "messageId": self.id},
            {"type": "REASONING_END", "messageId": self.id},
        ]

    def again(self) -> list[Event]:
        return [*self.start(), *self.delta("".join(self.chunks))]


class _Call:
    __slots__ = ("args", "called", "id", "name", "result")

    def __init__(self, call: str, name: str) -> None:
        self.id = call
        self.name = name
        self.args = ""
        self.called = False
        self.result: str | None = None

    def messages(self) -> list[Event]:
        function = {"name": self.name, "arguments": self.args}
        said = [{"id": self.id, "role": "assistant", "toolCalls": [_tool_call(self.id, function)]}]
        return said if self.result is None else [*said, tool_message(self.id, self.result)]

    def start(self) -> Event:
        return {"type": "TOOL_CALL_START", "toolCallId": self.id, "toolCallName": self.name}

    def delta(self, text: str) -> Event:
        return {"type": "TOOL_CALL_ARGS", "toolCallId": self.id, "delta": text}

    def end(self) -> Event:
        self.called = True
        return {"type": "TOOL_CALL_END", "toolCallId": self.id}

    def again(self) -> list[Event]:
        return [self.start(), *([self.delta(self.args)] if self.args else [])]

    def finish(self, content: str, outcome: str) -> Event:
        self.result = content
        named = {"messageId": f"{self.id}-result", "toolCallId": self.id, "role": "tool"}
        return {"type": "TOOL_CALL_RESULT", **named, "content": content, "metadata": {"outcome": outcome}}


class AGUIEncoder:
    """Events of one run's log. Pure: a function of the log, of what was said before it, and of where its reader is."""

    media_type = "text/event-stream"
    keepalive = b": keepalive\n\n"

    def __init__(
        self,
        record: RunRecord,
        thread: str,
        run: str,
        before: Sequence[Event],
        *,
        after: int = 0,
        through: int = 0,
        snapshot: bool = False,
    ) -> None:
        """Take where the reader is.

        Args:
            record: The run in our log.
            thread: The client's id of the conversation.
            run: The client's id of this request.
            before: The conversation up to the run's own messages, the input included.
            after: The log up to here is not told event by event.
            through: A `run.waiting` up to here was decided already and ends nothing.
            snapshot: Say first, in one snapshot, what `after` leaves out.
        """
        self._run = record.key.run
        self._client_tools = frozenset(tool.name for tool in record.spec.tools)
        self._ids = {"threadId": thread, "runId": run}
        self._before = before
        self._after = after
        self._through = max(after, through)
        self._snapshot = snapshot
        self._items: list[_Part | _Call] = []
        self._parts: dict[int, _Part] = {}
        self._calls: dict[str, _Call] = {}
        self._ended = False
        self.waiting = False

    def begin(self) -> bytes:
        """RUN_STARTED, at once."""
        named = {"holdfast": {"run": self._run}}
        return _frames([{"type": "RUN_STARTED", **self._ids, "protocolVersion": "1.0", "metadata": named}])

    def ended(self) -> bool:
        """After RUN_FINISHED or RUN_ERROR nothing is written."""
        return self._ended

    def page(self, page: Page) -> bytes:
        """The events of a page."""
        out = []
        for seq, data in enumerate(page.events, page.first):
            if self._ended:
                break
            event = decode_event(data)
            last = event["type"] in (EventType.RUN_COMPLETED, EventType.RUN_FAILED, EventType.RUN_CANCELLED)
            if self._snapshot and (seq > self._after or last):
                out.append(_frames(self._resume()))
            said = self._event(event["type"], event, seq)
            if seq > self._after or last:
                out.append(_frames(said))
        return b"".join(out)

    def notice(self, kind: str, fields: dict[str, Any]) -> bytes:
        """A log that cannot be read on ends the stream with an error."""
        if kind == "resync":
            return b""
        self._ended = True
        message, remedy = str(fields.get("detail", kind)), fields.get("remedy")
        return _frames([_error(f"{message}; {remedy}" if remedy else message, str(fields.get("code", kind)))])

    def _resume(self) -> list[Event]:
        """What a reader that comes back is told: all that is finished, then what is open from its start."""
        self._snapshot = False
        opened = [event for item in self._open() for event in item.again()]
        return [self._said(lambda item: not _is_open(item)), *opened]

    def _said(self, counts: Any) -> Event:
        messages = list(self._before)
        for item in self._items:
            if counts(item):
                messages += [item.message()] if isinstance(item, _Part) else item.messages()
        return {"type": "MESSAGES_SNAPSHOT", "messages": messages}

    def _open(self) -> list[_Part | _Call]:
        return [item for item in self._items if _is_open(item)]

    def _event(self, kind: str, event: dict[str, Any], seq: int) -> list[Event]:
        match kind:
            case EventType.TEXT_DELTA | EventType.REASONING_DELTA:
                return self._delta(event["part"], event["text"], text_kind=kind == EventType.TEXT_DELTA)
            case EventType.TEXT_DONE | EventType.REASONING_DONE:
                part = self._parts.get(event["part"])
                return [] if part is None or part.done else part.end()
            case EventType.TOOL_ARGS | EventType.TOOL_CALLED | EventType.TOOL_FINISHED:
                return self._tool(kind, event)
            case EventType.TOOL_PROGRESS:
                return [_custom("tool.progress", {"call": event["call"], "text": event.get("text")})]
            case EventType.ATTEMPT_DISCARDED:
                return self._discard(event)
            case EventType.RUN_WAITING:
                return self._wait(event, seq)
            case EventType.STEERED:
                return [_custom("steered", {"input": event.get("input")})]
            case EventType.RUN_COMPLETED | EventType.RUN_FAILED | EventType.RUN_CANCELLED:
                return self._end(kind, event)
            case _ if kind in _NOTICES:
                return [_custom(kind, {k: v for k, v in event.items() if k not in ("seq", "run", "ts", "type")})]
            case _:
                return []

    def _delta(self, number: int, text: str, *, text_kind: bool) -> list[Event]:
        part, opened = self._parts.get(number), list[Event]()
        if part is None:
            part = self._parts[number] = _Part(f"{self._run}-{number}", text_kind=text_kind)
            self._items.append(part)
            opened = part.start()
        part.chunks.append(text)
        return [*opened, *part.delta(text)]

    def _call(self, name: str, tool: str) -> tuple[_Call, list[Event]]:
        call = self._calls.get(name)
        if call is not None:
            return call, []
        call = self._calls[name] = _Call(name, tool)
        self._items.append(call)
        return call, [call.start()]

    def _tool(self, kind: str, event: dict[str, Any]) -> list[Event]:
        call, out = self._call(event["call"], event.get("name", ""))
        if kind == EventType.TOOL_ARGS:
            call.args += event["delta"]
            return [*out, call.delta(event["delta"])]
        if kind == EventType.TOOL_CALLED:
            return out + self._called(call, event.get("args"))
        if call.result is not None:
            return out
        out += self._called(call, None)
        outcome, result = str(event.get("outcome")), event.get("result")
        text = _as_text(result)
        return [*out, call.finish(text if outcome in ("success", "denied") else f"{outcome}: {text}", outcome)]

    @staticmethod
    def _called(call: _Call, args: Any) -> list[Event]:
        if call.called:
            return []
        whole = []
        if not call.args and args is not None:
            call.args = _as_text(args)
            whole = [call.delta(call.args)]
        return [*whole, call.end()]

    def _discard(self, event: dict[str, Any]) -> list[Event]:
        calls = {call for call in event.get("calls", ()) if call in self._calls}
        calls |= {call.id for call in self._calls.values() if not call.called}
        dropped: list[_Part | _Call] = [self._parts.pop(n) for n in event.get("parts", ()) if n in self._parts]
        dropped += [self._calls.pop(call) for call in calls]
        if not dropped:
            return []
        out = [end for item in dropped if _is_open(item) for end in _ends(item)]
        self._items = [item for item in self._items if item not in dropped]
        return [*out, self._said(lambda _: True)]

    def _wait(self, event: dict[str, Any], seq: int) -> list[Event]:
        out: list[Event] = []
        interrupts = []
        for request in event.get("requests", ()):
            call, opened = self._call(request["call"], request.get("name", ""))
            out += opened + self._called(call, request.get("args"))
            asks = request.get("kind") == "approval"
            interrupt: Event = {
                "id": call.id,
                "toolCallId": call.id,
                "reason": "tool_call" if asks else "external_call",
            }
            if asks:
                interrupt["message"] = f"may {call.name} run?"
                interrupt["responseSchema"] = _APPROVAL
            if isinstance(request.get("metadata"), dict) and request["metadata"]:
                interrupt["metadata"] = request["metadata"]
            interrupts.append(interrupt)
        if seq <= self._through:
            return out
        self._ended = self.waiting = True
        out += [end for item in self._open() for end in _ends(item)]
        outcome = {"type": "interrupt", "interrupts": interrupts}
        return [*out, {"type": "RUN_FINISHED", **self._ids, "outcome": outcome}]

    def _end(self, kind: str, event: dict[str, Any]) -> list[Event]:
        output, out = event.get("output"), list[Event]()
        shown = any(part.text_kind for part in self._parts.values())
        if kind == EventType.RUN_COMPLETED and isinstance(output, str) and output and not shown:
            out += self._delta(max(self._parts, default=-1) + 1, output, text_kind=True)
        out += [end for item in self._open() for end in _ends(item)]
        handed = self._client_tools if kind == EventType.RUN_COMPLETED else frozenset[str]()
        left = [call for call in self._calls.values() if call.result is None and call.name not in handed]
        out += [call.finish(_OPEN, "interrupted") for call in left]
        self._ended = True
        reason = str(event.get("reason", "finished"))
        more = {"metadata": {"finishedReason": reason}, "usage": [_usage(event.get("usage") or {})]}
        if kind == EventType.RUN_FAILED:
            error = event.get("error") or {}
            message = error.get("message") or f"the run failed: {reason.replace('_', ' ')}"
            return [
                *out,
                {**_error(f"{message}; {error['remedy']}" if error.get("remedy") else message, reason), **more},
            ]
        finished = {"type": "RUN_FINISHED", **self._ids, **more}
        if kind == EventType.RUN_CANCELLED:
            return [*out, {**finished, "outcome": {"type": "cancelled"}}]
        return [*out, {**finished, "outcome": {"type": "success"}, "result": output}]


def conversation(history: Iterable[HistoryEntry]) -> list[Event]:
    """What a session's earlier runs said, as messages; ids follow from their runs."""
    return [
        said
        for entry in history
        for said in (*messages_of(entry.run, entry.before, "b"), *messages_of(entry.run, entry.messages, "m"))
    ]


def messages_of(run: str, messages: Iterable[Message], kind: str) -> list[Event]:
    """A run's neutral messages; `kind` tells those before its input from its own."""
    said: list[Event] = []
    for n, message in enumerate(messages):
        named: Event = {"id": f"{run}-{kind}{n}"}
        if message.role == "tool":
            said.append(tool_message(message.call, _as_text(message.result)))
        elif message.role == "user":
            said += [{**named, "role": "user", "content": message.text}] if message.text else []
        else:
            calls = [_tool_call(c.call, {"name": c.name, "arguments": _as_text(c.args)}) for c in message.calls]
            text = {"content": message.text} if message.text or not calls else {}
            said.append({**named, "role": "assistant", **text, **({"toolCalls": calls} if calls else {})})
    return said


def tool_message(call: str, text: str) -> Event:
    """The result of a call as a message."""
    return {"id": f"{call}-result", "role": "tool", "toolCallId": call, "content": text}


def _tool_call(call: str, function: dict[str, str]) -> Event:
    return {"id": call, "type": "function", "function": function}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else encode_json(value).decode()


def _is_open(item: _Part | _Call) -> bool:
    return not (item.done if isinstance(item, _Part) else item.called)


def _ends(item: _Part | _Call) -> list[Event]:
    ended = item.end()
    return ended if isinstance(ended, list) else [ended]


def _custom(name: str, value: Any) -> Event:
    return {"type": "CUSTOM", "name": name, "value": value}


def _error(message: str, code: str) -> Event:
    return {"type": "RUN_ERROR", "message": message, "code": code}


def _usage(counted: dict[str, Any]) -> Event:
    known = {"inputTokens": counted.get("input_tokens"), "outputTokens": counted.get("output_tokens")}
    return {name: int(value) for name, value in known.items() if value is not None}


def _frames(events: Iterable[Event]) -> bytes:
    return b"".join(b"data: %b\n\n" % encode_json(event) for event in events)

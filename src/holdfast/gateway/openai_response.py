"""A run's log as a response of OpenAI's Responses API: its object, and its stream.

Pure: a fold over the events of one log, from the first. So whoever replays the log gets the same events in the same
order, which makes `sequence_number` an offset that a reader can resume from at any gateway.

The stream cannot take back what it has shown. Where an attempt is discarded of which it has shown something (its worker
died), it ends with an `error` event, for every reader alike; the run goes on, and the response can be retrieved.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from holdfast.domain.digest import Digest
from holdfast.domain.events import EventType, decode_event, encode_json
from holdfast.domain.runs import Reason
from holdfast.gateway.openai_items import CallItem, Item, OutputItem, TextItem, Told
from holdfast.ports.store import Page, RunRecord

PREFIX: Final = "resp_"
DONE: Final = b"data: [DONE]\n\n"

_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
# OpenAI's codes are a closed list, which its typed clients check; our own code begins the message.
_CODES: Final = {Reason.BUDGET: "rate_limit_exceeded"}


class ResponseLog:
    """The fold of one run's log. Feed it every event in order; `value` is the response as of then."""

    def __init__(self, record: RunRecord) -> None:
        """Take what every object of this response repeats, which no later event changes."""
        self.ended = False
        self.broken = ""  # why its stream cannot go on: something it has shown was taken back
        self._record = record
        self._run = record.key.run
        self._digest = Digest()
        self._status = "queued" if record.spec.request.get("background") else "in_progress"
        self._begun = False
        self._items: list[Item] = []
        self._parts: dict[int, TextItem] = {}
        self._calls: dict[str, CallItem] = {}
        self._asked_for = 0
        self._outputs = 0
        self._error: dict[str, Any] | None = None
        self._incomplete: dict[str, Any] | None = None
        self._usage: dict[str, Any] | None = None
        self._completed_at: int | None = None

    def feed(self, event: dict[str, Any]) -> list[Told]:
        """The stream events, without their numbers, that an event of the log amounts to."""
        kind = event["type"]
        self._digest.feed(kind, event)
        match kind:
            case EventType.RUN_CREATED:
                created = [self._whole("response.created")]
                return [*created, self._whole("response.queued")] if self._status == "queued" else created
            case EventType.RUN_STARTED if not self._begun:
                self._begun, self._status = True, "in_progress"
                return [self._whole("response.in_progress")]
            case EventType.TEXT_DELTA | EventType.REASONING_DELTA:
                return self._delta(event["part"], event["text"], reasoning=kind == EventType.REASONING_DELTA)
            case EventType.TEXT_DONE | EventType.REASONING_DONE:
                part = self._parts.get(event["part"])
                return [] if part is None or part.closed else part.close("completed")
            case EventType.TOOL_ARGS | EventType.TOOL_CALLED:
                return self._asked(kind, event)
            case EventType.TOOL_FINISHED:
                return self._answer(event["call"], event.get("result"), str(event.get("outcome") or "unknown"))
            case EventType.ATTEMPT_DISCARDED:
                return self._discard(event)
            case EventType.RUN_COMPLETED | EventType.RUN_FAILED | EventType.RUN_CANCELLED:
                return self._end(kind, event)
            case _:
                return []

    def value(self) -> dict[str, Any]:
        """The response as it is now."""
        record, asked, settings = self._record, self._record.spec.request, self._record.spec.settings
        return {
            "id": PREFIX + self._run,
            "object": "response",
            "created_at": record.created_at // 1000,
            "status": self._status,
            "completed_at": self._completed_at,
            "background": bool(asked.get("background")),
            "error": self._error,
            "incomplete_details": self._incomplete,
            "instructions": record.spec.instructions or None,
            "max_output_tokens": settings.get("max_completion_tokens"),
            "metadata": record.spec.metadata,
            "model": record.spec.agent,
            "output": [item.value() for item in self._items],
            "parallel_tool_calls": settings.get("parallel_tool_calls", True),
            "previous_response_id": asked.get("previous_response_id"),
            "reasoning": {"effort": settings.get("reasoning_effort"), "summary": None},
            "store": True,
            "temperature": settings.get("temperature"),
            "text": {"format": asked.get("format") or {"type": "text"}},
            "tool_choice": asked.get("tool_choice", "auto"),
            "tools": asked.get("tools", []),
            "top_p": settings.get("top_p"),
            "truncation": "disabled",
            "usage": self._usage,
            "user": settings.get("user"),
        }

    def _whole(self, kind: str) -> Told:
        return {"type": kind, "response": self.value()}

    def _delta(self, number: int, text: str, *, reasoning: bool) -> list[Told]:
        part = self._parts.get(number)
        told: list[Told] = []
        if part is None:
            part = self._parts[number] = TextItem(self._run, str(number), len(self._items), reasoning=reasoning)
            told = self._add(part)
        return told if part.closed else [*told, *part.delta(text)]

    def _asked(self, kind: str, event: dict[str, Any]) -> list[Told]:
        name = event["call"]
        call = self._calls.get(name)
        told: list[Told] = []
        if call is None:
            call = CallItem(self._run, self._asked_for, name, event["name"], len(self._items))
            self._calls[name] = call
            self._asked_for += 1
            told = self._add(call)
        if call.closed:
            return told
        more = call.delta(str(event.get("delta") or "")) if kind == EventType.TOOL_ARGS else []
        return [*told, *(more or call.close("completed", event.get("args")))]

    def _answer(self, name: str, result: Any, outcome: str) -> list[Told]:
        call = self._calls.get(name)
        if call is None or call.answered:
            return []
        call.answered = True
        told = [] if call.closed else call.close("incomplete")
        self._outputs += 1
        return [
            *told,
            *self._add(OutputItem(self._run, self._outputs - 1, name, len(self._items), result, outcome)),
        ]

    def _add(self, item: Item) -> list[Told]:
        self._items.append(item)
        return item.begin()

    def _discard(self, event: dict[str, Any]) -> list[Told]:
        """Drop items for whoever retrieves; for whoever reads the stream, it ends if it has shown one of them."""
        parts = [self._parts.pop(number) for number in event.get("parts", ()) if number in self._parts]
        calls = [self._calls.pop(name) for name in event.get("calls", ()) if name in self._calls]
        if not parts and not calls:
            return []
        answers = {call.call for call in calls}
        dropped = {id(item) for item in (*parts, *calls)}
        self._items = [
            item
            for item in self._items
            if id(item) not in dropped and not (isinstance(item, OutputItem) and item.value()["call_id"] in answers)
        ]
        self.broken = (
            f"the answer so far was withdrawn ({event.get('reason')}), which a stream cannot say; "
            "the run goes on: retrieve the response"
        )
        return []

    def _end(self, kind: str, event: dict[str, Any]) -> list[Told]:
        self.ended = True
        whole = kind == EventType.RUN_COMPLETED
        told: list[Told] = []
        output = event.get("output")
        if whole and output and isinstance(output, str) and not self._digest.text():
            told += self._delta(-1, output, reasoning=False)  # an answer that was not streamed
        for item in list(self._items):
            if isinstance(item, TextItem) and not item.closed:
                told += item.close("completed" if whole else "incomplete")
        for call in list(self._calls.values()):
            if not call.closed:
                told += call.close("incomplete")
            if not call.answered and not whole:  # of a run that completed, it is the client's to answer
                told += self._answer(call.call, None, "")
        self._usage = responses_usage(event.get("usage"))
        self._completed_at = _seconds(event["ts"])
        return [*told, self._whole(self._judge(kind, event))]

    def _judge(self, kind: str, event: dict[str, Any]) -> str:
        """Set the status that the terminal event amounts to; the type of its stream event."""
        if kind == EventType.RUN_CANCELLED:
            self._status = "cancelled"  # no event of OpenAI's is named so; clients take this one for an end
            return "response.incomplete"
        if kind == EventType.RUN_FAILED:
            self._status, self._error = "failed", _error(event)
            return "response.failed"
        cut = _INCOMPLETE.get(str(self._digest.finish_reason))
        if cut is not None:
            self._status, self._incomplete = "incomplete", {"reason": cut}
            return "response.incomplete"
        self._status = "completed"
        return "response.completed"


class ResponseEncoder:
    """The response's stream events, numbered from 0; those up to `after` are not written again."""

    media_type = "text/event-stream"
    keepalive = b": keepalive\n\n"

    def __init__(self, record: RunRecord, after: int = -1) -> None:
        """Take the last number that the reader has, -1 for none."""
        self._log = ResponseLog(record)
        self._after = after
        self._next = 0
        self._ended = False

    def begin(self) -> bytes:
        """Nothing: the first event is of the log."""
        return b""

    def ended(self) -> bool:
        """After [DONE] nothing is written."""
        return self._ended

    def page(self, page: Page) -> bytes:
        """The stream events of a page's events."""
        out: list[bytes] = []
        for data in page.events:
            if self._ended:
                break
            out += map(self._numbered, self._log.feed(decode_event(data)))
            if self._log.broken:
                out.append(self._failed("attempt_discarded", self._log.broken))
            elif self._log.ended:
                out.append(self._done())
        return b"".join(out)

    def notice(self, kind: str, fields: dict[str, Any]) -> bytes:
        """A log that is gone ends the stream with an error; one that cannot be read now, without: it can be resumed."""
        detail = str(fields.get("detail", kind))
        if kind == "gone":
            return self._failed("gone", detail)
        return b": %b\n\n" % " ".join(detail.split()).encode() if kind == "unavailable" else b""

    def _failed(self, code: str, message: str) -> bytes:
        return self._numbered({"type": "error", "code": code, "message": message, "param": None}) + self._done()

    def _done(self) -> bytes:
        self._ended = True
        if self._after >= self._next:
            message = f"starting_after={self._after}, and the last event of this response is {self._next - 1}"
            error = {"type": "error", "code": "invalid_offset", "message": message, "param": "starting_after"}
            return self._frame({**error, "sequence_number": self._after + 1}) + DONE
        return DONE

    def _numbered(self, told: Told) -> bytes:
        number, self._next = self._next, self._next + 1
        return b"" if number <= self._after else self._frame({**told, "sequence_number": number})

    @staticmethod
    def _frame(told: Told) -> bytes:
        return b"event: %b\ndata: %b\n\n" % (told["type"].encode(), encode_json(told))


def responses_usage(counted: dict[str, Any] | None) -> dict[str, Any]:
    """A run's usage in the Responses API's names."""
    found = counted or {}
    read, written = int(found.get("input_tokens", 0)), int(found.get("output_tokens", 0))
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": int(found.get("cache_read_tokens", 0)), "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": int(found.get("reasoning_tokens", 0))},
        "total_tokens": read + written,
    }


def _error(event: dict[str, Any]) -> dict[str, Any]:
    reason = str(event.get("reason", ""))
    error = event.get("error") or {}
    said = [str(error.get("message") or "the run failed"), str(error.get("remedy") or "")]
    code = _CODES.get(Reason(reason), "server_error") if reason in set(Reason) else "server_error"
    return {"code": code, "message": f"{reason}: {'; '.join(part for part in said if part)}"}


def _seconds(stamp: str) -> int:
    return int(dt.datetime.fromisoformat(stamp).timestamp())

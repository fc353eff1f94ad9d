"""Spans from records: request -> run -> model and tool, by OpenTelemetry's conventions for generative AI.

This is the only module that calls a tracer, on the sink's own thread. Whatever the tracer answers is taken: None for
a span, an exception at its end. The ids of a run are known in advance, so that the gateway's span of the request and
the worker's spans of the run meet in one trace without asking each other.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode

from holdfast.domain.events import EventType
from holdfast.domain.ids import span_id, trace_id
from holdfast.domain.secrets import mask
from holdfast.telemetry.facade import Record, Scope

_OPEN_MAX: Final = 2048
_ENDED_MAX: Final = 4096
_REASONS_MAX: Final = 200
_TERMINAL: Final = {
    EventType.RUN_COMPLETED: "completed",
    EventType.RUN_FAILED: "failed",
    EventType.RUN_CANCELLED: "cancelled",
}


class Ids(Protocol):
    """Lets the next span have ids that are known in advance; None where the tracer is not ours."""

    def next(self, *, span: int, trace: int | None = None) -> None:
        """Of the next span that begins."""
        ...


@dataclass
class _Run:
    """One attempt, and what is open in it."""

    span: Any
    context: Context | None
    scope: Scope
    model: Any = None
    texts: list[str] = field(default_factory=list)
    tools: dict[str, Any] = field(default_factory=dict)


class Spans:
    """A sink that feeds a tracer."""

    def __init__(self, tracer: Any, close: Any = None, ids: Ids | None = None, *, content: bool = False) -> None:
        """Take any object with the interface of an OpenTelemetry tracer.

        Args:
            tracer: Only its `start_span` is called, and of a span set_attribute, add_event, set_status and end.
            close: Called at the end, to send what is held back.
            ids: Sets the ids of the gateway's request spans.
            content: Whether prompts, texts, arguments and results become attributes.
        """
        self._tracer = tracer
        self._close = close
        self._ids = ids
        self._content = content
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()

    def take(self, record: Record) -> None:
        """One record, in the order in which its process wrote them."""
        run = self._runs.get(record.scope.run)
        if record.kind == EventType.RUN_STARTED:
            self._started(record)
        elif record.kind == "request":
            self._request(record)
        elif record.kind == "stream_end":
            self._told(record)
        elif record.kind in ("run_lost", "run_released") and run is not None:
            self._finish(record.scope.run, run, record.at_ns, {"holdfast.attempt.end": record.kind})
        elif record.kind in _TERMINAL and run is not None:
            self._terminal(record, run)
        elif run is not None:
            self._within(record, run)

    def close(self) -> None:
        """What is open stays open: its run goes on elsewhere, or the process was told to end."""
        if self._close is not None:
            self._close()

    # the run

    def _started(self, record: Record) -> None:
        scope, fields = record.scope, record.fields
        before = self._runs.pop(scope.run, None)
        if before is not None:
            self._finish(scope.run, before, record.at_ns, {"holdfast.attempt.end": "superseded"})
        self._ended.pop(scope.run, None)
        attributes = _of_run(scope) | {
            "holdfast.worker": str(fields.get("worker")),
            "holdfast.attempt": int(fields.get("attempt") or 0),
        }
        if self._content and scope.input:
            message = {"role": "user", "parts": [{"type": "text", "content": mask(scope.input)}]}
            attributes["gen_ai.input.messages"] = json.dumps([message])
        name = f"invoke_agent {scope.agent}"
        span = self._begin(name, _parent(scope), SpanKind.INTERNAL, record.at_ns, attributes)
        context = None if span is None else api.set_span_in_context(span)
        self._runs[scope.run] = _Run(span, context, scope)
        while len(self._runs) > _OPEN_MAX:
            name, oldest = self._runs.popitem(last=False)
            self._finish(name, oldest, record.at_ns, {"holdfast.attempt.end": "unknown"})

    def _terminal(self, record: Record, run: _Run) -> None:
        state, fields = _TERMINAL[EventType(record.kind)], record.fields
        attributes: dict[str, Any] = {"holdfast.state": state}
        if fields.get("reason"):
            attributes["holdfast.reason"] = str(fields["reason"])
        attributes |= _usage(fields.get("usage"))
        error = fields.get("error") or {}
        if error:
            attributes["error.type"] = str(error.get("code"))
            if self._content:
                attributes["holdfast.error.message"] = mask(str(error.get("message")))
        if self._content and fields.get("output"):
            attributes["gen_ai.output.messages"] = _said([str(fields["output"])], "stop")
        self._finish(record.scope.run, run, record.at_ns, attributes, str(error.get("code")) if error else "")

    def _told(self, record: Record) -> None:
        """The end of a run that no attempt of this process told: it was queued, or its worker is gone."""
        if record.scope.run in self._ended or record.scope.run in self._runs:
            return
        fields = record.fields
        attributes = _of_run(record.scope) | {
            "holdfast.state": str(fields.get("state")),
            "holdfast.reason": str(fields.get("reason")),
            "holdfast.told_by": "store",
        }
        began = record.at_ns - int(fields.get("duration_ms") or 0) * 1_000_000
        parent = _parent(record.scope)
        span = self._begin("invoke_agent", parent, SpanKind.INTERNAL, began, attributes)
        self._remember(record.scope.run)
        _end(span, record.at_ns, {}, str(fields.get("reason")) if fields.get("state") == "failed" else "")

    def _finish(self, name: str, run: _Run, at_ns: int, attributes: Mapping[str, Any], error: str = "") -> None:
        """End everything of an attempt, the inner spans first; each by itself, so that one failure costs one span."""
        self._runs.pop(name, None)
        self._remember(name)
        inner = [*run.tools.values(), run.model]
        failures: list[Exception] = []
        for span, facts, why in [
            *((s, {}, "interrupted") for s in inner if s is not None),
            (run.span, attributes, error),
        ]:
            try:
                _end(span, at_ns, facts, why)
            except Exception as problem:  # noqa: BLE001 - raised below, where it is counted
                failures.append(problem)
        if failures:
            raise failures[0]

    def _remember(self, run: str) -> None:
        self._ended[run] = None
        while len(self._ended) > _ENDED_MAX:
            self._ended.popitem(last=False)

    # within a run

    def _within(self, record: Record, run: _Run) -> None:
        match record.kind:
            case EventType.MODEL_REQUESTED:
                self._requested(record, run)
            case EventType.MODEL_RESPONDED:
                self._responded(record, run)
            case EventType.TEXT_DONE:
                run.texts.append(str(record.fields.get("text")))
            case EventType.TOOL_CALLED:
                self._called(record, run)
            case EventType.TOOL_FINISHED:
                self._tool_finished(record, run)
            case EventType.MODEL_RETRIED:
                failed, run.model = run.model, None
                _end(failed, record.at_ns, {}, str(record.fields.get("reason")))
            case EventType.REASONING_DONE:
                pass
            case _:
                facts = {k: _plain(v) for k, v in record.fields.items() if v is not None}
                if run.span is not None:
                    run.span.add_event(str(record.kind), facts, record.at_ns)

    def _requested(self, record: Record, run: _Run) -> None:
        before, run.model, run.texts = run.model, None, []
        if before is not None:
            _end(before, record.at_ns, {}, "discarded")
        model = str(record.fields.get("model") or run.scope.model)
        run.model = self._model_span(run, model, record.at_ns)

    def _model_span(self, run: _Run, model: str, at_ns: int) -> Any:
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": model,
            "gen_ai.conversation.id": run.scope.session,
            "gen_ai.request.stream": True,
        }
        return self._begin(f"chat {model}", run.context, SpanKind.CLIENT, at_ns, attributes)

    def _responded(self, record: Record, run: _Run) -> None:
        fields, span = record.fields, run.model
        run.model = None
        model = str(fields.get("model") or run.scope.model)
        if span is None:  # the request was discarded, and another attempt answered
            span = self._model_span(run, model, record.at_ns - int(fields.get("duration_ms") or 0) * 1_000_000)
        attributes: dict[str, Any] = {"gen_ai.response.model": model} | _usage(fields.get("usage"))
        if fields.get("finish_reason"):
            attributes["gen_ai.response.finish_reasons"] = [str(fields["finish_reason"])]
        if fields.get("ttft_ms") is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = fields["ttft_ms"] / 1000
        if self._content and run.texts:
            attributes["gen_ai.output.messages"] = _said(run.texts, str(fields.get("finish_reason")))
        _end(span, record.at_ns, attributes)

    def _called(self, record: Record, run: _Run) -> None:
        call, name = str(record.fields.get("call")), str(record.fields.get("name"))
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.call.id": call,
            "gen_ai.tool.type": "function",
        }
        if self._content:
            attributes["gen_ai.tool.call.arguments"] = mask(str(record.fields.get("args")))
        run.tools[call] = self._begin(f"execute_tool {name}", run.context, SpanKind.INTERNAL, record.at_ns, attributes)

    def _tool_finished(self, record: Record, run: _Run) -> None:
        span = run.tools.pop(str(record.fields.get("call")), None)
        outcome = str(record.fields.get("outcome"))
        attributes: dict[str, Any] = {"holdfast.tool.outcome": outcome}
        if self._content:
            attributes["gen_ai.tool.call.result"] = mask(str(record.fields.get("result")))
        _end(span, record.at_ns, attributes, "" if outcome == "success" else outcome)

    # requests

    def _request(self, record: Record) -> None:
        """The span of the request that made a run: child of the client's span, parent of the run's."""
        fields, run = record.fields, record.scope.run
        parts = str(fields.get("traceparent")).split("-")
        remote = parts if len(parts) == 4 else None
        ours = trace_id(run)
        parent = None if remote is None else _remote(int(remote[1], 16), int(remote[2], 16))
        attributes = {
            "http.request.method": str(fields["method"]),
            "http.route": str(fields["route"]),
            "http.response.status_code": int(fields["status"]),
            "holdfast.run": run,
        }
        if self._ids is not None:
            self._ids.next(span=int(span_id(run), 16), trace=int(ours, 16))
        name = f"{fields['method']} {fields['route']}"
        span = self._begin(name, parent or Context(), SpanKind.SERVER, int(fields["began_ns"]), attributes)
        _end(span, record.at_ns, {}, str(fields["status"]) if int(fields["status"]) >= 500 else "")

    def _begin(self, name: str, parent: Context | None, kind: SpanKind, at_ns: int, attributes: dict[str, Any]) -> Any:
        return self._tracer.start_span(name, context=parent, kind=kind, attributes=attributes, start_time=at_ns)


def _end(span: Any, at_ns: int, attributes: Mapping[str, Any], error: str = "") -> None:
    if span is None:
        return
    try:
        for name, value in attributes.items():
            span.set_attribute(name, value)
        if error:
            span.set_attribute("error.type", attributes.get("error.type", error))
            span.set_status(Status(StatusCode.ERROR, error))
    finally:
        span.end(at_ns)


def _of_run(scope: Scope) -> dict[str, Any]:
    return {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": scope.agent,
        "gen_ai.conversation.id": scope.session,
        "session.id": scope.session,
        "gen_ai.request.model": scope.model,
        "holdfast.run": scope.run,
        "holdfast.trace": scope.trace,
    }


def _parent(scope: Scope) -> Context:
    """The request that made the run, in the gateway, which may be another process."""
    return _remote(int(trace_id(scope.run, scope.trace), 16), int(span_id(scope.run), 16))


def _remote(trace: int, span: int) -> Context:
    known = api.SpanContext(trace, span, is_remote=True, trace_flags=api.TraceFlags(api.TraceFlags.SAMPLED))
    return api.set_span_in_context(api.NonRecordingSpan(known), Context())


def _usage(usage: Any) -> dict[str, Any]:
    if not isinstance(usage, Mapping):
        return {}
    names = {
        "input_tokens": "gen_ai.usage.input_tokens",
        "output_tokens": "gen_ai.usage.output_tokens",
        "cache_read_tokens": "gen_ai.usage.cache_read.input_tokens",
        "cache_write_tokens": "gen_ai.usage.cache_creation.input_tokens",
    }
    return {name: usage[key] for key, name in names.items() if isinstance(usage.get(key), int)}


def _said(texts: list[str], reason: str) -> str:
    parts = [{"type": "text", "content": mask(text)} for text in texts]
    return json.dumps([{"role": "assistant", "parts": parts, "finish_reason": reason}])


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float)) else mask(str(value))[:_REASONS_MAX]

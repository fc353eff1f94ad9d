"""Spans by OpenTelemetry's conventions, whatever order and end a run takes."""

from __future__ import annotations

import json

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from holdfast.domain.events import EventType
from holdfast.domain.ids import span_id, trace_id
from holdfast.telemetry import Scope
from holdfast.telemetry.facade import Record
from holdfast.telemetry.spans import _OPEN_MAX, Spans

MS = 1_000_000
RUN = Scope("r_1", "s_1", "", "agent", "model-1", 1, "the prompt")
STARTED = (EventType.RUN_STARTED, {"worker": "w", "attempt": 1})
REQUESTED = (EventType.MODEL_REQUESTED, {"step": 1, "model": "model-1", "attempt": 1})
USAGE = {"input_tokens": 7, "output_tokens": 5, "requests": 1}
RESPONDED = (
    EventType.MODEL_RESPONDED,
    {"step": 1, "model": "model-1-2026", "finish_reason": "stop", "usage": USAGE, "ttft_ms": 20, "duration_ms": 30},
)
COMPLETED = (EventType.RUN_COMPLETED, {"usage": USAGE, "timings": {}, "output": "the answer"})


class Site:
    """A tracer whose spans are kept in memory, and the story told to it."""

    def __init__(self, *, content: bool = False) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.spans = Spans(provider.get_tracer("test"), content=content)
        self._at = 0

    def tell(self, *story, scope: Scope = RUN) -> dict[str, object]:
        """Each thing ten milliseconds after the one before; the spans by their names."""
        for kind, fields in story:
            self._at += 10 * MS
            self.spans.take(Record(kind, self._at, scope, fields))
        return {span.name: span for span in self._kept.get_finished_spans()}

    @property
    def count(self) -> int:
        return len(self._kept.get_finished_spans())


@pytest.fixture
def site() -> Site:
    return Site()


def test_a_run_is_a_trace_with_models_and_tools_in_it(site):
    """What an operator opens when a run was slow."""
    called = (EventType.TOOL_CALLED, {"call": "c1", "name": "echo"})
    finished = (EventType.TOOL_FINISHED, {"call": "c1", "name": "echo", "outcome": "success", "duration_ms": 10})
    found = site.tell(STARTED, REQUESTED, RESPONDED, called, finished, COMPLETED)
    run, chat, tool = found["invoke_agent agent"], found["chat model-1"], found["execute_tool echo"]
    assert format(run.context.trace_id, "032x") == trace_id("r_1")
    assert format(run.parent.span_id, "016x") == span_id("r_1")
    assert {chat.parent.span_id, tool.parent.span_id} == {run.context.span_id}
    assert (chat.start_time, chat.end_time) == (20 * MS, 30 * MS)
    assert dict(chat.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "model-1",
        "gen_ai.request.stream": True,
        "gen_ai.conversation.id": "s_1",
        "gen_ai.response.model": "model-1-2026",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": 0.02,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 5,
    }
    assert tool.attributes["gen_ai.tool.name"] == "echo"
    assert tool.attributes["gen_ai.tool.call.id"] == "c1"
    assert run.attributes["holdfast.state"] == "completed"
    assert run.attributes["gen_ai.usage.input_tokens"] == 7
    assert all(span.status.is_ok for span in found.values())
    assert not any("the " in str(value) for span in found.values() for value in span.attributes.values())


def test_content_goes_out_only_where_it_is_asked_for():
    """Prompts are personal data: trace_content is off by default."""
    site = Site(content=True)
    said = (EventType.TEXT_DONE, {"text": "the answer"})
    called = (EventType.TOOL_CALLED, {"call": "c1", "name": "echo", "args": '{"a": 1}'})
    found = site.tell(STARTED, REQUESTED, said, RESPONDED, called, COMPLETED)
    asked = json.loads(found["invoke_agent agent"].attributes["gen_ai.input.messages"])
    assert asked == [{"role": "user", "parts": [{"type": "text", "content": "the prompt"}]}]
    answered = json.loads(found["chat model-1"].attributes["gen_ai.output.messages"])
    assert answered[0]["parts"] == [{"type": "text", "content": "the answer"}]
    assert found["execute_tool echo"].attributes["gen_ai.tool.call.arguments"] == '{"a": 1}'


def test_a_retried_request_is_a_span_of_its_own(site):
    """Each attempt is seen, with why it failed."""
    retried = (EventType.MODEL_RETRIED, {"step": 1, "attempt": 1, "reason": "status_429", "wait_ms": 5})
    site.tell(STARTED, REQUESTED, retried, REQUESTED, RESPONDED, COMPLETED)
    chats = [span for span in site._kept.get_finished_spans() if span.name == "chat model-1"]
    assert [span.attributes.get("error.type") for span in chats] == ["status_429", None]
    assert [(span.start_time, span.end_time) for span in chats] == [(20 * MS, 30 * MS), (40 * MS, 50 * MS)]


def test_a_failure_names_its_code_and_ends_what_was_open(site):
    """No span stays open because a run failed: document 0's error path crashed on one."""
    called = (EventType.TOOL_CALLED, {"call": "c1", "name": "echo"})
    failed = (EventType.RUN_FAILED, {"reason": "deadline", "error": {"code": "deadline", "message": "m"}, "usage": {}})
    found = site.tell(STARTED, REQUESTED, called, failed)
    assert [found[n].attributes["error.type"] for n in found] == ["interrupted", "interrupted", "deadline"]
    assert not any(span.status.is_ok for span in found.values())


@pytest.mark.parametrize("how", ["run_lost", "run_released"])
def test_an_attempt_that_ended_elsewhere_is_closed(site, how):
    """The next attempt, in another process, is a span beside it."""
    found = site.tell(STARTED, REQUESTED, (how, {}))
    assert found["invoke_agent agent"].attributes["holdfast.attempt.end"] == how
    assert site.count == 2


def test_an_end_that_nobody_here_worked_for_is_told_once(site):
    """A run that was ended in the queue, or by the reaper, is in the trace, too; one that ended here, not twice."""
    end = ("stream_end", {"state": "failed", "reason": "queue_timeout", "duration_ms": 5})
    site.tell(STARTED, COMPLETED, end)
    assert site.count == 1
    found = site.tell(end, end, scope=Scope("r_2", "s_2", ""))
    assert site.count == 2
    assert found["invoke_agent"].attributes["holdfast.reason"] == "queue_timeout"
    assert found["invoke_agent"].end_time - found["invoke_agent"].start_time == 5 * MS


def test_open_runs_are_bounded(site):
    """Runs whose end is never told cost no memory for ever."""
    for number in range(_OPEN_MAX + 3):
        site.tell(STARTED, scope=Scope(f"r_{number}"))
    assert site.count == 3
    assert len(site.spans._runs) == _OPEN_MAX


@pytest.mark.parametrize("sent", ["", "0" * 32, "xyz", "A" * 32])
def test_a_trace_id_follows_from_the_run_where_none_was_sent(sent):
    """Gateway and worker know it without asking each other."""
    assert trace_id("r_1", sent) == trace_id("r_1")
    assert len(trace_id("r_1")) == 32
    assert trace_id("r_1", "0af7651916cd43dd8448eb211c80319c") == "0af7651916cd43dd8448eb211c80319c"

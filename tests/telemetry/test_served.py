"""A real server under every kind of broken tracer, with a log that nobody reads, and with a collector that works."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.system.support import System, full, until
from tests.telemetry.modes import IN_CI, MODES, environment

AGENTS = ("agents_observed:watched", "agents_observed:broken")
STORY = {
    "retried, with tools": '!status code=429 retry_after=0 times=1\n!say working\n!tool echo {"text": "x"}\n'
    "!say on\n!tool leak\n!say further\n!tool unknown\n!say done",  # one by one: parallel calls end in any order
    "refused": "!status code=400",
    "stopped": "!say waiting\n!stall after=0",
    "asked again": "!say again",
}
SECRET = "hf-0123456789-secret"
# What differs between two runs of one script.
TIMES = {"ts", "duration_ms", "ttft_ms", "wait_ms", "timings", "requested_at", "ended_at", "elapsed_ms"}
TIMES |= {"upstream_closed_ms", "run", "session", "worker", "epoch"}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One model, one store; each test restarts the server on them, in its own environment."""
    directory = tmp_path_factory.mktemp("telemetry")
    shutil.copy(Path(__file__).with_name("agents_observed.py"), directory)
    with closing(System(directory, *AGENTS, env=env({}))) as system:
        yield system


def env(more: dict[str, str]) -> dict[str, str]:
    without = {"HOLDFAST_TRACER": "", "HOLDFAST_OTEL_ENDPOINT": ""}  # one that the whole suite runs in
    return {"HOLDFAST_SPARE": "false", "HOLDFAST_RENEW_S": "0.3", "HOLDFAST_MODEL_KEY": SECRET, **without, **more}


def restart(system: System, more: dict[str, str]) -> None:
    system.server.end()
    system.env = env(more)
    system.start()


def stripped(value: Any, calls: dict[str, str]) -> Any:
    """A value of the log without times and chance."""
    if isinstance(value, dict):
        kept = {k: stripped(v, calls) for k, v in value.items() if k not in TIMES}
        if "call" in kept:
            kept["call"] = calls.setdefault(kept["call"], f"call {len(calls)}")
        return kept
    return [stripped(item, calls) for item in value] if isinstance(value, list) else value


def play(system: System, mode: int) -> dict[str, list[Any]]:
    """The logs of the fixed runs."""
    logs = {}
    for name, script in STORY.items():
        # The rehearsal model counts `times=` per list of messages: no two modes may have the same.
        run = system.run(f"{script}\n({mode})", session=f"{mode}-{name == 'refused'}")
        if name == "stopped":
            system.until_text(run, "waiting")
            began = time.monotonic()
            system.stop(run)
            assert system.end(run)["reason"] == "stopped"
            assert time.monotonic() - began < 5
        calls: dict[str, str] = {}
        logs[name] = joined([stripped(event, calls) for event in system.events(run)])
        logs[name][0]["input"] = script
    return logs


def joined(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pieces of one text or of one call's arguments together: how they are cut is a matter of milliseconds."""
    found: list[dict[str, Any]] = []
    for event in events:
        del event["seq"]  # contiguous, as `events` has checked
        before = found[-1] if found else {}
        key = "delta" if event["type"] == "tool.args" else "text"
        same = event["type"].endswith((".delta", ".args")) and before | {key: ""} == event | {key: ""}
        if same:
            before[key] += event[key]
        else:
            found.append(event)
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_log_is_the_same_whatever_the_tracer_does(system: System):
    """P6: absent, None, raising, hanging or unreachable, the tracer changes not one byte, times aside."""
    first = None
    for number, mode in enumerate(list(MODES)[: full(len(MODES), IN_CI)]):
        if number:
            restart(system, environment(mode))
        logs = play(system, number)
        kinds = [event["type"] for event in logs["retried, with tools"]]
        assert kinds.count("tool.finished") == 3
        assert "model.retried" in kinds
        first = first or logs
        assert json.dumps(logs) == json.dumps(first), mode
        if mode == "raising":
            check_losses(system)
        began = time.monotonic()
        system.server.end()
        assert time.monotonic() - began < 15, f"tracer {mode}: the server did not end"


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_tracer_that_cannot_be_had_is_said_to_be_missing(system: System):
    """P8: it is made where runs are worked on, in another process than the one that tells how the start went."""
    restart(system, {"HOLDFAST_TRACER": "no_such_module:tracer"})
    said = until(
        lambda: [line for line in system.server.log().splitlines() if line.startswith("degraded ")], "it is said", 20
    )
    assert "what=telemetry" in said[0]
    assert "tracer is not to be had" in said[0]
    until(lambda: metric(system, "holdfast_degraded_total") >= 1, "it is counted", 20, every_s=0.1)
    assert system.end(system.run("!say well"))["state"] == "completed"


def check_losses(system: System) -> None:
    """P8: what a tracer lost is counted, and said once in a minute."""
    ended = 'holdfast_runs_ended_total{reason="finished",state="completed"}'
    # With them come those of the workers before, for as long as a worker is remembered.
    until(lambda: metric(system, ended) >= 2, "the worker has reported its runs", 20, every_s=0.1)
    failures = 'holdfast_telemetry_failures_total{process="worker",sink="tracer"}'
    until(lambda: metric(system, failures) >= len(STORY), "the tracer has failed for each run", 20, every_s=0.1)
    said = [line for line in system.server.log().splitlines() if line.startswith("telemetry_failed")]
    assert len(said) == 1
    assert "sink=tracer" in said[0]


def metric(system: System, series: str) -> float:
    """A value of /metrics; -1 where it is absent."""
    status, text = system.http.ask("GET", "/metrics")
    assert status == 200
    return next((float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(series + " ")), -1.0)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_log_that_nobody_reads_stops_no_run(tmp_path: Path):
    """`holdfast serve 2>&1 | less`: the pipe is full, a tool prints, and everything goes on."""
    shutil.copy(Path(__file__).with_name("agents_observed.py"), tmp_path)
    reader, writer = os.pipe()
    try:
        with closing(Piped(tmp_path, writer)) as system:
            fill(writer)
            assert system.end(system.run('!tool chatter {"lines": 3000}\n!say done'))["output"] == "done"
            run = system.run("!say waiting\n!stall after=0")
            system.until_text(run, "waiting")
            system.stop(run)
            assert system.end(run, 10)["reason"] == "stopped"
            until(
                lambda: metric(system, 'holdfast_log_lines_dropped_total{process="worker"}') > 0,
                "the worker has reported the lines that were lost",
                10,
                every_s=0.2,
            )
            assert metric(system, 'holdfast_worker_replacements_total{why="killed"}') < 1
    finally:
        os.close(reader)
        os.close(writer)


def fill(writer: int) -> None:
    """Leave no room in a pipe, by an open file of our own: the flag must not reach the server's."""
    own = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(own, b"x" * 4096)
    except BlockingIOError:
        return
    finally:
        os.close(own)


class Piped(System):
    """A system whose server writes to a pipe."""

    def __init__(self, directory: Path, writer: int) -> None:
        self._writer = writer
        super().__init__(directory, *AGENTS, env=env({}))

    def output(self) -> int:
        return self._writer


class Collector:
    """Takes OTLP over HTTP, and keeps every span."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.raw = b""
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.take(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        self.headers.append({"path": path, **headers})
        self.raw += body
        request = ExportTraceServiceRequest.FromString(body)
        self.spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]

    def named(self, prefix: str) -> list[Any]:
        return [span for span in self.spans if span.name.startswith(prefix)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: a.value.int_value or a.value.string_value for a in span.attributes}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_trace_leads_from_the_client_to_the_tool_and_holds_no_secret(system: System):
    """One trace through client, gateway and worker, which are three processes; and no key in it, nor in the log."""
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with closing(Collector()) as collector:
        langfuse = {"LANGFUSE_PUBLIC_KEY": "pk-lf-1", "LANGFUSE_SECRET_KEY": "sk-lf-1", "LANGFUSE_HOST": collector.url}
        restart(system, {"HOLDFAST_OTEL_ENDPOINT": collector.url, "HOLDFAST_LANGFUSE": "true", **langfuse})
        script = '!say working\n!tool echo {"text": "argument"}\n!tool leak\n!tool settings\n!say concluded'
        headers = {"traceparent": f"00-{trace}-{parent}-01"}
        status, record = system.http.ask("POST", "/api/runs", {"input": script}, headers)
        assert status == 201
        system.end(record["id"])
        failed = system.run("hello", agent="broken")
        assert system.end(failed)["reason"] == "agent_error"
        events = json.dumps(system.events(record["id"]) + system.events(failed))
        log = system.server.log()
        system.server.end()
        found = [s for s in collector.spans if s.trace_id.hex() == trace]
        paths = {(h["path"], h.get("authorization", "")) for h in collector.headers}
    token = base64.b64encode(b"pk-lf-1:sk-lf-1").decode()
    assert paths == {("/v1/traces", ""), ("/api/public/otel/v1/traces", f"Basic {token}")}
    found = list({s.span_id: s for s in found}.values())  # both sinks sent what each made
    requests = [s for s in found if s.name == "POST /api/runs"]
    assert len(requests) == 1
    assert requests[0].parent_span_id.hex() == parent
    runs = [s for s in found if s.name == "invoke_agent watched"]
    assert {s.parent_span_id for s in runs} == {requests[0].span_id}
    inner = [s for s in found if s.parent_span_id == runs[0].span_id]
    names = sorted(s.name for s in inner)
    assert names == [
        "chat rehearsal",
        "chat rehearsal",
        "execute_tool echo",
        "execute_tool leak",
        "execute_tool settings",
    ]
    chat = attributes(next(s for s in inner if s.name == "chat rehearsal"))
    assert chat["gen_ai.operation.name"] == "chat"
    assert chat["gen_ai.usage.output_tokens"] > 0
    assert f"trace={trace}" in log
    assert SECRET not in events + log
    assert "[masked]" in events
    for hidden in (SECRET, "argument", "concluded", "working"):
        assert hidden.encode() not in collector.raw

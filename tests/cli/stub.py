"""A Holdfast server in small, for tests of the command line: one scripted answer, real sockets, no engine.

A prompt is answered with the words of the prompt, one event each; `slow` leaves the run open until it is stopped.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

_RECEIPT = {
    "requested_at": "2026-01-02T03:04:05.000Z",
    "ended_at": "2026-01-02T03:04:05.041Z",
    "elapsed_ms": 41,
    "upstream_closed_ms": 12,
    "tools": [
        {"call": "c1", "name": "search", "ended": "cancelled"},
        {"call": "c2", "name": "dig", "ended": "abandoned"},
    ],
    "abandoned": True,
    "by": "worker",
}
_ERROR = {"code": "model_connect", "message": "nobody answered", "cause": None, "retryable": True, "remedy": "start it"}

_WORKER = {
    "worker": "w1",
    "seen_at": "2026-01-02T03:04:05.000Z",
    "facts": {
        "runs": 1, "concurrency": 64, "accepting": False, "loop_lag_ms": 7, "quarantined": 4, "quarantine": 4,
        "breakers": [{"upstream": "api openai", "state": "open", "failures": 5, "opens_in_s": 12.0}],
    },
}  # fmt: skip


class Stub:
    """The server, its runs, and the requests it got."""

    def __init__(self, port: int = 0) -> None:
        self.changed = threading.Condition()
        self.runs: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, list[dict[str, Any]]] = {}
        self.messages: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.keys: list[str | None] = []
        self.closed = False
        handler = type("Handler", (_Handler,), {"stub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed = True
        with self.changed:
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def create(self, text: str, session: str = "") -> dict[str, Any]:
        """A run that answers with the words of its prompt; with `slow` among them it stays open."""
        with self.changed:
            run = f"r_{len(self.runs) + 1}"
            session = session or "s_new"
            self.runs[run] = {
                "id": run, "session": session, "agent": "echo", "state": "running", "reason": None, "stopping": None,
                "error": None, "receipt": None, "rehearsal": True, "created_at": "2026-01-02T03:04:05.000Z",
            }  # fmt: skip
            self.logs[run] = []
            self._append(run, "run.created", session=session, input=text)
            for word in text.split():
                self._append(run, "text.delta", part=0, text=f"{word} ")
            if "fail" in text:
                self._end(run, "failed", "model_error", error=_ERROR)
            elif "slow" not in text:
                self._end(run, "completed", "finished", output=text)
            return self.runs[run]

    def stop(self, run: str) -> dict[str, Any]:
        """End a run with a receipt."""
        with self.changed:
            if self.runs[run]["state"] == "running":
                self._append(run, "run.stopping", reason="stopped")
                self._end(run, "cancelled", "stopped", receipt=_RECEIPT)
            return self.runs[run]

    def _append(self, run: str, kind: str, **fields: Any) -> None:
        log = self.logs[run]
        log.append({"seq": len(log) + 1, "run": run, "type": kind, "ts": "2026-01-02T03:04:05.000Z", **fields})
        self.changed.notify_all()

    def _end(self, run: str, state: str, reason: str, **fields: Any) -> None:
        self.runs[run] |= {"state": state, "reason": reason}
        self.runs[run] |= {name: value for name, value in fields.items() if name in self.runs[run]}
        self._append(run, f"run.{state}", reason=reason, **fields)


class _Handler(BaseHTTPRequestHandler):
    stub: Stub
    protocol_version = "HTTP/1.1"

    def parse_request(self) -> bool:
        """Nothing more is answered on a connection that was kept alive, once the server is closed."""
        parsed = super().parse_request()
        self.close_connection |= self.stub.closed
        return parsed and not self.stub.closed

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.stub.requests.append(f"GET {self.path}")
        self.stub.keys.append(self.headers.get("authorization"))
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        match parts.path.strip("/").split("/"):
            case ["api", "runs"]:
                found = [r for r in reversed(self.stub.runs.values()) if query.get("state", r["state"]) == r["state"]]
                self._answer(200, {"runs": found, "next": None})
            case ["api", "workers"]:
                self._answer(200, {"workers": [_WORKER], "agents": [{"name": "echo"}]})
            case ["api", "sessions"]:
                self._answer(200, {"sessions": [{"id": "s_1", "runs": 2, "queued": 0, "active": None}], "next": None})
            case ["api", "sessions", "s_1"]:
                active = next((r for r in self.stub.runs.values() if r["state"] == "running"), None)
                self._answer(200, {"id": "s_1", "messages": self.stub.messages, "active": active, "queue": []})
            case ["api", "runs", run, *rest] if run in self.stub.runs:
                self._run(run, rest, query)
            case _:
                self._problem(parts.path)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.stub.requests.append(f"POST {self.path}")
        match urlsplit(self.path).path.strip("/").split("/"):
            case ["api", "runs"]:
                asked = json.loads(body)
                self._answer(201, self.stub.create(asked["input"], asked.get("session", "")))
            case ["api", "runs", run, "stop"] if run in self.stub.runs:
                self._answer(202, self.stub.stop(run))
            case _:
                self._problem(self.path)

    def _run(self, run: str, rest: list[str], query: dict[str, str]) -> None:
        record = self.stub.runs[run]
        if rest == []:
            self._answer(200, record)
        elif rest == ["inspect"]:
            timers = [{"name": "lease", "left_ms": 9000}, {"name": "due", "left_ms": 540_000}]
            state = {name: record[name] for name in ("state", "reason", "stopping")}
            self._answer(200, {"run": run, **state, "waiting_on": "model", "since_ms": 12_000, "timers": timers})
        elif "event-stream" in self.headers.get("accept", ""):
            self._stream(run, int(query.get("after", 0)))
        else:
            after, limit = int(query.get("after", 0)), int(query.get("limit", 500))
            log = self.stub.logs[run]
            self._answer(200, {"events": log[after : after + limit], "head": len(log), "state": record["state"]})

    def _stream(self, run: str, seq: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"retry: 1000\n\n")
        log = self.stub.logs[run]
        while True:
            with self.stub.changed:
                self.stub.changed.wait_for(lambda seq=seq: len(log) > seq, 10)
                fresh = log[seq:]
            for event in fresh:
                frame = f"id: {event['seq']}-1\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n"
                self.wfile.write(frame.encode())
                self.wfile.flush()
            seq += len(fresh)
            if not fresh or self.stub.runs[run]["state"] != "running":
                return

    def _problem(self, what: str) -> None:
        kind = "session" if "sessions" in what else "run"
        body = {
            "code": f"unknown_{kind}",
            "detail": f"no such {kind}",
            "remedy": f"check the {kind} id",
            "retryable": False,
        }
        self._answer(404, body)

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

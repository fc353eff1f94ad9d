"""Holdfast as its users have it: real processes, real sockets, and a client that trusts nothing.

Every wait here has a limit, and only processes that were started here are ended, each by its pid.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.environment import clean

ROOT = Path(__file__).resolve().parents[2]
HOLDFAST = Path(sys.executable).with_name("holdfast")
FULL = os.environ.get("HOLDFAST_FULL", "") not in ("", "0")
TERMINAL = {"run.completed", "run.failed", "run.cancelled"}
START_S = 40.0
LIMIT_S = 30.0
_CHANCE = random.SystemRandom()  # not the one that Hypothesis seeds


def full(at_full_size: int, in_ci: int) -> int:
    """A size: the one of the promise with HOLDFAST_FULL=1, else one that CI has time for."""
    return at_full_size if FULL else in_ci


def free_port() -> int:
    """One that nobody has, below those that Linux gives to connections: none takes it before its server does."""
    while True:
        port = _CHANCE.randrange(10_000, 32_000)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def until(holds: Callable[[], Any], what: str, limit_s: float = LIMIT_S, every_s: float = 0.01) -> Any:
    """What `holds` returns, once that is true."""
    end = time.monotonic() + limit_s
    while not (found := holds()):
        assert time.monotonic() < end, f"not within {limit_s} s: {what}"
        time.sleep(every_s)
    return found


def ended(process: psutil.Process) -> bool:
    """Whether it runs no more; an orphan stays as a zombie where nobody reaps orphans."""
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


class Process:
    """A command with its output in a file."""

    def __init__(
        self, name: str, arguments: list[str], directory: Path, env: dict[str, str] | None = None, output: int = -1
    ) -> None:
        """`output` is a descriptor to write to instead."""
        self.name = name
        self.path = directory / f"{name}.log"
        self._file = self.path.open("ab")
        self.popen = subprocess.Popen(
            [str(HOLDFAST), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._file if output < 0 else output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env={**clean(), "OPENAI_API_KEY": "none", **(env or {})},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def answers(self, http: Http, path: str) -> bool:
        """Whether it lives, and answers with 200."""
        assert self.popen.poll() is None, f"{self.name} ended with {self.popen.returncode}:\n{self.log()}"
        with suppress(OSError):
            return http.ask("GET", path, limit_s=5)[0] == 200
        return False

    def log(self) -> str:
        return self.path.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        if self.popen.poll() is None:
            os.kill(self.pid, number)

    def wait(self, limit_s: float = LIMIT_S) -> int:
        """Its exit code."""
        return self.popen.wait(limit_s)

    def end(self, limit_s: float = 15.0) -> None:
        """SIGTERM twice, then SIGKILL."""
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            self.signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(0.3 if number is signal.SIGTERM else limit_s)
        self._file.close()


class Http:
    """Requests to one port; a connection for each, so that none is left behind."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connection(self, limit_s: float = LIMIT_S) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=limit_s)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, limit_s: float = LIMIT_S
    ) -> tuple[int, Any]:
        """Status and JSON (or text) of the answer."""
        with closing(self.connection(limit_s)) as connection:
            connection.request(method, path, None if body is None else json.dumps(body), headers or {})
            response = connection.getresponse()
            raw = response.read()
        with suppress(ValueError):
            return response.status, json.loads(raw)
        return response.status, raw.decode(errors="replace")

    def get(self, path: str) -> Any:
        status, body = self.ask("GET", path)
        assert status == 200, f"GET {path}: {status} {body}"
        return body

    @contextmanager
    def stream(
        self,
        path: str,
        accept: str = "text/event-stream",
        method: str = "GET",
        body: Any = None,
        headers: dict[str, str] | None = None,
        limit_s: float = LIMIT_S,
    ) -> Iterator[http.client.HTTPResponse]:
        """A response whose body is read as it comes; leaving closes the socket."""
        connection = self.connection(limit_s)
        try:
            connection.request(
                method, path, None if body is None else json.dumps(body), {"Accept": accept, **(headers or {})}
            )
            with closing(connection.getresponse()) as response:
                yield response
        finally:
            connection.close()


def frames(response: http.client.HTTPResponse) -> Iterator[tuple[str | None, str | None, str]]:
    """(id, event, data) of each server-sent event, as it comes."""
    fields: dict[str, str] = {}
    while line := response.readline():
        text = line.decode().rstrip("\n")
        if text:
            name, _, value = text.partition(": ")
            fields[name] = value
        elif fields:
            if "data" in fields:
                yield fields.get("id"), fields.get("event"), fields["data"]
            fields = {}


class Model:
    """`holdfast rehearse` in a process of its own."""

    def __init__(self, directory: Path, port: int = 0) -> None:
        self.http = Http(port or free_port())
        self.url = f"http://127.0.0.1:{self.http.port}/v1"
        self.process = Process("rehearse", ["rehearse", "--port", str(self.http.port)], directory)

    def wait(self) -> None:
        """Until it answers."""
        until(lambda: self.process.answers(self.http, "/_stats"), "rehearse answers", START_S)

    def stats(self) -> dict[str, Any]:
        return self.http.get("/_stats")


class System:
    """A rehearsal model and a server on SQLite. `server` may end and be started again on the same store."""

    def __init__(self, directory: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.arguments = arguments
        self.env = env or {}
        shutil.copy(Path(__file__).with_name("agents_under_test.py"), directory)
        self.model = Model(directory)
        self.http = Http(free_port())
        self.processes = [self.model.process]
        try:
            self.server = self.start()  # it waits for its model
            self.model.wait()
        except BaseException:
            self.close()
            raise

    def output(self) -> int:
        """Where the server's output goes, if not to its file."""
        return -1

    def command(self, port: int) -> list[str]:
        model = ["--model", "rehearsal", "--model-url", self.model.url]
        return ["serve", *self.arguments, *model, "--port", str(port), "--store", f"sqlite:///{self.store}"]

    @property
    def store(self) -> Path:
        return self.directory / "holdfast.db"

    def start(self) -> Process:
        """Start the server and wait until it is ready; `ready_s` says how long that took."""
        began = time.monotonic()
        server = Process(
            f"serve-{len(self.processes)}", self.command(self.http.port), self.directory, self.env, self.output()
        )
        self.processes.append(server)
        self.server = server
        until(lambda: server.answers(self.http, "/readyz"), "serve is ready", START_S, every_s=0.005)
        self.ready_s = time.monotonic() - began
        return server

    def close(self) -> None:
        for process in reversed(self.processes):
            process.end()

    def logs(self) -> str:
        """The end of what each process said."""
        return "\n".join(f"--- {p.name} (pid {p.pid})\n{p.log()[-6000:]}" for p in self.processes)

    def ps(self) -> psutil.Process:
        return psutil.Process(self.server.pid)

    def workers(self) -> list[psutil.Process]:
        """The server's worker and spare, without the guard that would end them."""
        return [p for p in self.ps().children() if "guard_child" not in " ".join(p.cmdline())]

    def kill(self) -> None:
        """kill -9 of all its processes at once: none sees another one die."""
        everybody = [self.ps(), *self.workers()]
        for process in everybody:
            process.suspend()
        for process in everybody:
            process.kill()
        assert self.server.wait(10) == -signal.SIGKILL
        until(lambda: all(map(ended, everybody)), "all its processes are gone", 10)

    # runs

    def get(self, path: str) -> Any:
        return self.http.get(path)

    def run(self, text: str, **fields: Any) -> str:
        """Start a run; its id."""
        status, record = self.http.ask("POST", "/api/runs", {"input": text, **fields})
        assert status == 201, f"{status} {record}"
        return record["id"]

    def record(self, run: str) -> dict[str, Any]:
        return self.http.get(f"/api/runs/{run}")

    def inspect(self, run: str) -> dict[str, Any]:
        return self.http.get(f"/api/runs/{run}/inspect")

    def stop(self, run: str) -> dict[str, Any]:
        status, record = self.http.ask("POST", f"/api/runs/{run}/stop")
        assert status == 202, f"{status} {record}"
        return record

    def end(self, run: str, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """Its record, once it has ended."""

        def ended() -> dict[str, Any] | None:
            record = self.record(run)
            return record if record["ended_at"] else None

        return until(ended, f"{run} ends", limit_s)

    def events(self, run: str, after: int = 0, limit_s: float = LIMIT_S) -> list[dict[str, Any]]:
        """Its log from `after` on, to the terminal event, checked."""
        with self.http.stream(f"/api/runs/{run}/events?after={after}", limit_s=limit_s) as response:
            events = [json.loads(data) for _, _, data in frames(response)]
        check_log(events, after)
        return events

    def seen(self, run: str) -> list[dict[str, Any]]:
        """Its log so far."""
        events: list[dict[str, Any]] = []
        while True:
            path = f"/api/runs/{run}/events?after={len(events)}"
            status, page = self.http.ask("GET", path, headers={"Accept": "application/json"})
            assert status == 200, f"{status} {page}"
            events += page["events"]
            if not page["events"] or len(events) >= page["head"]:
                return events

    def until_event(self, run: str, kind: str, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The first event of a kind, once it is there; read live, so that it is known at once."""
        with self.http.stream(f"/api/runs/{run}/events", limit_s=limit_s) as response:
            for _, event, data in frames(response):
                if event == kind:
                    return json.loads(data)
        raise AssertionError(f"{run} ended without {kind}: {[e['type'] for e in self.seen(run)]}")

    def until_text(self, run: str, text: str, limit_s: float = LIMIT_S) -> None:
        """Return once `text` was said."""
        said = ""
        with self.http.stream(f"/api/runs/{run}/events", limit_s=limit_s) as response:
            for _, event, data in frames(response):
                said += json.loads(data)["text"] if event == "text.delta" else ""
                if text in said:
                    return
        raise AssertionError(f"{run} ended without {text!r}: {said!r}")

    def log_rows(self, run: str) -> list[tuple[int, int, bytes]]:
        """Seq, epoch and bytes of each event, from the database file."""
        with closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True)) as database:
            rows = database.execute(
                "SELECT e.seq, e.epoch, e.data FROM events e JOIN runs r ON e.run = r.n WHERE r.id = ? ORDER BY e.seq",
                (run,),
            ).fetchall()
        return [(seq, epoch, bytes(data)) for seq, epoch, data in rows]

    def prompt_works(self, session: str, text: str = "again") -> None:
        """The next prompt of a session is answered; what else a run left behind, this must hold."""
        record = self.end(self.run(f"!say {text}", session=session))
        assert (record["state"], record["output"]) == ("completed", text), record

    def journal(self, tool: str = "") -> list[dict[str, Any]]:
        """What happened to a tool, or to all of them, by their own account."""
        path = self.directory / "journal.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [entry for entry in map(json.loads, lines) if not tool or entry["tool"] == tool]


def check_log(events: list[dict[str, Any]], after: int = 0) -> None:
    """Contiguous, exactly one terminal event and that last; deltas are the text of their part."""
    assert [e["seq"] for e in events] == list(range(after + 1, after + 1 + len(events)))
    ends = [e["type"] for e in events if e["type"] in TERMINAL]
    assert len(ends) == 1, f"terminal events: {ends}"
    assert events[-1]["type"] in TERMINAL, f"after the terminal event: {events[-1]}"
    said: dict[int, str] = {}
    for event in events:
        if event["type"] in ("text.delta", "reasoning.delta"):
            said[event["part"]] = said.get(event["part"], "") + event["text"]
        elif event["type"] in ("text.done", "reasoning.done") and after == 0:
            assert said.get(event["part"]) == event["text"], f"part {event['part']}: its deltas are not its text"


class Watch:
    """Follows a run in a thread, and says when its terminal event arrived."""

    def __init__(self, system: System, run: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.at = 0.0
        self._system = system
        self._run = run
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        with self._system.http.stream(f"/api/runs/{self._run}/events") as response:
            for _, event, data in frames(response):
                if event in TERMINAL:
                    self.at = time.monotonic()
                self.events.append(json.loads(data))

    def end(self, limit_s: float = LIMIT_S) -> list[dict[str, Any]]:
        """The whole log; the stream was closed by the server."""
        self._thread.join(limit_s)
        assert not self._thread.is_alive(), f"no end of {self._run} within {limit_s} s; last {self.events[-1:]}"
        check_log(self.events)
        return self.events


class Open:
    """Polls the rehearsal model without a pause, and says when its last answer was closed."""

    def __init__(self, model: Model) -> None:
        self.closed_at = 0.0
        self._model = model
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        with closing(self._model.http.connection()) as connection:
            while not self._ending.wait(0.001):
                connection.request("GET", "/_stats")
                if json.loads(connection.getresponse().read())["open"] == 0:
                    self.closed_at = time.monotonic()
                    return

    def end(self, limit_s: float = 5.0) -> float:
        """When it saw that nothing is open any more."""
        self._thread.join(limit_s)
        self._ending.set()
        assert self.closed_at, f"the model still has an answer open after {limit_s} s"
        return self.closed_at


def percentile(values: list[float], part: float) -> float:
    """By the nearest rank."""
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def table(rows: list[list[str]]) -> list[str]:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]

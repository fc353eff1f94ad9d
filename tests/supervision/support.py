"""A server of two processes, from outside: which process is which, how soon it answers, what its readers keep."""

import json
import os
import re
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import psutil

from tests.system.reading import stored
from tests.system.support import TERMINAL, Http, Process, System, frames, until

CREW = "agents_supervised:crew"
CHILD = "holdfast.app.child"
STALL_S = 5.0  # loop_stall_s
STOP_BLOCKED_S = 3.5  # a stop of a run that blocks its loop
STOP_S = 2.5  # a stop of any other run


def worker_pid(system: System) -> int:
    """The process that works now, by the server's log."""
    found = re.findall(r"^worker_started .*\bpid=(\d+)", system.server.log(), re.MULTILINE)
    assert found, "no worker has started"
    return int(found[-1])


def children(server: Process) -> list[psutil.Process]:
    """Worker and spare, and what else the server started, as long as it lives."""
    try:
        return psutil.Process(server.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def is_child(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and CHILD in process.cmdline()
    return False


def spare_pid(system: System) -> int | None:
    """The process that waits."""
    working = worker_pid(system)
    return next((p.pid for p in children(system.server) if p.pid != working and is_child(p)), None)


def settled(system: System) -> tuple[int, int]:
    """Worker and spare, once both are there and the spare has imported what it needs (it is quiet)."""

    def both() -> tuple[int, int] | None:
        spare = spare_pid(system)
        if spare is None or not psutil.pid_exists(worker_pid(system)):
            return None
        with suppress(psutil.Error):
            before = psutil.Process(spare).cpu_times()
            time.sleep(0.3)
            after = psutil.Process(spare).cpu_times()
            if after.user + after.system - before.user - before.system < 0.02 and before.user > 0.2:
                return worker_pid(system), spare
        return None

    return until(both, "a worker and a spare that is ready", 20)


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """To a process of a server that the test started; it may have ended by itself."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def gone(pids: list[int], limit_s: float) -> float:
    """How long it took until none of these processes lived any more."""
    began = time.monotonic()

    def alive() -> list[int]:
        found = []
        for pid in pids:
            with suppress(psutil.Error):
                if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    found.append(pid)
        return found

    until(lambda: not alive(), f"of {pids} none lives", limit_s)
    return time.monotonic() - began


def began(system: System, tool: str, times: int = 1) -> None:
    """Wait until a tool has begun, so many times."""
    until(lambda: len([e for e in system.journal(tool) if e["what"] == "began"]) >= times, f"{tool} began")


def attempts(events: list[dict[str, Any]]) -> list[int]:
    return [e["attempt"] for e in events if e["type"] == "run.started"]


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [e["type"] for e in events]


class Pulse:
    """Asks /livez again and again, and keeps how long each answer took."""

    def __init__(self, http: Http) -> None:
        self.took: list[float] = []
        self._http = http
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        while not self._ending.wait(0.02):
            asked = time.monotonic()
            status = 0
            with suppress(OSError):
                status = self._http.ask("GET", "/livez", limit_s=10)[0]
            self.took.append(time.monotonic() - asked if status == 200 else 99.0)

    def worst(self) -> float:
        """The slowest answer; a refused one counts as 99 s."""
        self._ending.set()
        self._thread.join(15)
        assert self.took, "/livez was never asked"
        return max(self.took)


@dataclass
class Follower:
    """Reads one run until its end, keeps every byte and comes back after each broken connection."""

    system: System
    run: str
    rows: list[bytes] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    at: list[float] = field(default_factory=list)  # when each row arrived
    breaks: int = 0
    problem: str = ""
    closed: bool = False
    session: str = ""

    def __post_init__(self) -> None:
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self.closed and not self.problem and not self._given_up.is_set():
            try:
                self._read()
            except (OSError, ValueError):
                self.breaks += 1
            self._given_up.wait(0.05)

    def _read(self) -> None:
        headers = {"Last-Event-ID": self.ids[-1]} if self.ids else {}
        with self.system.http.stream(f"/api/runs/{self.run}/events", headers=headers, limit_s=20) as response:
            if response.status == 204:
                self.closed = True
                return
            if response.status != 200:
                self.problem = f"{response.status} {response.read()[:300]!r}" if response.status < 500 else ""
                return
            for id_, event, data in frames(response):
                if id_ is None:
                    self.problem = f"not in the log: {event} {data}"
                    return
                self.at.append(time.monotonic())
                self.ids.append(id_)
                self.rows.append(data.encode())
                if event in TERMINAL:
                    self.closed = True

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(row) for row in list(self.rows)]

    def said(self) -> str:
        return "".join(e["text"] for e in self.events if e["type"] == "text.delta")

    def after(self, moment: float) -> float | None:
        """How long after `moment` the next event came."""
        return next((at - moment for at in list(self.at) if at > moment), None)

    def until(self, kind: str, limit_s: float = 30.0) -> float:
        """When the first event of a kind arrived."""
        until(lambda: kind in kinds(self.events), f"{kind} in {self.run}", limit_s)
        return self.at[kinds(self.events).index(kind)]

    def end(self, limit_s: float = 30.0) -> list[dict[str, Any]]:
        """The whole log: what the reader kept is what is stored, byte for byte, with one end and no gap."""
        self._thread.join(limit_s)
        alive = self._thread.is_alive()
        self._given_up.set()
        assert not alive, f"{self.run} has not ended within {limit_s} s: {self.events[-2:]}"
        assert not self.problem, self.problem
        log = stored(self.system, self.run)
        assert self.rows == [row.data for row in log], f"{self.run}: the reader has other bytes than the log"
        assert self.ids == [row.id for row in log]
        events = self.events
        assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
        ends = [e["type"] for e in events if e["type"] in TERMINAL]
        assert len(ends) == 1, f"{self.run}: terminal events {ends}"
        assert events[-1]["type"] in TERMINAL
        return events


def longest_silence(follower: Follower) -> float:
    """Between two events of a run that was followed."""
    return max((b - a for a, b in pairwise(follower.at)), default=0.0)


def tools_of(event: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and end of each tool in a receipt."""
    return [(t["name"], t["ended"]) for t in event["receipt"]["tools"]]

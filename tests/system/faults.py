"""Every fault of a model against every limit, on real processes; writes the table of docs/faults.md.

    make faults          runs all cases and rewrites the table (half a minute)

Four servers, each with one of the model's limits set short and the others at their defaults, share one rehearsal model.
The run's deadline and Stop are tried beside them. What a limit does not see is ended by the run's own deadline, the
longest time here. Restarts and the breaker are off: they answer a fault by what happened before, and a case is one
fault.

Times go into the table as words, and are checked with room for a machine that is busy; so it does not change by itself.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import psutil

from tests.system.support import ROOT, START_S, TERMINAL, Http, Process, free_port, until

PAGE = ROOT / "docs" / "faults.md"
SHORT_S = 2.0  # the limit that is tried
SHORT_DEADLINE_S = 3.0  # where it is the limit that is tried: above that of a failure with the wait before its retry
DEADLINE_S = 5.5  # of all other runs: what ends those that no limit ends
LATE_S = 6.0  # how much later than its limit an end may be seen here, on a machine that is busy with other things
AT_ONCE = 6  # cases that need no waiting and run side by side
LIMITS = ("connect", "first content", "idle", "request", "deadline", "Stop")
MODEL_LIMITS = {name: f"HOLDFAST_MODEL_{name.upper().replace(' ', '_')}_S" for name in LIMITS[:4]}
QUIET = {"model_retries": "1", "model_restarts": "0", "breaker_failures": "1000000", "spare": "false"}
OFF = {f"HOLDFAST_{name.upper()}": value for name, value in QUIET.items()}
TABLE = re.compile(r"(<!-- measured: faults -->\n).*?(<!-- end -->)", re.DOTALL)


class Fault(NamedTuple):
    """What goes wrong, and how to make it happen."""

    where: str
    what: str
    script: str
    shown: str = ""  # of the fault's own text, before it happens
    lasts: bool = False  # until something else ends it


def _everywhere(what: str, line: str, *, lasts: bool = False) -> list[Fault]:
    """The same fault before the first content, after it, and inside the arguments of a tool call."""
    part = '!tool_part nap {"seconds": 60, "why": "tides"}\n'
    return [
        Fault("before content", what, line.format(after=0), lasts=lasts),
        Fault("after content", what, line.format(after=3), "t3 ", lasts),
        Fault("in arguments", what, part + line.format(after=0), '{"se', lasts),
    ]


def _status(code: int, rest: str = "") -> Fault:
    return Fault("before content", f"status {code} {rest}".strip(), f"!status code={code} {rest}".strip())


REFUSED = Fault("connecting", "connection refused", "!say never")
DEAF = Fault("connecting", "connection never accepted", "!say never", lasts=True)
FAULTS: tuple[Fault, ...] = (
    Fault("before content", "no headers", "!slow_headers for=60", lasts=True),
    *_everywhere("silence", "!stall after={after} for=60", lasts=True),
    *_everywhere("comments only", "!comments after={after} for=60", lasts=True),
    Fault("after content", "an answer without end", "!tokens n=100000 rate=20", "t3 ", lasts=True),
    *_everywhere("connection dropped", "!close after={after}"),
    *_everywhere("clean end without finish_reason", "!truncate after={after}"),
    *_everywhere("a chunk that is not JSON", "!bad_json after={after}"),
    *_everywhere("an error in the stream", "!error_in_stream after={after}"),
    _status(400),
    _status(400, "error=context_length_exceeded"),
    _status(401),
    _status(404),
    _status(429),
    _status(429, "retry_after=0.1 times=1"),
    _status(429, "retry_after=60"),
    _status(500),
    _status(503, "retry_after=0.1"),
)


@dataclass
class Case:
    """One fault against one limit, and what came of it."""

    fault: Fault
    limit: str
    tag: str
    took_s: float = 0.0
    closed_ms: float = 0.0
    end: dict[str, Any] = field(default_factory=dict)
    closed: str = "no"
    works: str = "no"

    @property
    def prompt(self) -> str:
        return f"{self.tag}\n{self.fault.script}"

    @property
    def deadline_s(self) -> float:
        if self.limit == "deadline":
            return SHORT_DEADLINE_S
        twice = self.fault is DEAF and self.limit == "connect"  # it has a retry behind it, and must not be near its end
        return 2 * DEADLINE_S if twice else DEADLINE_S

    @property
    def outcome(self) -> str:
        state = self.end["type"].removeprefix("run.")
        return state if state == "completed" else f"{state}: {self.end['reason']}"

    @property
    def code(self) -> str:
        return f"`{self.end['error']['code']}`" if "error" in self.end else "none"

    @property
    def when(self) -> str:
        """In words; that it is true is checked here, with room for a busy machine."""
        words, at_least, at_most = self._bounds()
        problem = f"{self.tag}: {self.outcome} {self.code} after {self.took_s:.2f} s, not {words}"
        assert at_least - 0.1 <= self.took_s <= at_most + LATE_S, problem
        return words

    def _bounds(self) -> tuple[str, float, float]:
        reason, code = self.end.get("reason"), self.end.get("error", {}).get("code", "")
        if reason == "stopped":
            return "at the stop", 0.0, 0.0
        if reason == "deadline":
            own = self.limit == "deadline"
            limit_s = self.deadline_s
            return ("at the limit" if own else "at the run's deadline"), limit_s, limit_s
        if code == "model_connect" and self.fault.lasts:
            return "at the limit, twice", 2 * SHORT_S, 2 * SHORT_S + 1
        if reason == "model_stalled":
            return "at the limit", SHORT_S, SHORT_S + 0.5
        return "at once", 0.0, 1.0

    def cells(self) -> tuple[str, ...]:
        return self.outcome, self.code, self.when, self.closed, self.works


class Upstream:
    """The rehearsal model on a port of its own, which can be down, or take no connection."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.http = Http(_quiet_port())
        self.url = f"http://127.0.0.1:{self.http.port}/v1"
        self.process: Process | None = None

    def start(self) -> Process:
        self.process = Process("rehearse", ["rehearse", "--port", str(self.http.port)], self.directory)
        return self.process

    def wait(self) -> None:
        process = self.process
        assert process is not None
        until(lambda: process.answers(self.http, "/_stats"), "rehearse answers", START_S)

    def kill(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.signal(signal.SIGKILL)
            process.wait()
            process.end()

    def deaf(self) -> list[socket.socket]:
        """Listen, and let the queue of connections be full: who comes now waits for ever."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.http.port))
        listener.listen(0)
        held = [listener]
        for _ in range(4):
            waiting = socket.socket()
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(("127.0.0.1", self.http.port))
            held.append(waiting)
        return held


def _quiet_port() -> int:
    """A port that no outgoing connection of another process takes while the model is down."""
    for _ in range(100):
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port from 20000 to 30000")


class Site:
    """The servers and their model."""

    def __init__(self, directory: Path) -> None:
        self.model = Upstream(directory)
        self.processes: list[Process] = []
        self.servers: dict[str, Http] = {}
        self.pids: dict[str, int] = {}
        try:
            self.model.start()
            for name, setting in MODEL_LIMITS.items():
                port, place = free_port(), directory / name.replace(" ", "_")
                place.mkdir()
                command = ["serve", "--model", "rehearsal", "--model-url", self.model.url, "--port", str(port)]
                process = Process("serve", command, place, {**OFF, setting: f"{SHORT_S:g}"})
                self.processes.append(process)
                self.servers[name], self.pids[name] = Http(port), process.pid
            self.model.wait()
            for process, http in zip(self.processes, self.servers.values(), strict=True):
                until(lambda p=process, h=http: p.answers(h, "/readyz"), "serve is ready", START_S)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for process in self.processes:
            process.signal(signal.SIGTERM)
        for process in self.processes:
            process.end()
        self.model.kill()

    def logs(self) -> str:
        return "\n".join(f"--- {p.path}\n{p.log()[-3000:]}" for p in self.processes)

    def server_of(self, case: Case) -> str:
        """Whose settings the case needs; Stop and the deadline are tried where no other limit can be first."""
        if case.limit in self.servers:
            return case.limit
        return "idle" if case.fault.where == "connecting" else "connect"

    def connecting(self) -> list[str]:
        """Servers that have a connection to the model's port, open or opening."""
        found = []
        for name, pid in self.pids.items():
            parent = psutil.Process(pid)
            for process in [parent, *parent.children(recursive=True)]:
                ports = [c.raddr.port for c in process.net_connections("tcp") if c.raddr and c.status != "CLOSE_WAIT"]
                found += [name] if self.model.http.port in ports else []
        return found


class _Open:
    """Follows which prompts the model has open."""

    def __init__(self, client: httpx2.AsyncClient, model: Upstream) -> None:
        self._client = client
        self._url = f"http://127.0.0.1:{model.http.port}/_stats?open=1"
        self.asked_at = 0.0  # when the newest answer was asked for
        self.prompts: list[str] = []

    async def follow(self) -> None:
        while True:
            asked = time.monotonic()
            prompts = (await self._client.get(self._url)).json()["open_prompts"]
            self.prompts, self.asked_at = prompts, asked
            await asyncio.sleep(0.02)

    def has(self, tag: str) -> bool:
        return any(prompt.split("\n", 1)[0] == tag for prompt in self.prompts)

    async def closed(self, tag: str, since: float) -> bool:
        """Whether the model sees it closed, by an answer that was asked for after `since`."""
        return await _until(lambda: self.asked_at > since and not self.has(tag), 5.0)


async def _until(holds: Callable[[], bool], limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.01)
    return True


class Runner:
    """Plays cases."""

    def __init__(self, site: Site, client: httpx2.AsyncClient) -> None:
        self.site = site
        self.client = client
        self.open = _Open(client, site.model)
        self._quick = asyncio.Semaphore(AT_ONCE)

    def url(self, case: Case, path: str) -> str:
        return f"http://127.0.0.1:{self.site.servers[self.site.server_of(case)].port}{path}"

    async def play(self, cases: Iterable[Case], *, up: bool) -> None:
        """All of them side by side; those that wait are many, those that do not are few at a time."""
        async with asyncio.TaskGroup() as group:
            following = group.create_task(self.open.follow()) if up else None
            tasks = []
            for case in sorted(cases, key=lambda case: not case.fault.lasts):
                tasks.append(group.create_task(self._case(case, up=up)))
                await asyncio.sleep(0.01)
            await asyncio.wait(tasks)
            if following is not None:
                following.cancel()

    async def _case(self, case: Case, *, up: bool) -> None:
        if case.fault.lasts:
            await self._fault(case, up=up)
        else:
            async with self._quick:
                await self._fault(case, up=up)
        if up:
            since = time.monotonic()
            case.closed = "yes" if await self.open.closed(case.tag, since) else "no"
            case.closed_ms = (self.open.asked_at - since) * 1000
            async with self._quick:
                await self.next_prompt(case)

    async def _fault(self, case: Case, *, up: bool) -> None:
        body = {"input": case.prompt, "session": case.tag, "deadline_s": case.deadline_s}
        began = time.monotonic()
        created = await self.client.post(self.url(case, "/api/runs"), json=body)
        assert created.status_code == 201, created.text
        run = created.json()["id"]
        stopping = None
        shown = asyncio.Event()
        if case.limit == "Stop" and case.fault.lasts:
            stopping = asyncio.create_task(self._stop(case, run, shown, up=up))
        case.end = await self._end_of(case, run, shown)
        case.took_s = time.monotonic() - (await stopping if stopping is not None else began)
        if case.limit == "Stop" and not case.fault.lasts:  # a stop that comes too late changes nothing
            await self.client.post(self.url(case, f"/api/runs/{run}/stop"))
            record = (await self.client.get(self.url(case, f"/api/runs/{run}"))).json()
            assert f"run.{record['state']}" == case.end["type"]

    async def _stop(self, case: Case, run: str, shown: asyncio.Event, *, up: bool) -> float:
        """Stop where the fault has begun; when that was asked for."""
        if case.fault.shown:
            async with asyncio.timeout(30):
                await shown.wait()
        elif up:
            assert await _until(lambda: self.open.has(case.tag), 30)
        else:
            assert await _until(lambda: bool(self.site.connecting()), 30)
        await asyncio.sleep(0.1)
        asked = time.monotonic()
        answer = await self.client.post(self.url(case, f"/api/runs/{run}/stop"))
        assert answer.status_code == 202, answer.text
        return asked

    async def _end_of(self, case: Case, run: str, shown: asyncio.Event) -> dict[str, Any]:
        """The terminal event, from the live log; `shown` is set when the fault's own text was there."""
        said = ""
        path = self.url(case, f"/api/runs/{run}/events")
        async with self.client.stream("GET", path, headers={"Accept": "application/x-ndjson"}) as response:
            async for line in response.aiter_lines():
                if not line:
                    continue
                event = json.loads(line)
                said += event.get("text", "") if event["type"] == "text.delta" else event.get("delta", "")
                if case.fault.shown and case.fault.shown in said:
                    shown.set()
                if event["type"] in TERMINAL:
                    return event
        raise AssertionError(f"{case.tag}: the log of {run} ended without a terminal event")

    async def next_prompt(self, case: Case) -> None:
        """The session's next prompt, which the model answers."""
        body = {"input": f"{case.tag} again\n!say works", "session": case.tag}
        created = await self.client.post(self.url(case, "/api/runs"), json=body)
        assert created.status_code == 201, created.text
        end = await self._end_of(case, created.json()["id"], asyncio.Event())
        case.works = "yes" if end.get("output") == "works" else "no"


def cases_of(faults: Iterable[Fault]) -> list[Case]:
    return [Case(fault, limit, f"f{n}.{LIMITS.index(limit)}") for n, fault in enumerate(faults) for limit in LIMITS]


async def measure(site: Site) -> list[Case]:
    """All cases, in the order of the table."""
    up = cases_of((*FAULTS, REFUSED, DEAF))
    refused = [case for case in up if case.fault is REFUSED]
    deaf = [case for case in up if case.fault is DEAF]
    async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=None)) as client:
        runner = Runner(site, client)
        await runner.play([case for case in up if case.fault not in (REFUSED, DEAF)], up=True)
        site.model.kill()
        await runner.play(refused, up=False)
        held = site.model.deaf()
        try:
            await runner.play(deaf, up=False)
            closed = await _until(lambda: not site.connecting(), 5.0)
        finally:
            for one in held:
                one.close()
        site.model.start()
        site.model.wait()
        for case in refused:
            case.closed = "none was open"
        for case in deaf:
            case.closed = "yes" if closed else "no"
        await asyncio.gather(*(runner.next_prompt(case) for case in [*refused, *deaf]))
    return up


def table(cases: list[Case]) -> str:
    """The page's table: limits under which a fault ends alike share a row."""
    head = ("where", "fault", "limit", "outcome", "code", "when", "upstream closed", "next prompt works")
    lines = [head, ("---",) * len(head)]
    for fault in dict.fromkeys(case.fault for case in cases):
        alike: dict[tuple[str, ...], list[str]] = {}
        for case in cases:
            if case.fault is fault:
                alike.setdefault(case.cells(), []).append(case.limit)
        for cells, limits in alike.items():
            named = "each" if len(limits) == len(LIMITS) else ", ".join(limits)
            lines.append((fault.where, fault.what, named, *cells))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def said(cases: list[Case]) -> list[str]:
    """What was measured beside the table."""
    stops = sorted(case.took_s * 1000 for case in cases if case.end.get("reason") == "stopped")
    late = max(case.took_s - SHORT_S for case in cases if case.end.get("reason") == "model_stalled") * 1000
    closed = max(case.closed_ms for case in cases if case.closed == "yes")
    return [
        f"{len(cases)} cases",
        f"Stop to the terminal event at a reader: {stops[len(stops) // 2]:.0f} ms median, {stops[-1]:.0f} ms at most",
        f"a model's limit to the terminal event at a reader: {late:.0f} ms at most",
        f"terminal event to the close that the model sees: {closed:.0f} ms at most (asked every 20 ms)",
    ]


def main() -> int:
    """Measure, and write the page's table."""
    with tempfile.TemporaryDirectory() as name, closing(Site(Path(name))) as site:
        cases = asyncio.run(measure(site))
    page = PAGE.read_text(encoding="utf-8")
    new = TABLE.sub(lambda part: f"{part[1]}{table(cases)}\n{part[2]}", page)
    PAGE.write_text(new, encoding="utf-8")
    sys.stdout.write("\n".join([*said(cases), "unchanged" if new == page else f"{PAGE} was rewritten", ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

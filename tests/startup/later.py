"""What fails after a good start: what /readyz makes of it, and that all is well again when it is over.

    python -m tests.startup.later

tries every fault in every profile and rewrites the second table of docs/operations.md. Each server has several faults,
one after the other: ready, broken, seen, mended, ready.
"""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import httpx2

from holdfast.app import readiness, supervisor, upstream
from holdfast.app.runtime import Runtime
from holdfast.config import Settings
from holdfast.telemetry import Log
from tests.redis_server import RedisServer
from tests.startup.agents import FailsLater
from tests.startup.cases import PROFILES, ROOT, put, sqlite_at

HEAD = ["| what | fails later | dev | staging | production | when that is over |", "|---|---|---|---|---|---|"]
KEY = "a-key"
LIMIT_S = 40.0
WELL = "200"
AGAIN = "200 by itself"
_SETTLED_S = 0.4
_LOOK_S = 2.0  # longer than a part is asked, and than the model's part keeps what it found here
_AGENTS = tuple(f"tests.startup.agents:{name}" for name in ("good", "slow", "blocks"))


class FakeModel:
    """A model's server that can be silent, refuse the key, or be gone."""

    def __init__(self) -> None:
        self.status = "200 OK"
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            await reader.read(65_536)
            if self.status:
                writer.write(f"HTTP/1.1 {self.status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode())
                await writer.drain()
            else:
                await reader.read()  # bounded: stop() aborts it, and so does whoever waits for an answer
        except ConnectionError:
            pass
        finally:
            self._open.discard(writer)
            writer.close()


class Served:
    """A server on its port, and what its faults reach."""

    def __init__(self, runtime: Runtime, directory: Path, fields: dict[str, Any], model: FakeModel | None) -> None:
        self.runtime = runtime
        self.directory = directory
        self.fields = fields
        self.model = model
        self.redis: RedisServer | None = None
        self.held: sqlite3.Connection | None = None
        self.client = httpx2.AsyncClient(
            base_url=runtime.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=10, trust_env=False
        )

    async def ready(self) -> tuple[int, dict[str, Any]]:
        """Status and parts; within its bound, give or take a busy machine."""
        began = time.monotonic()
        response = await self.client.get("/readyz")
        assert time.monotonic() - began < 4
        return response.status_code, response.json()["parts"]

    async def run(self, agent: str = "good", **fields: Any) -> dict[str, Any]:
        """A run, once it has ended."""
        made = (await self.client.post("/api/runs", json={"input": "x", "agent": agent, **fields})).json()
        until = time.monotonic() + LIMIT_S
        while True:
            record = (await self.client.get(f"/api/runs/{made['id']}")).json()
            if record["state"] in ("completed", "failed", "cancelled"):
                return record
            assert time.monotonic() < until, record
            await asyncio.sleep(0.05)

    async def metric(self, name: str) -> float:
        text = (await self.client.get("/metrics")).text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


Step = Callable[[Served], Awaitable[None]]


class Fault(NamedTuple):
    """One thing that breaks while a server works."""

    part: str
    fault: str
    bad: str  # the parts of /readyz that say so; "" where it stays ready
    breaks: Step
    mends: Step
    says: str = ""  # in what /readyz says of a part


class Found(NamedTuple):
    """What /readyz made of a fault."""

    meanwhile: str
    said: str
    after: str


async def nothing(served: Served) -> None:
    """By itself, or by the supervisor."""


async def lock(served: Served) -> None:
    served.held = sqlite3.connect(served.directory / "h.db", isolation_level=None, check_same_thread=False)
    served.held.execute("BEGIN IMMEDIATE")


async def unlock(served: Served) -> None:
    assert served.held is not None
    served.held.close()


def redis(number: int) -> Step:
    async def tell(served: Served) -> None:
        assert served.redis is not None
        served.redis.signal(number)

    return tell


async def redis_dies(served: Served) -> None:
    assert served.redis is not None
    await asyncio.to_thread(served.redis.kill)


async def redis_returns(served: Served) -> None:
    assert served.redis is not None
    await asyncio.to_thread(served.redis.start)


def model_answers(status: str) -> Step:
    async def tell(served: Served) -> None:
        assert served.model is not None
        served.model.status = status

    return tell


async def model_dies(served: Served) -> None:
    assert served.model is not None
    served.model.stop()


async def model_returns(served: Served) -> None:
    assert served.model is not None
    await served.model.start()


def worker(number: int) -> Step:
    async def tell(served: Served) -> None:
        assert isinstance(served.runtime.worker, supervisor.Supervisor)
        pid = served.runtime.worker.pid
        assert pid is not None
        os.kill(pid, number)

    return tell


async def blocks(served: Served) -> None:
    await served.client.post("/api/runs", json={"input": "x", "agent": "blocks"})


async def is_slow(served: Served) -> None:
    record = await served.run("slow", deadline_s=1)
    assert (record["state"], record["reason"]) == ("failed", "deadline")


def tracer(fault: str) -> Step:
    async def tell(served: Served) -> None:
        FailsLater.fault = fault
        FailsLater.over.clear()
        lost = await served.metric("holdfast_telemetry_failures_total")
        await served.run()
        until = time.monotonic() + LIMIT_S
        while fault == "raises" and await served.metric("holdfast_telemetry_failures_total") == lost:
            assert time.monotonic() < until, "what a tracer loses is counted"
            await asyncio.sleep(0.05)

    return tell


async def tracer_works(served: Served) -> None:
    FailsLater.fault = ""
    FailsLater.over.set()


async def keys_vanish(served: Served) -> None:
    (served.directory / "keys").rename(served.directory / "elsewhere")
    await _until_access(served, gone=True)
    await served.run()  # with a key that is known from before


async def keys_return(served: Served) -> None:
    (served.directory / "elsewhere").rename(served.directory / "keys")
    await _until_access(served, gone=False)


async def _until_access(served: Served, *, gone: bool) -> None:
    until = time.monotonic() + LIMIT_S
    while ("access" in (await served.ready())[1]) is not gone:
        assert time.monotonic() < until
        await asyncio.sleep(0.05)


FAULTS: dict[str, tuple[Fault, ...]] = {
    "sqlite": (
        Fault("store", "SQLite: another process keeps it locked", "store", lock, unlock, "end its transaction"),
        Fault("model", "gone", "model", model_dies, model_returns, "start it there"),
        Fault("model", "slow 60 s", "model", model_answers(""), model_answers("200 OK"), "nothing answered"),
        Fault("model", "key refused", "model", model_answers("401 no"), model_answers("200 OK"), "HOLDFAST_MODEL_KEY"),
        Fault("agent", "slow 60 s", "", is_slow, nothing),
        Fault("tracer", "raises", "", tracer("raises"), tracer_works),
        Fault("tracer", "slow 60 s", "", tracer("hangs"), tracer_works),
        Fault("settings", "keys file gone", "", keys_vanish, keys_return),
    ),
    "redis": (
        Fault("store", "Redis: unreachable", "store, worker", redis_dies, redis_returns),
        Fault("store", "Redis: slow 60 s", "store, worker", redis(signal.SIGSTOP), redis(signal.SIGCONT), "0.6 s"),
    ),
    "worker": (
        Fault("worker", "killed", "worker", worker(signal.SIGKILL), nothing),
        Fault("worker", "paused", "worker", worker(signal.SIGSTOP), nothing),
        Fault("agent", "blocks its worker", "worker", blocks, nothing),
        Fault("worker", "killed again and again", "worker", worker(signal.SIGKILL), nothing, "more than 3 times"),
    ),
}  # fmt: skip


async def serve(kind: str, profile: str, directory: Path, stack: AsyncExitStack) -> Served:
    """A server that is ready."""
    (directory / "keys").write_text(f"alice:{KEY}\n")
    fields: dict[str, Any] = {
        "port": 0, "in_process": kind != "worker", "spare": False, "profile": profile, "synthetic_run_s": 0,
        "api_keys_file": str(directory / "keys"), "renew_s": 0.5, "loop_stall_s": 1,
        **sqlite_at(directory / "h.db"),
    }  # fmt: skip
    model, server = None, None
    if kind == "sqlite":
        model = FakeModel()
        await model.start()
        stack.callback(model.stop)
        fields |= {"model": "m", "model_url": f"http://127.0.0.1:{model.port}/v1"}
        fields |= {"tracer": "tests.startup.agents:FailsLater"}
        stack.callback(FailsLater.over.set)
    elif kind == "redis":
        server = RedisServer(directory)
        stack.callback(server.close)
        await asyncio.to_thread(server.start)
        fields |= {"store": server.url}
    runtime = await stack.enter_async_context(Runtime(Settings(**fields), _AGENTS, log=Log(stream=io.StringIO())))
    served = Served(runtime, directory, fields, model)
    stack.push_async_callback(served.client.aclose)
    served.redis = server
    await settled(served, "")
    return served


async def settled(served: Served, bad: str | None) -> tuple[str, str]:
    """What /readyz says once it says the same for a moment: unready if `bad` is None, else for these parts; and why."""
    until, since, last = time.monotonic() + LIMIT_S, time.monotonic(), ""
    while True:
        status, parts = await served.ready()
        now = ", ".join(sorted(name for name, part in parts.items() if not part["ok"]))
        if now != last:
            since, last = time.monotonic(), now
        wanted = bool(now) if bad is None else now == bad
        if wanted and time.monotonic() - since >= _SETTLED_S:
            said = "; ".join(part.get("why", "") for part in parts.values())
            return f"{status}: {now}" if now else str(status), said
        assert time.monotonic() < until, f"/readyz says {status} {parts}"
        await asyncio.sleep(0.05)


async def suffer(served: Served, fault: Fault) -> Found:
    """Break it, see what is said, mend it, see that all is well."""
    await fault.breaks(served)
    try:
        if fault.bad:
            meanwhile, said = await settled(served, None)
            until = time.monotonic() + LIMIT_S
            while fault.says not in said and time.monotonic() < until:
                _, said = await settled(served, None)
        else:
            meanwhile, said = await _stays(served)
    finally:
        await fault.mends(served)
    after, _ = await settled(served, "")
    return Found(meanwhile, said, after)


async def _stays(served: Served) -> tuple[str, str]:
    """Ready each time that one looks, and a run completes."""
    until, found = time.monotonic() + _LOOK_S, (WELL, "")
    while time.monotonic() < until:
        status, parts = await served.ready()
        if status != 200:
            return await settled(served, None)
        found = str(status), "; ".join(part.get("why", "") for part in parts.values())
        await asyncio.sleep(0.1)
    record = await served.run()
    return found if record["state"] == "completed" else (f"runs end {record['reason']}", "")


def hurried(stack: ExitStack) -> None:
    """Look at a model more often, and wait less, than a server does."""
    stack.enter_context(patch.object(readiness, "_MODEL_GOOD_S", 0.1))
    stack.enter_context(patch.object(readiness, "_MODEL_BAD_S", (0.1,)))
    stack.enter_context(patch.object(upstream, "PROBE_S", 1.0))
    stack.enter_context(patch.object(supervisor, "_CALM_S", 4.0))
    stack.enter_context(patch.object(supervisor, "_REPLACEMENTS_WINDOW_S", 600.0))  # however slow the machine is


async def results(kind: str, profile: str, directory: Path) -> list[Found]:
    """Every fault of one server, one after the other."""
    async with AsyncExitStack() as stack:
        served = await serve(kind, profile, directory, stack)
        return [await suffer(served, fault) for fault in FAULTS[kind]]


def expected(fault: Fault) -> str:
    """What the page promises, in every profile: a server that has started is not ended by what fails."""
    return f"503: {fault.bad}" if fault.bad else WELL


def order() -> list[tuple[str, int]]:
    """The rows: by what fails."""
    places = [(kind, n) for kind, faults in FAULTS.items() for n in range(len(faults))]
    parts = ("settings", "store", "model", "worker", "agent", "tracer")
    return sorted(places, key=lambda place: parts.index(FAULTS[place[0]][place[1]].part))


def row(fault: Fault, meanwhile: list[str], after: str) -> str:
    """One line of the table."""
    return f"| {fault.part} | {fault.fault} | {' | '.join(meanwhile)} | {after} |"


async def rows() -> list[str]:
    """The table; servers one after the other, so that each has the machine."""
    found: dict[tuple[str, str], list[Found]] = {}
    with ExitStack() as stack:
        hurried(stack)
        for kind in FAULTS:
            for profile in PROFILES:
                with tempfile.TemporaryDirectory() as directory:
                    found[kind, profile] = await results(kind, profile, Path(directory))
    lines = HEAD.copy()
    for kind, n in order():
        each = [found[kind, profile][n] for profile in PROFILES]
        after = {one.after for one in each}
        stayed = all(one.meanwhile == WELL for one in each)
        word = "200" if stayed else AGAIN
        lines.append(row(FAULTS[kind][n], [one.meanwhile for one in each], word if after == {WELL} else str(after)))
    return lines


def main() -> int:
    """Try them all, and write what came out."""
    sys.path.insert(0, str(ROOT))
    put("later", asyncio.run(rows()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

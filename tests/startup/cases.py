"""What can be wrong with each thing that a server needs, and what the start makes of it.

    python -m tests.startup.cases

tries every case in every profile and rewrites the table of docs/operations.md.
"""

from __future__ import annotations

import asyncio
import io
import math
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from holdfast.app import observing, startup, trial, upstream
from holdfast.app.errors import StartError
from holdfast.app.runtime import Runtime
from holdfast.config import Settings
from holdfast.stores.redis import facts, link
from holdfast.telemetry import Log
from tests.redis_server import RedisServer

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "operations.md"
PROFILES = ("dev", "staging", "production")
KEYS = {"api_keys": "alice:a-key"}
GOOD = "tests.startup.agents:good"
SLOW_S = 0.3  # in the place of the real limits, which are minutes in all
QUICK = True  # the table is written with the real ones
HEAD = ["| what | is | dev | staging | production | longest |", "|---|---|---|---|---|---|"]


class Case(NamedTuple):
    """One thing that is wrong."""

    part: str
    fault: str
    phase: str  # that says so; "" where the server works
    make: Callable[[Path, AsyncExitStack], Any]  # answers settings, or awaits them
    specs: tuple[str, ...] = (GOOD,)
    says: str = ""


class Result(NamedTuple):
    """What a start came to, and after how long."""

    outcome: str
    why: str
    took_s: float = 0.0


def quick(stack: AsyncExitStack, module: Any, name: str, value: float) -> None:
    """Wait less than a server does, for tests."""
    if QUICK:
        stack.enter_context(patch.object(module, name, value))


@asynccontextmanager
async def listener(answer: bytes) -> AsyncIterator[int]:
    """A server that answers everything with the same bytes; with none, it takes the connection and is silent."""
    tasks = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            await reader.read(65_536)
            if answer:
                writer.write(answer)
                await writer.drain()
            else:
                await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def sqlite_at(path: Path) -> dict[str, Any]:
    return {"store": f"sqlite:///{path}"}


def newer(directory: Path, stack: AsyncExitStack) -> dict[str, Any]:
    path = directory / "newer.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 9999")
        connection.execute("CREATE TABLE runs (x)")
    connection.close()
    return sqlite_at(path)


def nowhere(directory: Path, stack: AsyncExitStack) -> dict[str, Any]:
    (directory / "nowhere").touch()
    return sqlite_at(directory / "nowhere" / "h.db")


def no_database(directory: Path, stack: AsyncExitStack) -> dict[str, Any]:
    (directory / "text.db").write_text("this is no database, but a text that is longer than a header" * 40)
    return sqlite_at(directory / "text.db")


async def silent_store(directory: Path, stack: AsyncExitStack) -> dict[str, Any]:
    quick(stack, link, "CALL_S", SLOW_S)
    port = await stack.enter_async_context(listener(b""))
    return {"store": f"redis://127.0.0.1:{port}/0"}


def old_redis(directory: Path, stack: AsyncExitStack) -> dict[str, Any]:
    stack.enter_context(patch.object(facts, "VERSION_MIN", (99, 0)))
    server = RedisServer(directory)
    server.start()
    stack.callback(server.close)
    return {"store": server.url}


async def silent_model(directory: Path, stack: AsyncExitStack) -> dict[str, Any]:
    quick(stack, upstream, "PROBE_S", SLOW_S)
    port = await stack.enter_async_context(listener(b""))
    return {"model": "m", "model_url": f"http://127.0.0.1:{port}/v1"}


def model_that_says(status: str) -> Callable[[Path, AsyncExitStack], Any]:
    async def make(directory: Path, stack: AsyncExitStack) -> dict[str, Any]:
        head = f"HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
        port = await stack.enter_async_context(listener(head.encode()))
        return {"model": "m", "model_url": f"http://127.0.0.1:{port}/v1"}

    return make


def slow_import(directory: Path, stack: AsyncExitStack) -> dict[str, Any]:
    quick(stack, trial, "LOAD_S", SLOW_S)
    return {"in_process": False, "spare": False}


def hanging_sink(directory: Path, stack: AsyncExitStack) -> dict[str, Any]:
    quick(stack, observing, "LOOK_S", 0.05)
    return {"tracer": "tests.startup.agents:SlowTracer"}


def settings(**fields: Any) -> Callable[[Path, AsyncExitStack], dict[str, Any]]:
    return lambda directory, stack: fields


CASES = (
    Case("nothing", "wrong", "", settings()),
    Case("settings", "keys missing", "settings", settings(api_keys=""), says="needs API keys"),
    Case("settings", "keys malformed", "settings", settings(api_keys="alice"), says="is not name:key"),
    Case("settings", "keys file missing", "settings", settings(api_keys_file="none"), says="cannot be read"),
    Case("settings", "worker missing on SQLite", "settings", settings(worker=False), says="--no-worker needs a store"),
    Case("store", "in a place that cannot be", "store", nowhere, says="nowhere"),
    Case("store", "file is no database", "store", no_database, says="text.db"),
    Case("store", "wrong version (SQLite)", "store", newer, says="upgrade Holdfast"),
    Case("store", "wrong version (Redis)", "store", old_redis, says="version"),
    Case("store", "unreachable", "store", settings(store="redis://127.0.0.1:9"), says="check that Redis runs"),
    Case("store", "slow 60 s", "store", silent_store, says="cannot open redis://"),
    Case("model", "unreachable", "models", settings(model="m", model_url="http://127.0.0.1:9/v1"), says="no model at"),
    Case("model", "slow 60 s", "models", silent_model, says="nothing answered"),
    Case("model", "key refused", "models", model_that_says("401 no"), says="set HOLDFAST_MODEL_KEY"),
    Case("model", "no list of models", "", model_that_says("404 none")),
    Case("model", "none for an agent", "tools", settings(), ("tests.startup.agents:modelless",), says="model"),
    Case("agent", "module missing", "tools", settings(), ("tests.startup.no_such:agent",), says="no_such"),
    Case("agent", "name missing", "tools", settings(), ("tests.startup.agents:nobody",), says="nobody"),
    Case("agent", "None", "tools", settings(), ("tests.startup.agents:none",), says="NoneType"),
    Case("agent", "raises at import", "tools", settings(), ("tests.startup.broken:agent",), says="out of luck"),
    Case("agent", "slow 60 s at import", "tools", slow_import, ("tests.startup.slow:agent",), says="not ready within"),
    Case("tracer", "module missing", "", settings(tracer="no_such_module:tracer"), says="tracer is not to be had"),
    Case("tracer", "None", "", settings(tracer="tests.telemetry.bad:nothing")),
    Case("tracer", "slow 60 s", "", hanging_sink, says="tracer is not made yet"),
    Case("tracer", "exporter unreachable", "", settings(otel_endpoint="http://127.0.0.1:9")),
    Case("tracer", "endpoint is no URL", "", settings(otel_endpoint="collector:4318"), says="otel is not to be had"),
    Case("three at once", "store, model, agent", "store, models, tools", settings(
        store="redis://127.0.0.1:9", model="m", model_url="http://127.0.0.1:9/v1", in_process=False, spare=False,
    ), ("tests.startup.no_such:agent",), says="3 phases failed"),
)  # fmt: skip


async def start(case: Case, profile: str, directory: Path) -> Result:
    """Start, look whether it is ready, end."""
    async with AsyncExitStack() as stack:
        quick(stack, startup, "PAUSE_S", 0.01)
        made = case.make(directory, stack)
        fields = await made if asyncio.iscoroutine(made) else made
        base: dict[str, Any] = {"port": 0, "in_process": True, "profile": profile, **sqlite_at(directory / "h.db")}
        keys = {} if profile == "dev" else KEYS
        runtime = Runtime(Settings(**{**base, **keys, **fields}), case.specs, log=Log(stream=io.StringIO()))
        began = time.monotonic()
        try:
            await stack.enter_async_context(runtime)
        except StartError as error:
            phases = ", ".join(found.phase for found in runtime.startup.broken)
            unsafe = not runtime.startup.ok("settings")
            ends = "exits 1" if profile != "dev" or unsafe else "refuses"
            return Result(f"{ends}: {phases}", str(error), time.monotonic() - began)
        took_s = time.monotonic() - began
        counted = runtime.log.telemetry.totals
        assert counted is not None
        degraded = [found.why for found in runtime.startup.findings if found.outcome == "degraded"]
        assert counted.counters.get(("holdfast_degraded_total", ()), 0) == len(degraded), "each is counted"
        if runtime.sessions.missing:
            failed = ", ".join(found.phase for found in runtime.startup.failed)
            return Result(f"refuses: {failed}", runtime.sessions.missing, took_s)
        return Result("degraded" if degraded else "ready", "; ".join(degraded), took_s)


def expected(case: Case, profile: str) -> str:
    """What the page promises."""
    if case.fault == "keys missing" and profile == "dev":
        return "ready"
    if not case.phase:
        return "degraded" if case.says else "ready"
    return f"{'exits 1' if profile != 'dev' or case.phase == 'settings' else 'refuses'}: {case.phase}"


async def rows() -> list[str]:
    """The table; the profiles of a case at the same time."""
    lines = HEAD.copy()
    for case in CASES:
        with tempfile.TemporaryDirectory() as directory:
            places = [Path(directory) / profile for profile in PROFILES]
            for place in places:
                place.mkdir()
            found = await asyncio.gather(*map(start, [case] * len(PROFILES), PROFILES, places))
        longest_s = math.ceil(max(each.took_s for each in found))
        lines.append(f"| {case.part} | {case.fault} | {' | '.join(each.outcome for each in found)} | {longest_s} s |")
    return lines


def table_of(page: str, name: str = "startup") -> list[str]:
    """The table that a page has now."""
    begin, end = marks(name)
    return page.split(begin)[1].split(end)[0].strip().splitlines()


def marks(name: str) -> tuple[str, str]:
    """Between what a table stands."""
    return f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"


def put(name: str, lines: list[str]) -> None:
    """Write it into the page."""
    begin, end = marks(name)
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(begin)
    PAGE.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n\n{end}" + rest.split(end)[1], encoding="utf-8")


def main() -> int:
    """Try them all, and write what came out."""
    global QUICK
    sys.path.insert(0, str(ROOT))
    QUICK = False
    put("startup", asyncio.run(rows()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

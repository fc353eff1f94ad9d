"""A gateway on a real socket over a real store, with a worker that does what the test says."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from holdfast.config import Settings
from holdfast.domain.events import EventType
from holdfast.domain.ids import LOCAL_TENANT, RunKey
from holdfast.domain.runs import Reason, State
from holdfast.engine.sessions import Sessions
from holdfast.gateway import GatewayApp, Server, create_app
from holdfast.ports.agent import AgentInfo
from holdfast.stores.sqlite import SqliteStore
from holdfast.telemetry import Log
from holdfast.testing import build
from holdfast.testing.rig import LONG_LEASE_MS, Holder

SSE = {"Accept": "text/event-stream"}
NDJSON = {"Accept": "application/x-ndjson"}
JSON = {"Accept": "application/json"}
TERMINAL = {"run.completed", "run.failed", "run.cancelled"}
LIMIT_S = 5.0


async def ready() -> dict[str, Any]:
    return {"ready": True, "parts": {"store": {"ok": True}}}


class Site:
    """Everything a test of the gateway needs."""

    def __init__(self, store: SqliteStore, settings: Settings, agents: list[str]) -> None:
        self.store = store
        self.settings = settings
        self.lines = io.StringIO()
        self.log = Log(stream=self.lines)
        self.agents = [AgentInfo(name, "", "m", True) for name in agents]
        self.sessions = Sessions(store, settings, self.log, lambda: self.agents)
        self.ready: Callable[[], Awaitable[dict[str, Any]]] = ready
        self.app: GatewayApp
        self.server: Server
        self.http: httpx2.AsyncClient

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    async def run(self, text: str = "hello", **body: Any) -> dict[str, Any]:
        """Start a run over HTTP."""
        response = await self.http.post("/api/runs", json={"input": text, **body})
        assert response.status_code == 201, response.text
        return response.json()

    async def claim(self) -> Holder:
        """The next run, claimed and begun, as a worker does it."""
        for _ in range(200):
            claims = await self.store.claim("w", 1, LONG_LEASE_MS)
            if claims:
                holder = Holder(self.store, claims[0])
                await holder.start()
                return holder
            await asyncio.sleep(0.01)
        raise AssertionError("no run became ready")

    async def complete(self, holder: Holder, output: str = "", usage: dict[str, int] | None = None) -> None:
        """End a run well, with an output."""
        drafts = [(EventType.RUN_COMPLETED, {"output": output, "usage": usage or {}, "timings": {}})]
        await self.end(holder, drafts, State.COMPLETED, Reason.FINISHED, output=output, usage=usage or {})

    async def end(self, holder: Holder, drafts: list[build.Draft], state: State, reason: Reason, **more: Any) -> None:
        """End a run with a terminal event of the test's own."""
        from holdfast.ports.store import Ending, Status

        ending = Ending(state=state, reason=reason, **more)
        events = holder.encode(*drafts)
        answer = await self.store.finish(holder.key, holder.fence, holder.head, events, ending)
        assert answer.status is Status.OK, answer

    async def obey(self, holder: Holder) -> State:
        """Wait for a stop and end cancelled with its reason, as a worker does."""
        record = await self.until(holder.key, lambda r: r.stopping is not None)
        await holder.finish(State.CANCELLED, record.stopping)
        return State.CANCELLED

    async def until(self, key: RunKey, fits: Callable[[Any], bool]) -> Any:
        """The record, once it fits."""
        for _ in range(int(LIMIT_S / 0.01)):
            record = await self.store.get(key)
            if record is not None and fits(record):
                return record
            await asyncio.sleep(0.01)
        raise AssertionError(f"never: {record}")

    def key(self, run: str | dict[str, Any]) -> RunKey:
        return RunKey(LOCAL_TENANT, run if isinstance(run, str) else run["id"])


@asynccontextmanager
async def site(directory: Path, agents: tuple[str, ...] = ("echo",), **settings: Any) -> AsyncIterator[Site]:
    """Serve on a free port, on the test's own loop."""
    store = await SqliteStore.open(f"sqlite:///{directory / 'h.db'}", own=True)
    made = Site(store, Settings(**settings), list(agents))
    made.app = create_app(made.sessions, made.settings, made.log, version={"version": "0"}, ready=lambda: made.ready())
    made.server = Server(made.app, "127.0.0.1", 0, connections=made.settings.connections, log=made.log)
    await made.server.start()
    try:
        async with httpx2.AsyncClient(base_url=made.url, timeout=LIMIT_S) as made.http:
            yield made
    finally:
        for raw in _opened:
            raw.leave()
        _opened.clear()
        await made.server.stop(0.5)
        await store.close()
    assert "http_error" not in made.lines.getvalue(), made.lines.getvalue()
    assert "task_failed" not in made.lines.getvalue(), made.lines.getvalue()


class Frame(msgspec.Struct):
    """One server-sent event."""

    id: str | None
    event: str
    data: str

    @property
    def json(self) -> dict[str, Any]:
        return msgspec.json.decode(self.data)


def frames(text: str) -> list[Frame]:
    """The events of an SSE body; comments and retry are passed over."""
    found = []
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, colon, value = line.partition(": ")
            if colon and name:
                fields[name] = value
        if "data" in fields:
            found.append(Frame(fields.get("id"), fields.get("event", "message"), fields["data"]))
    return found


_opened: list["Raw"] = []


class Raw:
    """A client that speaks HTTP by hand: reads when it wants, leaves without a word."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, *, limit: int = 65_536) -> "Raw":
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
        made = cls(reader, writer)
        _opened.append(made)
        return made

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def get(self, path: str, *headers: str, method: str = "GET", body: bytes = b"") -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def until(self, needle: bytes) -> bytes:
        """Read up to and with `needle`."""
        async with asyncio.timeout(LIMIT_S):
            return await self.reader.readuntil(needle)

    async def rest(self) -> bytes:
        """Read until the server closes."""
        async with asyncio.timeout(LIMIT_S):
            return await self.reader.read(-1)

    def leave(self) -> None:
        """Reset the connection."""
        self.writer.transport.abort()

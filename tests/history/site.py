"""A whole Holdfast on real sockets beside a rehearsal model, on a thread of its own, with every request kept."""

import asyncio
import io
import itertools
import json
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar
from unittest import mock

import httpx2

from holdfast.app.runtime import Runtime
from holdfast.app.served import Served
from holdfast.config import Settings
from holdfast.domain.ids import LOCAL_TENANT, RunKey
from holdfast.domain.messages import HistoryEntry
from holdfast.ports.store import RunRecord
from holdfast.rehearsal import RehearsalServer
from holdfast.rehearsal.stats import Stats
from holdfast.telemetry import Log
from tests.history.cutting import Cut, Cutter, CuttingStore, FailingAgent

T = TypeVar("T")

END_S = 20.0
QUICK = {
    "stop_grace_s": 0.3,
    "lease_s": 1.2,
    "renew_s": 0.2,
    "flush_ms": 1,
    "drain_s": 0,
    "model_first_content_s": 5,
    "model_idle_s": 5,
    "tool_threads": 64,
    "quarantine": 1000,
}
BAD_WORDS = ("http_error", "task_failed", "loop_failed", "executor_failed", "worker_thread_died", "heartbeat_failed")


class _Recorded(Stats):
    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[bytes] = []

    def keep(self, body: bytes) -> None:
        super().keep(body)
        self.bodies.append(body)


class _Runtime(Runtime):
    async def _load(self) -> Served | None:
        served = await super()._load()
        self._given = [FailingAgent(agent) for agent in self._given]
        return served


class Site:
    """Use as a context manager; `call` runs a coroutine on its loop."""

    def __init__(self, store: str = "sqlite://:memory:", specs: tuple[str, ...] = (), **settings: Any) -> None:
        self.lines = io.StringIO()
        self.cutter = Cutter()
        self.stats = _Recorded()
        self.runtime: Runtime
        self.http: httpx2.AsyncClient
        self.model: RehearsalServer
        self._settings = {**QUICK, "store": store, "model": "rehearsal", "port": 0, **settings}
        self._specs = specs
        self._count = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._down: asyncio.Event
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="site")

    def __enter__(self) -> "Site":
        self._thread.start()
        assert self._up.wait(20)
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._down.set)
        self._thread.join(20)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        if exc[0] is None:
            self.assert_quiet()

    def assert_quiet(self) -> None:
        """No line of the log tells of something nobody foresaw."""
        bad = [line for line in self.lines.getvalue().splitlines() if line.split(" ", 1)[0] in BAD_WORDS]
        assert not bad, "\n".join(bad[:5])

    @property
    def url(self) -> str:
        return self.runtime.url

    def call(self, work: Coroutine[Any, Any, T], limit_s: float = 60.0) -> T:
        """Run on the site's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(limit_s)

    def name(self) -> str:
        """A session nobody has."""
        return f"s{next(self._count)}"

    async def start(self, session: str, text: str, **body: Any) -> str:
        """Start a run over HTTP; its id."""
        answer = await self.http.post("/api/runs", json={"session": session, "input": text, **body})
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    async def complete(self, session: str, text: str, **body: Any) -> str:
        """Start a run as an OpenAI client does, which sends what it believes was said, and leave; its id."""
        messages = [{"role": "user", "content": "what this client believes"}, {"role": "user", "content": text}]
        body |= {"messages": messages, "stream": True, "on_disconnect": "continue"}
        async with self.http.stream(
            "POST", "/v1/chat/completions", json=body, headers={"X-Session-Id": session}
        ) as answer:
            assert answer.status_code == 200, await answer.aread()
            return answer.headers["X-Run-Id"]

    async def stop(self, run: str) -> None:
        answer = await self.http.post(f"/api/runs/{run}/stop")
        assert answer.status_code == 202, answer.text

    async def end(self, run: str) -> RunRecord:
        record = await self.runtime.sessions.wait(RunKey(LOCAL_TENANT, run), END_S)
        assert record.state.terminal, f"{run} is {record.state}\n{self.lines.getvalue()[-3000:]}"
        return record

    async def log_of(self, run: str) -> list[dict[str, Any]]:
        """The whole log over HTTP."""
        events: list[dict[str, Any]] = []
        while True:
            answer = await self.http.get(
                f"/api/runs/{run}/events", params={"after": len(events)}, headers={"Accept": "application/json"}
            )
            page = answer.json()
            events += page["events"]
            if len(events) >= page["head"]:
                return events

    async def history(self, session: str) -> list[HistoryEntry]:
        return await self.runtime.store.history(LOCAL_TENANT, session)

    def cut(self, at: int, how: str) -> tuple[dict[str, Any], Cut]:
        """Metadata that cuts a run at event `at`, and the cut."""
        needs_stop = how in ("told", "killed")
        made = Cut(at, how, self.stop if needs_stop else None)
        return self.cutter.add(made), made

    def requests(self, mark: str) -> list[list[dict[str, Any]]]:
        """The messages of every request whose last prompt has `mark` in it."""
        found = []
        for body in list(self.stats.bodies):
            messages = json.loads(body)["messages"]
            users = [m for m in messages if m["role"] == "user"]
            if users and mark in str(users[-1]["content"]):
                found.append(messages)
        return found

    def _main(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:  # noqa: BLE001 - told to the test
            self._error = error
        finally:
            self._up.set()
            self._loop.close()

    async def _serve(self) -> None:
        self._down = asyncio.Event()
        self.cutter.loop = self._loop
        store = type("Store", (CuttingStore,), {"cutter": self.cutter})
        async with RehearsalServer() as self.model:
            self.model.app.stats = self.stats
            settings = Settings(**{"model_url": self.model.url, **self._settings})
            runtime = _Runtime(settings, self._specs, log=Log(stream=self.lines))
            with mock.patch("holdfast.stores.opening.SqliteStore", store):
                self.runtime = await runtime.__aenter__()
            try:
                async with httpx2.AsyncClient(base_url=self.url, timeout=END_S) as self.http:
                    self._up.set()
                    await self._down.wait()
            finally:
                await self.runtime.close()

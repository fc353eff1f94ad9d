"""Synthetic runs: the only proof that a run would be taken now is one that was.

At the start and then each `synthetic_run_s` seconds a run of a built-in agent goes the way of every run: through the
door (with a key that this process alone has), admission, the store, a worker, the stream, and a stop; then its session
is forgotten. It belongs to a tenant that nobody can be, takes nobody's place, and is in no list, line or count.

Each gateway proves its own way, whichever store it shares: two of them that take turns would prove half of each. A
run is about ten small writes. One at a time, each bounded by `LIMIT_S`; after a failure the next comes sooner.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from starlette.types import ASGIApp, Message

from holdfast.aio import Owner, settle, wait_event
from holdfast.domain.events import EventType
from holdfast.domain.ids import new_session_id
from holdfast.domain.runs import Reason
from holdfast.telemetry import Log

LIMIT_S: Final = 10.0
AGAIN_S: Final = 2.0  # after a failure
_FORGET_S: Final = 1.0
_CANCEL_S: Final = 0.5
_POLL_S: Final = 1.0
_WHY_MAX: Final = 300


class Found(NamedTuple):
    """How the last synthetic run went; times are `time.monotonic()` seconds."""

    at: float
    took_s: float
    why: str  # "" where it went well


class Failed(Exception):
    """A synthetic run did not go as it should; the text says at which step and how."""


class SyntheticRuns:
    """Makes them, one after the other, and knows how the last ones went."""

    def __init__(self, app: ASGIApp, key: str, every_s: float, busy: Callable[[], Awaitable[str]], log: Log) -> None:
        """Nothing is asked yet.

        Args:
            app: The gateway, asked as a client would ask it.
            key: What lets them in.
            every_s: Between two of them.
            busy: Why a run that was not begun had to wait, where all workers are full; else "".
            log: Told where one fails, and where one works again.
        """
        self._app = app
        self._key = key
        self._every_s = every_s
        self._busy = busy
        self._log = log
        self._session = new_session_id()
        self._owner = Owner(lambda name, error: None)  # its exception is its result
        self._began = time.monotonic()
        self.last: Found | None = None
        self.worked: Found | None = None

    async def forever(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                await self.once()
                failed = self.last is not None and self.last.why
                await asyncio.sleep(min(AGAIN_S, self._every_s) if failed else self._every_s)
        finally:
            await self._owner.close(_CANCEL_S)

    async def once(self) -> None:
        """One synthetic run; raises nothing."""
        began = time.monotonic()
        steps = _Steps(self._app, self._key, self._session)
        work = self._owner.spawn(steps.all(), "synthetic run")
        if await settle([work], LIMIT_S):
            work.cancel()
            await settle([work], _CANCEL_S)
            why = f"not over within {LIMIT_S:.0f} s, it hangs at: {steps.at}"
            if not steps.begun and (busy := await self._quiet_busy()):
                self._log.write("synthetic_run_waits", why=busy)
                await self._forget(steps)
                return  # nothing is proven, and nothing is wrong: the age of the last one says the rest
        else:
            error = work.exception()
            why = "" if error is None else f"at {steps.at}: {error if isinstance(error, Failed) else repr(error)}"
        self._take(Found(began, time.monotonic() - began, why[:_WHY_MAX]))
        if why:
            await self._forget(steps)

    def part(self) -> dict[str, Any]:
        """For /readyz: whether the last one went well, with its age; why not, where it did not."""
        now, last, worked = time.monotonic(), self.last, self.worked
        part: dict[str, Any] = {"ok": True}
        if worked is not None:
            part |= {"age_s": round(now - worked.at, 1), "took_ms": round(worked.took_s * 1000)}
        if last is None:
            waits_s = now - self._began
            part |= {"ok": False, "why": f"the first synthetic run has not ended yet ({waits_s:.1f} s)"}
        elif last.why:
            part |= {"ok": False, "why": f"the synthetic run failed {last.why}"}
        return part

    def _take(self, found: Found) -> None:
        before, self.last = self.last, found
        if not found.why:
            self.worked = found
        if found.why and (before is None or before.why != found.why):
            self._log.write("synthetic_run_failed", why=found.why)
        elif not found.why and before is not None and before.why:
            self._log.write("synthetic_run_works", took_ms=round(found.took_s * 1000))

    async def _quiet_busy(self) -> str:
        with suppress(Exception):
            async with asyncio.timeout(_FORGET_S):
                return await self._busy()
        return ""

    async def _forget(self, steps: _Steps) -> None:
        """End what a failed one left; what cannot be reached now is ended by its deadline, and by the next one."""
        work = self._owner.spawn(steps.forget(), "forget synthetic run")
        if await settle([work], _FORGET_S):
            work.cancel()
            await settle([work], _CANCEL_S)


class _Steps:
    """One synthetic run, and at which step it is."""

    def __init__(self, app: ASGIApp, key: str, session: str) -> None:
        self._app = app
        self._key = key
        self._session = session
        self.at = "start"
        self.begun = False

    async def all(self) -> None:
        """Start and stream in one request, as clients do; stop once it speaks; see it end; forget it."""
        body = {"input": "up?", "session": self._session, "deadline_s": LIMIT_S}
        call = _Call(self._app, self._key, "POST", "/api/runs", body, {"accept": "text/event-stream"})
        stream = self._heard(call)
        await call.run(stream)
        if call.status != 201:
            raise Failed(f"answered {call.status}: {call.text()}")
        if self.at != "forget":
            raise Failed(f"the stream ended before the run: {call.text()}")
        await self.forget()

    async def forget(self) -> None:
        call = _Call(self._app, self._key, "DELETE", f"/api/sessions/{self._session}")
        await call.run()
        if call.status not in (204, 404):
            raise Failed(f"answered {call.status}: {call.text()}")

    def _heard(self, call: _Call) -> Callable[[dict[str, Any]], Awaitable[None]]:
        async def hear(event: dict[str, Any]) -> None:
            kind = event["type"]
            if kind == EventType.RUN_CREATED:
                self.at = "worker"
            elif kind == EventType.RUN_STARTED:
                self.at, self.begun = "agent", True
            elif kind == EventType.TEXT_DELTA:
                self.at = "stop"
                stop = _Call(self._app, self._key, "POST", f"/api/runs/{event['run']}/stop")
                await stop.run()
                if stop.status != 202:
                    raise Failed(f"answered {stop.status}: {stop.text()}")
                self.at = "end"
            elif kind == EventType.RUN_CANCELLED and self.at == "end" and event["reason"] == Reason.STOPPED:
                self.at = "forget"
            elif kind in (EventType.RUN_CANCELLED, EventType.RUN_FAILED, EventType.RUN_COMPLETED):
                error = event.get("error") or {}
                raise Failed(f"{kind}, {event.get('reason') or 'unasked'}: {error.get('message', '')}".rstrip(": "))

        return hear


class _Call:
    """One request to an ASGI app in this process, whose events are heard as they are sent."""

    def __init__(
        self,
        app: ASGIApp,
        key: str,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._app = app
        self._body = b"" if body is None else json.dumps(body).encode()
        sent = {"host": "localhost", "authorization": f"Bearer {key}", "content-type": "application/json"}
        pairs = {**sent, "content-length": str(len(self._body)), **(headers or {})}
        self._scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in pairs.items()],
            "client": ("127.0.0.1", 0),
            "server": ("localhost", 0),
            "extensions": {},
        }
        self._sent = False
        self._over = asyncio.Event()
        self._hear: Callable[[dict[str, Any]], Awaitable[None]] | None = None
        self._rest = b""
        self.status = 0

    async def run(self, hear: Callable[[dict[str, Any]], Awaitable[None]] | None = None) -> None:
        """Ask, and hand each event of a stream to `hear`; what that raises is raised here, and ends the request."""
        self._hear = hear
        self._failed: Exception | None = None
        try:
            await self._app(self._scope, self._receive, self._send)
        finally:
            self._over.set()
        if self._failed is not None:
            raise self._failed

    def text(self) -> str:
        """The end of what was answered."""
        return self._rest[:_WHY_MAX].decode(errors="replace")

    async def _receive(self) -> Message:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        while not await wait_event(self._over, _POLL_S):
            pass
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        self._rest += message.get("body", b"")
        if self._hear is None or self.status != 201 or self._failed is not None:
            return
        *whole, self._rest = self._rest.split(b"\n\n")
        for block in whole:
            for line in block.split(b"\n"):
                if line.startswith(b"data: "):
                    await self._tell(json.loads(line[6:]))

    async def _tell(self, event: dict[str, Any]) -> None:
        if self._hear is None or self._failed is not None or "type" not in event:
            return
        try:
            await self._hear(event)
        except Exception as error:  # noqa: BLE001 - kept for `run`: the app in between would take it for its own
            self._failed = error
            self._over.set()


__all__ = ["LIMIT_S", "Failed", "Found", "SyntheticRuns"]

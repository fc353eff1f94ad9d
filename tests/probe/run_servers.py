"""As much of Holdfast's own API as a log needs, sound, and the same with one thing broken each."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.probe.http import Request, Response, Server

ENDS = ("run.completed", "run.failed", "run.cancelled")
Event = dict[str, Any]


class SoundRuns(Server):
    """Runs that complete at once, their logs by any offset, and Stop of a run that never ends by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.logs: dict[str, list[Event]] = {}

    async def answer(self, request: Request, response: Response) -> None:
        parts = request.path.strip("/").split("/")
        match request.method, parts:
            case _, ["version"]:
                await response.whole({"version": "0", "build": "0+mini", "config": "0"})
            case _, ["api", "workers"]:
                await response.whole({"workers": [], "agents": [{"name": "mini", "model": "tiny", "rehearsal": True}]})
            case "POST", ["api", "runs"]:
                await self.start(request, response)
            case "GET", ["api", "runs", run] if run in self.logs:
                await response.whole(self.record(run))
            case "GET", ["api", "runs", run, "events"] if run in self.logs:
                await self.events(run, request, response)
            case "POST", ["api", "runs", run, "stop"] if run in self.logs:
                await self.stop(run)
                await response.whole(self.record(run), 202)
            case _:
                await response.whole({"code": "not_found"}, 404)

    async def start(self, request: Request, response: Response) -> None:
        run = f"r_{len(self.logs)}"
        log = self.logs[run] = []
        self.add(log, run, "run.created")
        self.add(log, run, "run.started")
        text = request.json["input"]
        if text.startswith("!say"):
            await self.complete(log, run, [text.removeprefix("!say ")])
        elif "100000" in text or "n=" not in text:
            for n in range(1, 6):
                self.add(log, run, "text.delta", part=0, text=f"t{n} ")
        else:
            count = int(text.split("n=")[1].split()[0])
            await self.complete(log, run, [f"t{n} " for n in range(1, count + 1)])
        if "event-stream" in request.headers["accept"]:
            await self.events(run, request, response)
        else:
            await response.whole(self.record(run), 201)

    async def complete(self, log: list[Event], run: str, words: list[str]) -> None:
        for word in words:
            self.add(log, run, "text.delta", part=0, text=word)
        self.add(log, run, "text.done", part=0, text="".join(words))
        self.add(log, run, "run.completed", output="".join(words))

    def add(self, log: list[Event], run: str, kind: str, **fields: Any) -> None:
        seq = len(log) + 1
        log.append({"seq": seq, "run": run, "type": kind, "ts": f"2026-01-02T03:04:05.{seq:03d}Z", **fields})

    def record(self, run: str) -> dict[str, Any]:
        log = self.logs[run]
        end = next((e for e in log if e["type"] in ENDS), None)
        return {
            "id": run,
            "seq": len(log),
            "state": end["type"].removeprefix("run.") if end else "running",
            "reason": end.get("reason") if end else None,
            "ended_at": "now" if end else None,
            "output": end.get("output") if end else None,
        }

    async def stop(self, run: str) -> None:
        if not self.record(run)["ended_at"]:
            self.add(self.logs[run], run, "run.cancelled", reason="stopped", **self.ending(run))

    def ending(self, run: str) -> dict[str, Any]:
        said = "".join(e["text"] for e in self.logs[run] if e["type"] == "text.delta")
        times = {"requested_at": "", "ended_at": "", "elapsed_ms": 1, "upstream_closed_ms": 1}
        return {"partial": said, "receipt": {**times, "tools": [], "abandoned": False, "by": "worker"}}

    async def events(self, run: str, request: Request, response: Response) -> None:
        after = request.headers.get("last-event-id") or request.query.get("after", "0")
        place = int(after.partition("-")[0])
        if place and place == len(self.logs[run]) and self.record(run)["ended_at"]:
            await response.begin(status=204)
            await response.end()
            return
        await response.begin()
        for event in self.suffix(self.logs[run], place):
            await self.tell(response, event)
        while not self.record(run)["ended_at"] and not request.gone.is_set():
            told = len(self.logs[run])
            while len(self.logs[run]) == told and not request.gone.is_set():
                await asyncio.sleep(0.01)
            for event in self.logs[run][told:]:
                await self.tell(response, event)
        await self.close(response)

    async def tell(self, response: Response, event: Event) -> None:
        await response.event(json.dumps(event), event["type"], f"{event['seq']}-1")

    def suffix(self, log: list[Event], after: int) -> list[Event]:
        return log[after:]

    async def close(self, response: Response) -> None:
        await response.end()


class HangsWhenAskedHowItIs(SoundRuns):
    """Its health waits for something that does not come."""

    async def answer(self, request: Request, response: Response) -> None:
        if request.path == "/health":
            await asyncio.sleep(60)
        if request.path in ("/livez", "/readyz", "/startupz"):
            await response.whole({})
        else:
            await super().answer(request, response)


class RunsDieWithTheirReaders(SoundRuns):
    """Who streams a run and leaves takes it along."""

    async def complete(self, log: list[Event], run: str, words: list[str]) -> None:
        for word in words[:2]:
            self.add(log, run, "text.delta", part=0, text=word)

    async def events(self, run: str, request: Request, response: Response) -> None:
        await super().events(run, request, response)
        if request.gone.is_set() and not self.record(run)["ended_at"]:
            self.add(self.logs[run], run, "run.cancelled", reason="client_disconnect", **self.ending(run))


class RepeatsOnResume(SoundRuns):
    """A reader that comes back gets its last event again."""

    def suffix(self, log: list[Event], after: int) -> list[Event]:
        return log[max(0, after - 1) :]


class LosesOnResume(SoundRuns):
    """A reader that comes back misses an event."""

    def suffix(self, log: list[Event], after: int) -> list[Event]:
        return log[after + 1 :] if after else log


class ChangesOnResume(SoundRuns):
    """A reader that comes back gets the same events in other bytes."""

    def suffix(self, log: list[Event], after: int) -> list[Event]:
        return [{**event, "again": True} for event in log[after:]] if after else log


class EndsTwice(SoundRuns):
    """Completed by one part, failed by another: two terminal events."""

    async def complete(self, log: list[Event], run: str, words: list[str]) -> None:
        await super().complete(log, run, words)
        self.add(log, run, "run.failed", reason="agent_error")


class TalksOn(SoundRuns):
    """Something is written after the terminal event."""

    async def complete(self, log: list[Event], run: str, words: list[str]) -> None:
        await super().complete(log, run, words)
        self.add(log, run, "text.delta", part=1, text="and")


class NeverClosesLogs(SoundRuns):
    """The terminal event is told, and the reader is kept waiting."""

    async def close(self, response: Response) -> None:
        await asyncio.sleep(60)


class NeverStops(SoundRuns):
    """202, and the run goes on."""

    async def stop(self, run: str) -> None:
        pass


class StopsWithoutReceipt(SoundRuns):
    """The run ends, and nobody says what became of it."""

    def ending(self, run: str) -> dict[str, Any]:
        return {}

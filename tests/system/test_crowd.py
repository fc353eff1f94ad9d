"""Many who only listen: they cost memory that is bounded, hinder no run, and all hear of its end."""

import asyncio
import json
import statistics
import time
from collections.abc import Callable

import pytest

from tests.system.support import TERMINAL, System, check_log, full, until

CROWD = full(1_000, 100)
SHARE = 256 * 1024  # bytes of the gateway's memory for each who listens, at most
ROUNDS = 5

pytestmark = [pytest.mark.slow, pytest.mark.timeout(full(180, 60))]


class Listener:
    """One server-sent stream of a run, read as it comes."""

    def __init__(self, port: int, run: str) -> None:
        self.events: list[dict[str, object]] = []
        self.ended_at = 0.0
        self._port, self._run = port, run

    async def listen(self) -> None:
        """Until the terminal event, or the connection's end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            head = f"GET /api/runs/{self._run}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n"
            writer.write(head.encode())
            while line := await reader.readline():
                if line.startswith(b"data: "):
                    self.events.append(json.loads(line[6:]))
                    if self.events[-1]["type"] in TERMINAL:
                        self.ended_at = time.monotonic()
                        return
        finally:
            writer.close()


async def test_a_crowd_that_listens_to_a_silent_run_hinders_no_other_and_hears_its_end(
    system: System, figures: Callable[[str, list[str]], None]
) -> None:
    """A page that is left open in many tabs; then Stop, and every tab says so."""
    ask = asyncio.to_thread
    alone = [await ask(_short_run_ms, system) for _ in range(ROUNDS)]
    run = await ask(system.run, "!stall after=3 for=600")
    await ask(system.until_text, run, "t3 ")
    before = system.ps().memory_info().rss
    crowd = [Listener(system.http.port, run) for _ in range(CROWD)]
    tasks = [asyncio.create_task(each.listen()) for each in crowd]
    try:
        await ask(until, lambda: system.http.get("/health")["readers"] == CROWD, "all are served")
        grown = system.ps().memory_info().rss - before
        watched = [await ask(_short_run_ms, system) for _ in range(ROUNDS)]
        stopped = time.monotonic()
        await ask(system.stop, run)
        _, deaf = await asyncio.wait(tasks, timeout=30)
        assert not deaf, f"{len(deaf)} did not hear of the end"
    finally:
        for task in tasks:
            task.cancel()
    heard = sorted(each.ended_at - stopped for each in crowd)
    log = await ask(system.seen, run)
    for each in crowd:
        assert each.events == log
    check_log(log)
    await ask(until, lambda: system.http.get("/health")["readers"] == 0, "those who left are let go")
    before_ms, with_ms = statistics.median(alone), statistics.median(watched)
    figures(
        f"{CROWD} idle subscribers",
        [
            f"memory of the gateway: +{grown / 2**20:.1f} MiB, {grown / CROWD / 1024:.0f} KiB each",
            f"another run: {before_ms:.0f} ms without, {with_ms:.0f} ms with them",
            f"Stop heard after p50 {heard[len(heard) // 2] * 1e3:.0f} ms, last {heard[-1] * 1e3:.0f} ms",
        ],
    )
    assert grown < CROWD * SHARE
    assert with_ms < before_ms * 5 + 1_000


def _short_run_ms(system: System) -> float:
    began = time.monotonic()
    assert system.end(system.run("!tokens n=20"))["state"] == "completed"
    return (time.monotonic() - began) * 1e3

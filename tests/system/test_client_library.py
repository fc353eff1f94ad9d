"""P3 and P9 for the client library, sync and async, against real servers: cut, silenced, killed, stopped by others."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import anyio
import pytest

from holdfast.client import ApiError, AsyncClient, Backoff, Client, Connection, ServerUnreachable
from tests.system.proxy import CuttingProxy
from tests.system.support import System, check_log, full, until

CUTS = full(100, 15)
TOKENS = full(3000, 500)
QUICK = Backoff(first_s=0.02, max_s=0.2, attempts=40)

Heard = list[Connection]


def follow_sync(url: str, run: str, heard: Heard, silence_s: float = 10.0) -> list[dict[str, Any]]:
    with Client(url, backoff=QUICK, silence_s=silence_s) as client:
        return list(client.follow(run, on_state=heard.append))


def follow_async(url: str, run: str, heard: Heard, silence_s: float = 10.0) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        async with AsyncClient(url, backoff=QUICK, silence_s=silence_s) as client:
            return [event async for event in client.follow(run, on_state=heard.append)]

    return anyio.run(read)


BOTH = pytest.mark.parametrize("follow", [follow_sync, follow_async], ids=["sync", "async"])


class Behind:
    """A follow in a thread; what it read and heard."""

    def __init__(self, follow: Callable[..., list[dict[str, Any]]], *args: Any) -> None:
        self.heard: Heard = []
        self._found: list[Any] = []
        self._thread = threading.Thread(target=self._read, args=(follow, *args), daemon=True)
        self._thread.start()

    def _read(self, follow: Callable[..., list[dict[str, Any]]], url: str, run: str, silence_s: float) -> None:
        try:
            self._found.append(follow(url, run, self.heard, silence_s))
        except BaseException as error:  # noqa: BLE001 - raised again by `events`
            self._found.append(error)

    def saw(self, state: str) -> bool:
        return any(each.state == state for each in self.heard)

    def events(self, limit_s: float = 40.0) -> list[dict[str, Any]]:
        self._thread.join(limit_s)
        assert not self._thread.is_alive(), f"no end within {limit_s} s; {self.heard[-3:]}"
        if isinstance(self._found[0], BaseException):
            raise self._found[0]
        return self._found[0]


@contextmanager
def cutting(port: int, run_bytes: int, seed: int) -> Iterator[CuttingProxy]:
    """Cuts CUTS connections at random positions, then lets them live."""
    chance = random.Random(seed)
    left = [chance.randrange(1, max(2, 2 * run_bytes // CUTS)) for _ in range(CUTS)]
    with closing(CuttingProxy(port, lambda: left.pop() if left else None)) as proxy:
        yield proxy


@BOTH
@pytest.mark.slow
@pytest.mark.timeout(full(120, 40))
def test_a_client_that_is_cut_anywhere_gets_the_log_exactly(system: System, follow: Any, figures: Any):
    """Headers, ids, data: wherever the bytes end, the text is exact, nothing is missing and nothing comes twice."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown on failure, to repeat it
    run = system.run(f"!tokens n={TOKENS} rate=100000", agent="diver")
    assert system.end(run, 60)["state"] == "completed"
    log = system.events(run)
    heard: Heard = []
    with cutting(system.http.port, len(log) * 180, seed) as proxy:
        events = follow(proxy.url, run, heard)
        cuts = proxy.cuts
    assert events == log, f"seed {seed}"
    check_log(events)
    assert "".join(e["text"] for e in events if e["type"] == "text.delta") == "".join(
        f"t{i} " for i in range(1, TOKENS + 1)
    )
    assert cuts >= CUTS * 0.6, f"seed {seed}"
    assert [c.state for c in heard if c.state == "ended"] == ["ended"]
    assert heard[-1].state == "ended"
    figures(f"{follow.__name__} cut", [f"{len(log)} events, {cuts} cuts"])

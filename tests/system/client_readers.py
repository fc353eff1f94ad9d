"""Our client libraries as readers of a run, each in a thread of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import anyio

from holdfast.client import AsyncClient, Backoff, Client, Connection
from tests.system.support import until

QUICK = Backoff(first_s=0.02, max_s=0.2, attempts=1000)  # a server that starts beside others takes its time

Heard = list[Connection]
Follow = Callable[..., list[dict[str, Any]]]


def follow_sync(url: str, run: str, heard: Heard, silence_s: float = 10.0) -> list[dict[str, Any]]:
    with Client(url, backoff=QUICK, silence_s=silence_s) as client:
        return list(client.follow(run, on_state=heard.append))


def follow_async(url: str, run: str, heard: Heard, silence_s: float = 10.0) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        async with AsyncClient(url, backoff=QUICK, silence_s=silence_s) as client:
            return [event async for event in client.follow(run, on_state=heard.append)]

    return anyio.run(read)


def follow_js(url: str, run: str, heard: Heard, silence_s: float = 10.0) -> list[dict[str, Any]]:
    """The JavaScript client, under Node."""
    backoff = {"firstS": QUICK.first_s, "maxS": QUICK.max_s, "attempts": QUICK.attempts}
    job = {"url": url, "run": run, "silenceS": silence_s, "backoff": backoff}
    script = Path(__file__).with_name("reader.mjs")
    events: list[dict[str, Any]] = []
    with (
        TemporaryFile("w+") as complaints,
        subprocess.Popen([str(NODE), script, json.dumps(job)], stdout=subprocess.PIPE, stderr=complaints) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            told = json.loads(line)
            if "event" in told:
                events.append(told["event"])
            else:
                state, wait_s, cause, failures = (told["state"][k] for k in ("state", "waitS", "cause", "failures"))
                heard.append(Connection(state, wait_s, cause, failures))
        process.wait(10)
        complaints.seek(0)
        assert process.returncode == 0, complaints.read()
    return events


NODE = shutil.which("node")
FOLLOWS: tuple[Follow, ...] = (follow_sync, follow_async, *((follow_js,) if NODE else ()))


class Behind:
    """A follow in a thread; what it read and heard."""

    def __init__(self, follow: Follow, url: str, run: str, silence_s: float = 10.0) -> None:
        self.name = follow.__name__
        self.heard: Heard = []
        self._found: list[Any] = []
        self._thread = threading.Thread(target=self._read, args=(follow, url, run, silence_s), daemon=True)
        self._thread.start()

    def _read(self, follow: Follow, url: str, run: str, silence_s: float) -> None:
        try:
            self._found.append(follow(url, run, self.heard, silence_s))
        except BaseException as error:  # noqa: BLE001 - raised again by `events`
            self._found.append(error)

    def saw(self, state: str) -> bool:
        return any(each.state == state for each in self.heard)

    def last(self, state: str) -> bool:
        return bool(self.heard) and self.heard[-1].state == state

    def events(self, limit_s: float = 40.0) -> list[dict[str, Any]]:
        self._thread.join(limit_s)
        assert not self._thread.is_alive(), f"no end within {limit_s} s; {self.heard[-3:]}"
        if isinstance(self._found[0], BaseException):
            raise self._found[0]
        return self._found[0]


class Readers:
    """Every library, on the same run."""

    def __init__(self, url: str, run: str, silence_s: float = 10.0) -> None:
        self.each = [Behind(follow, url, run, silence_s) for follow in FOLLOWS]

    def until_saw(self, state: str, limit_s: float = 30.0) -> None:
        """Until each was in this state once."""
        until(lambda: all(reader.saw(state) for reader in self.each), f"all were {state}", limit_s)

    def until_last(self, state: str, limit_s: float = 30.0) -> None:
        """Until each is in this state."""
        until(lambda: all(reader.last(state) for reader in self.each), f"all are {state}", limit_s)

    def until_not_live(self, limit_s: float = 30.0) -> None:
        """Until each has seen its connection break."""
        until(lambda: not any(reader.last("live") for reader in self.each), "none is live", limit_s)

    def events(self, limit_s: float = 40.0) -> list[dict[str, Any]]:
        """What each read, which is the same."""
        first, *rest = [reader.events(limit_s) for reader in self.each]
        assert all(events == first for events in rest)
        return first

"""Leaving cleanly: SIGTERM and SIGINT, once and twice, with open streams and a tool that will not die."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.system.support import FULL, System, full, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

STREAMS = full(100, 10)
EXIT_S = 30.0
KEY = "leaver-with-a-long-key"
# CI: each signal, once and twice, but not all four.
SIGNALS = [(signal.SIGTERM, 1), (signal.SIGINT, 2), (signal.SIGINT, 1), (signal.SIGTERM, 2)]


class Reader:
    """Reads a stream in a thread until the server ends it, and knows how it ended."""

    def __init__(self, system: System, run: str) -> None:
        self.run = run
        self.data = b""
        self.reset = ""
        self._sock = socket.create_connection(("127.0.0.1", system.http.port), timeout=60)
        self._sock.sendall(
            f"GET /api/runs/{run}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
            "Accept: text/event-stream\r\n\r\n".encode()
        )
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        with closing(self._sock):
            try:
                while found := self._sock.recv(65536):
                    self.data += found
                    if self.data.endswith(b"0\r\n\r\n"):
                        return
            except OSError as error:
                self.reset = repr(error)

    @property
    def whole(self) -> bool:
        """Whether the response was ended by the server, and not cut off."""
        return self.data.endswith(b"\r\n0\r\n\r\n") and not self.reset

    def last(self) -> dict[str, str]:
        lines = [line for line in self.data.decode(errors="replace").splitlines() if line.startswith("data: ")]
        return json.loads(lines[-1][6:])


@pytest.mark.parametrize(
    ("number", "times"), SIGNALS if FULL else SIGNALS[:2], ids=lambda value: getattr(value, "name", str(value))
)
def test_the_server_leaves_cleanly_whatever_is_open(
    number: signal.Signals,
    times: int,
    start_system: Callable[..., System],
    figures: Callable[[str, list[str]], None],
    tmp_path: Path,
) -> None:
    """Not ready first; every client is told; no run is lost; exit code 0 within 30 s, much sooner where it is hurried.

    At full size with the profile and the drain of production; CI has 10 streams and a drain of two seconds.
    """
    keys = tmp_path / "keys"
    keys.write_text(f"leaver:{KEY} tenant=local\n")
    env = {"HOLDFAST_API_KEYS_FILE": str(keys), "HOLDFAST_PROFILE": "production"}
    system = start_system(HOLDFAST_DRAIN_S=str(full(25, 2)), **env)
    own = {"Authorization": f"Bearer {KEY}"}

    def ask(method: str, path: str, body: object = None) -> tuple[int, dict]:
        return system.http.ask(method, path, body, own)

    ends = ask("POST", "/api/runs", {"input": json.dumps({"n": 9000, "seconds": 300}), "agent": "ticker"})[1]["id"]
    deaf = ask("POST", "/api/runs", {"input": '!tool deaf {"seconds": 3600}', "agent": "diver"})[1]["id"]
    goes_on = ask("POST", "/api/runs", {"input": "!tokens n=100000 rate=20", "agent": "diver"})[1]["id"]
    runs = [ends, deaf, goes_on]
    readers = [Reader(system, runs[n % 3]) for n in range(STREAMS)]
    until(lambda: all(b"run.started" in reader.data for reader in readers), "all streams are open")
    until(lambda: system.journal("deaf"), "the tool is at work")

    began = time.monotonic()
    system.server.signal(number)
    if times == 1:
        status, ready = until(
            lambda: next(iter([found for found in [ask("GET", "/readyz")] if found[0] == 503]), None), "not ready", 5
        )
        assert (status, ready["parts"]["server"]["why"]) == (503, "draining")
        assert ask("POST", "/api/runs", {"input": "x", "agent": "diver"})[0] == 503
        assert ask("GET", f"/api/runs/{ends}")[1]["state"] == "running", "runs go on while it drains"
    else:
        until(lambda: "shutdown" in system.server.log(), "the first signal is taken")
        system.server.signal(number)
    assert system.server.wait(EXIT_S + 10) == 0
    took_s = time.monotonic() - began
    assert took_s < min(EXIT_S, full(25, 2) + 20)
    assert "worker_killed" not in system.server.log(), "it ends by itself, whatever its tool does"
    for reader in readers:
        reader.thread.join(5)
    told = Counter((reader.whole, reader.last()["type"]) for reader in readers)
    assert all(reader.whole for reader in readers), Counter(reader.reset for reader in readers)
    for reader in readers:
        if reader.run == ends or times == 2:
            end = reader.last()
            assert (end["type"], end["reason"]) == ("run.cancelled", "shutdown"), end
    if times == 2:
        assert took_s < 12, "a second signal does not wait for the drain"

    system.start()
    states = {run: ask("GET", f"/api/runs/{run}")[1] for run in runs}
    assert states[ends]["reason"] == "shutdown"
    assert all(each["state"] in ("cancelled", "running", "queued", "failed") for each in states.values())
    for run in runs:
        ask("POST", f"/api/runs/{run}/stop?wait_s=5")
        assert ask("GET", f"/api/runs/{run}")[1]["ended_at"], "no run is lost"
    figures(
        f"{number.name} {'twice' if times == 2 else 'once'}, {STREAMS} streams, a tool that will not die",
        [f"exit 0 after {took_s:.1f} s", f"streams: {dict(told)}"],
    )

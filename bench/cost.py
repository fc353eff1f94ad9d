"""What tokens cost: CPU at a model's pace, and how many go through at full speed."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from tests.system.reading import stored
from tests.system.support import System, frames, until

RATE = 20  # tokens a second of one run: a real model's pace, one wake-up for each token
FAST = 5000
_RESTS_S = 0.03  # of CPU in half a second


def paced(system: System, seconds: int) -> tuple[str, list[list[str]]]:
    """CPU of the server for each token, against pydantic-ai alone reading the same model in its own process."""
    _quiet(system)
    rows = [["runs at once", "Holdfast", "pydantic-ai alone", "ratio", "deltas per token"]]
    for at_once in (1, 20):
        n = seconds * RATE
        _carry(system, f"!tokens n={RATE} rate=1000", at_once, RATE)  # connections, caches
        before = _cpu_s(system)
        deltas = _carry(system, f"!tokens n={n} rate={RATE}", at_once, n)
        time.sleep(1.0)  # whatever lags behind is paid for
        ours = (_cpu_s(system) - before) / (at_once * n)
        alone = _alone(system, at_once, n) / (at_once * n)
        shown = [f"{ours * 1e6:.0f} us/token", f"{alone * 1e6:.0f} us/token", f"{ours / alone:.2f}"]
        rows.append([str(at_once), *shown, f"{deltas / (at_once * n):.2f}"])
    return f"CPU at {RATE} tokens/s a run, for {seconds} s (CPU clock: 10 ms)", rows


def idle(system: System, seconds: int) -> tuple[str, list[list[str]]]:
    """CPU of a server that nobody asks for anything, process by process."""
    _quiet(system)
    rows = [["process", "of one core"]]
    everybody = {"server": system.ps()} | {f"worker or spare {p.pid}": p for p in system.workers()}
    before = {name: _used_s(process) for name, process in everybody.items()}
    time.sleep(seconds)
    shares = {name: (_used_s(process) - before[name]) / seconds for name, process in everybody.items()}
    for name, share in [*shares.items(), ("together", sum(shares.values()))]:
        rows.append([name, f"{share * 100:.2f} %"])
    return f"CPU of an idle server, for {seconds} s (CPU clock: 10 ms)", rows


def full_speed(system: System, rounds: int) -> tuple[str, list[list[str]]]:
    """Runs whose model says everything at once; the model's own speed is a bound for ours."""
    rows = [["runs at once", "tokens/s", "CPU", "deltas per token"]]
    for at_once in (1, 8):
        best, cpu, deltas = 0.0, 0.0, 0
        for _ in range(rounds):
            before, began = _cpu_s(system), time.monotonic()
            deltas = _carry(system, f"!tokens n={FAST} rate=1000000", at_once, FAST)
            speed = at_once * FAST / (time.monotonic() - began)
            if speed > best:
                best, cpu = speed, (_cpu_s(system) - before) / (at_once * FAST)
        rows.append([str(at_once), f"{best:.0f}", f"{cpu * 1e6:.0f} us/token", f"{deltas / (at_once * FAST):.3f}"])
    return f"full speed, {FAST} tokens a run, best of {rounds}", rows


def _cpu_s(system: System) -> float:
    """What the server's processes have used."""
    return sum(map(_used_s, [system.ps(), *system.workers()]))


def _used_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _quiet(system: System) -> None:
    """Wait until it has loaded: when the server is ready, a spare worker still imports for a second of CPU."""

    def rests() -> bool:
        before = _cpu_s(system)
        time.sleep(0.5)
        return len(system.workers()) > 1 and _cpu_s(system) - before < _RESTS_S

    until(rests, "the server rests, its spare loaded")


def _carry(system: System, script: str, at_once: int, n: int) -> int:
    """That many runs, each with a reader; how many deltas carried them. What was delivered is what the log has."""
    text = "".join(f"t{i} " for i in range(1, n + 1))
    found: list[list[dict[str, Any]]] = []

    def follow() -> None:
        body = {"input": script, "agent": "diver"}
        with system.http.stream("/api/runs", method="POST", body=body, limit_s=120) as response:
            found.append([json.loads(data) for _, _, data in frames(response)])

    readers = [threading.Thread(target=follow, daemon=True) for _ in range(at_once)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(180)
    assert len(found) == at_once, f"{at_once - len(found)} runs did not end"
    for events in found:
        assert events[-1].get("output") == text, f"delivered: {events[-1]}"
        assert [json.loads(row.data) for row in stored(system, events[0]["run"])] == events, "the log is what came"
    return sum(event["type"] == "text.delta" for events in found for event in events)


def _alone(system: System, at_once: int, n: int) -> float:
    """The CPU seconds of a process that runs the same agent by pydantic-ai itself."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("alone.py")),
        system.model.url,
        str(at_once),
        str(n),
        str(RATE),
    ]
    done = subprocess.run(command, cwd=system.directory, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)

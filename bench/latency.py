"""How long things take: to start, to the first token, to stop."""

import json
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

from tests.system.phases import PHASES, stop_in
from tests.system.reading import ticks
from tests.system.support import Http, System, Watch, frames, percentile


def start(system: System, rounds: int) -> tuple[str, list[list[str]]]:
    """From the start of the process to /readyz; the file system's cache is warm, the database is new."""
    taken = []
    for i in range(rounds):
        directory = system.directory / f"start-{i}"
        directory.mkdir()
        taken.append(_ready_s(directory))
    rows = [["", "p50", "worst"], ["holdfast serve", *(f"{t:.2f} s" for t in (median(taken), max(taken)))]]
    return f"process start to ready, {rounds} times, with its model starting beside it", rows


def _ready_s(directory: Path) -> float:
    system = System(directory, "agents_under_test:diver")
    system.close()
    return system.ready_s


def first_token(system: System, rounds: int) -> tuple[str, list[list[str]]]:
    """The same request to the model itself and through Holdfast, in turns; a new connection each."""
    script = "!tokens n=1 rate=1000"
    taken: dict[str, list[float]] = {"the model itself": [], "Holdfast, native SSE": [], "Holdfast, /v1": []}
    for i in range(rounds + 5):
        found = (_chat(system.model.http, script), _native(system, script), _chat(system.http, script))
        if i >= 5:  # the first ones open connections and fill caches
            for values, value in zip(taken.values(), found, strict=True):
                values.append(value * 1000)
    base = median(taken["the model itself"])
    rows = [["", "p50", "p99", "added", "ratio"]]
    for name, values in taken.items():
        middle = median(values)
        added = ["", ""] if middle == base else [f"{middle - base:.1f} ms", f"{middle / base:.1f}"]
        rows.append([name, f"{middle:.1f} ms", f"{percentile(values, 0.99):.1f} ms", *added])
    return f"time to the first token, {rounds} rounds in turns", rows


def _native(system: System, script: str) -> float:
    began = time.monotonic()
    with system.http.stream("/api/runs", method="POST", body={"input": script, "agent": "diver"}) as response:
        first = next(time.monotonic() for _, event, _ in frames(response) if event == "text.delta")
        response.read()
    return first - began


def _chat(http: Http, script: str) -> float:
    began = time.monotonic()
    body = {"model": "diver", "stream": True, "messages": [{"role": "user", "content": script}]}
    first = 0.0
    with http.stream("/v1/chat/completions", method="POST", body=body) as response:
        for _, _, data in frames(response):
            choices = json.loads(data)["choices"] if data != "[DONE]" else []
            if not first and choices and choices[0]["delta"].get("content"):
                first = time.monotonic()
    return first - began


def stop(system: System, rounds: int) -> tuple[str, list[list[str]]]:
    """From the request to stop to the terminal event at a reader, and to the close that the model sees."""
    rows = [["", "n", "terminal p50", "p99", "model sees close p50", "p99"]]
    for phase in PHASES:
        n = rounds if phase.cooperates else max(1, rounds // 5)
        stops = [stop_in(system, phase, f"{phase.name.replace(' ', '-')}-{i}") for i in range(n)]
        terminal = [s.terminal_ms for s in stops]
        closed = [s.upstream_ms for s in stops if s.upstream_ms is not None]
        cells = [
            f"{percentile(values, p):.1f} ms" if values else "-" for values in (terminal, closed) for p in (0.5, 0.99)
        ]
        rows.append([phase.name, str(n), *cells])
    return "stop, by phase (a deaf tool has a grace of 2 s)", rows


def crowd(system: System, rounds: int) -> tuple[str, list[list[str]]]:
    """What runs at full speed do to a neighbour on the same worker, which needs no model, and to its stop."""
    rows = [["beside", "gap of the neighbour p50", "p99", "worst", "its stop p50", "worst"]]
    for fast in (0, 1, 4):
        runs = [system.run("!tokens n=500000 rate=1000000", agent="diver") for _ in range(fast)]
        for run in runs:
            system.until_event(run, "text.delta")
        gaps = _gaps_ms(system)
        stops = [_stop_ms(system) for _ in range(rounds)]
        for run in runs:
            system.stop(run)
            system.end(run)
        shown = [percentile(gaps, 0.5), percentile(gaps, 0.99), max(gaps), median(stops), max(stops)]
        rows.append([f"{fast} at full speed", *(f"{value:.0f} ms" for value in shown)])
    return "a run that says something every 50 ms, beside others", rows


def _gaps_ms(system: System) -> list[float]:
    """Between what the agent `ticker` says in five seconds: eight events every 50 ms."""
    arrived: list[float] = []
    body = {"input": ticks(800, 5.0), "agent": "ticker"}
    with system.http.stream("/api/runs", method="POST", body=body) as response:
        for i, _ in enumerate(frames(response)):
            if i % 8 == 0:
                arrived.append(time.monotonic())
    return [(b - a) * 1000 for a, b in pairwise(arrived)]


def _stop_ms(system: System) -> float:
    run = system.run(ticks(8000, 50.0), agent="ticker")
    watch = Watch(system, run)
    system.until_event(run, "text.delta")
    asked = time.monotonic()
    system.stop(run)
    watch.end()
    return (watch.at - asked) * 1000

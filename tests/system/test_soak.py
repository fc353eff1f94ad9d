"""P7: whatever ran, tasks, threads, sockets, descriptors and memory come back to where they were."""

import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from tests.system.reading import ticks
from tests.system.support import System, frames, full, table, until

RUNS = full(1_000, 120)
AT_ONCE = 8
WARM = 32  # runs before the baseline: connections to the model are kept, pages of the database are cached
BACK_S = 40.0  # a tool's thread ends after 10 s of idleness, a kept connection after 30 s
SLACK = {"threads": 4, "fds, kept connections aside": 9}  # small pools fill when they must: readers, name lookups
GROWTH_BYTES_MAX = 48 * 2**20


def use(system: System, i: int, chance: random.Random) -> str:
    """One short run of some kind; how it ended."""
    kind = i % 8
    match kind:
        case 0 | 1 | 2:
            run = system.run("!tokens n=20 rate=2000", agent="diver")
        case 3:
            run = system.run('!tool echo {"text": "hi"}\n!tool double {"number": 21}\n!say done', agent="diver")
        case 4:
            run = system.run("!tokens n=100000 rate=100", agent="diver")
            time.sleep(chance.random() * 0.2)  # a stop at any moment
            system.stop(run)
        case 5:
            run = system.run('!tool nap {"seconds": 60}', agent="diver")
            time.sleep(chance.random() * 0.2)
            system.stop(run)
        case 6:
            run = system.run(ticks(50, 0), agent="ticker")
            _leave_early(system, run)
        case _:
            run = system.run("!status code=400", agent="diver")
    return system.end(run, limit_s=60)["state"]


def _leave_early(system: System, run: str) -> None:
    """A reader that goes away in the middle."""
    with system.http.stream(f"/api/runs/{run}/events") as response, suppress(StopIteration):
        next(frames(response))


def held(system: System) -> dict[str, int]:
    """What the server holds now; connections to the model are kept for the next run, as many as ran at once."""
    processes = [system.ps(), *system.workers()]
    facts = system.http.get("/api/workers")["workers"][0]["facts"]
    sockets = [socket for process in processes for socket in process.net_connections("inet")]
    kept = sum(bool(s.raddr) and s.raddr.port == system.model.http.port for s in sockets)
    return {
        "tasks": facts["tasks"],
        "runs": facts["runs"],
        "abandoned": facts["abandoned"],
        "readers": system.http.get("/health")["readers"],
        "threads": sum(p.num_threads() for p in processes),
        "fds, kept connections aside": sum(p.num_fds() for p in processes) - kept,
        "sockets, kept connections aside": len(sockets) - kept,
        "kept connections beyond those that ran at once": max(0, kept - AT_ONCE),
        "open at the model": system.model.stats()["open"],
    }


def memory(system: System) -> int:
    return sum(p.memory_info().rss for p in [system.ps(), *system.workers()])


@pytest.mark.slow
@pytest.mark.timeout(full(900, 150))
def test_after_many_short_runs_everything_is_back_at_its_baseline(system: System, figures: Callable[..., None]):
    """A server that leaks one task a run is a server that is restarted every night."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown on failure, to repeat it
    _many(system, WARM, seed)
    baseline = _settled(system, {})
    before = memory(system)
    began = time.monotonic()
    ends = _many(system, RUNS, seed + 1)
    took = time.monotonic() - began
    after = _settled(system, baseline)
    grown = memory(system) - before
    rows = [["", "before", "after"], *([name, str(baseline[name]), str(after[name])] for name in baseline)]
    said = f"memory: {before / 2**20:.0f} MiB, +{grown / 2**20:.1f}"
    figures(f"{RUNS} short runs, {AT_ONCE} at once, in {took:.0f} s", [*table(rows), said, json.dumps(ends)])
    assert sum(ends.values()) == RUNS
    assert ends["completed"] >= RUNS // 2
    assert ends["cancelled"] >= RUNS // 5
    assert _above(after, baseline) == {}, f"left behind: {after}, before {baseline} (seed {seed})"
    assert grown < GROWTH_BYTES_MAX, said
    assert "task_failed" not in system.server.log()
    assert "loop_failed" not in system.server.log()


def _many(system: System, n: int, seed: int) -> dict[str, int]:
    """That many runs, some at once; how they ended."""
    ends: dict[str, int] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for state in pool.map(lambda i: use(system, i, random.Random(seed + i)), range(n)):
            ends[state] = ends.get(state, 0) + 1
    return ends


def _settled(system: System, goal: dict[str, int]) -> dict[str, int]:
    """What is held once it is no more than `goal`; without one, once nothing moves for a while."""
    last: dict[str, Any] = {}

    def holds() -> bool:
        nonlocal last
        before, last = last, held(system)
        quiet = last["runs"] == last["readers"] == last["open at the model"] == 0
        return quiet and (not _above(last, goal) if goal else last == before)

    with suppress(AssertionError):  # the caller compares
        until(holds, "", BACK_S, every_s=0.2 if goal else 1.0)
    return last


def _above(found: dict[str, int], baseline: dict[str, int]) -> dict[str, int]:
    return {name: value for name, value in found.items() if value > baseline[name] + SLACK.get(name, 0)}

"""Threads that tools do not give back are bounded, and a worker that has lost too many is replaced."""

import time
from typing import Any

import psutil
import pytest

from tests.supervision.conftest import Serve
from tests.supervision.support import Follower, settled, worker_pid
from tests.system.support import System, full, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(full(600, 120))]

GANG = "agents_isolated:gang"
THREADS, QUARANTINE = 8, 4
LOOKUPS = 6  # threads of the loop that look up names, as many as it may have on two processors


def facts(system: System) -> dict[str, dict[str, Any]]:
    return {w["worker"]: w["facts"] for w in system.http.get("/api/workers")["workers"]}


def test_sixty_cancelled_runs_with_blocking_tools_hold_up_nobody(serve: Serve, figures: Any):
    """Threads stay within their bound, a new tool starts soon, and a fresh worker takes over from the tired one."""
    n = full(60, 24)
    system = serve(GANG, HOLDFAST_TOOL_THREADS=str(THREADS), HOLDFAST_QUARANTINE=str(QUARANTINE))
    before, _ = settled(system)
    old = set(facts(system))
    quiet = psutil.Process(before).num_threads()
    held = Follower(system, system.run("!tokens n=400 rate=40", session="held"))
    runs = [system.run('!tool block {"seconds": 60}', session=f"lost{i}") for i in range(QUARANTINE)]
    for run in runs:
        system.until_event(run, "tool.called")
    runs += [system.run('!tool block {"seconds": 6}', session=f"s{i}") for i in range(n)]
    for run in runs[:THREADS]:
        system.until_event(run, "tool.called")
    for run in runs:
        system.stop(run)
    most = 0
    asked = time.monotonic()
    late = system.run("!tool quick {}\n!say fine", session="late")
    while (record := system.record(late))["ended_at"] is None:
        most = max(most, psutil.Process(before).num_threads() if psutil.pid_exists(before) else 0)
        assert time.monotonic() - asked < 30
        time.sleep(0.02)
    waited = time.monotonic() - asked
    assert (record["state"], record["output"]) == ("completed", "fine"), record
    assert most - quiet <= THREADS + QUARANTINE + LOOKUPS, (quiet, most)
    for run in runs:
        assert system.end(run)["state"] == "cancelled"
    until(lambda: worker_pid(system) != before, "another worker works")
    until(lambda: set(facts(system)) - old, "and says how it is")
    until(lambda: not next(f for name, f in facts(system).items() if name in old)["accepting"], "the old one says so")
    now = facts(system)
    assert [f["accepting"] for name, f in now.items() if name not in old] == [True], now
    assert all(f["quarantined"] >= QUARANTINE for name, f in now.items() if name in old), now
    until(lambda: system.http.ask("GET", "/readyz")[0] == 200, "it is ready")
    end = held.end(60)[-1]
    assert end["type"] == "run.completed", end
    until(lambda: not psutil.pid_exists(before), "the tired worker has ended", 60)
    figures(
        f"{n} cancelled runs with 6 s sync tools",
        [f"threads {quiet} before, {most} at most; a new tool's run took {waited:.1f} s"],
    )

"""Threads that tools do not give back are bounded, and a worker that has lost too many is replaced."""

import time
from typing import Any

import psutil
import pytest

from tests.supervision.conftest import Serve
from tests.supervision.support import Follower, kinds, settled, worker_pid
from tests.system.support import System, full, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(full(600, 120))]

GANG = "agents_isolated:gang"
THREADS, QUARANTINE = 8, 4
LOOKUPS = 6  # threads of the loop that look up names, as many as it may have on two processors


def facts(system: System) -> dict[str, dict[str, Any]]:
    return {w["worker"]: w["facts"] for w in system.http.get("/api/workers")["workers"]}


def test_sixty_cancelled_runs_with_blocking_tools_hold_up_nobody(serve: Serve, figures: Any):
    """Threads stay within their bound, a new tool starts soon, and a fresh worker takes over from the tired one.

    What the tired one holds goes on: elsewhere after the drain if its agent can, else here to its end.
    """
    n = full(60, 24)
    bounds = {"HOLDFAST_TOOL_THREADS": str(THREADS), "HOLDFAST_QUARANTINE": str(QUARANTINE), "HOLDFAST_DRAIN_S": "2"}
    system = serve(GANG, "agents_isolated:teller", **bounds)
    before, _ = settled(system)
    old = set(facts(system))
    quiet = psutil.Process(before).num_threads()
    held = Follower(system, system.run("!tokens n=280 rate=40", session="held"))
    told = Follower(system, system.run("tell", session="told", agent="teller"))
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
    for follower, starts in ((held, 2), (told, 1)):
        events = follower.end(60)
        assert events[-1]["type"] == "run.completed", events[-1]
        assert kinds(events).count("run.started") == starts, kinds(events)
    until(lambda: not psutil.pid_exists(before), "the tired worker has ended", 60)
    figures(
        f"{n} cancelled runs with 6 s sync tools",
        [f"threads {quiet} before, {most} at most; a new tool's run took {waited:.1f} s"],
    )


def test_in_one_process_nothing_can_be_replaced_so_it_is_not_ready_and_says_why(serve: Serve):
    """It takes runs again as soon as the tool has returned."""
    system = serve(GANG, "--in-process", HOLDFAST_QUARANTINE="1")
    run = system.run('!tool block {"seconds": 5}', session="lost")
    system.until_event(run, "tool.called")
    until((system.directory / "blocks").exists, "the tool works")
    system.stop(run)
    system.end(run)
    status, body = system.http.ask("GET", "/readyz")
    assert status == 503, body
    assert "no new runs until some of them return" in body["parts"]["worker"]["why"], body
    assert system.end(system.run("!say again", session="lost"))["state"] == "completed"
    assert system.http.ask("GET", "/readyz")[0] == 200


def test_a_worker_without_a_free_descriptor_is_replaced(serve: Serve):
    """It keeps time and takes runs, and none of them could reach a model: the next one would wait and fail in it."""
    system = serve("agents_supervised:crew", HOLDFAST_DRAIN_S="1")
    before, _ = settled(system)
    leaky = Follower(system, system.run("!tool leak {}\n!say done", session="leaky"))
    until(lambda: worker_pid(system) != before, "another worker works")
    assert leaky.end()[-1]["type"] in ("run.completed", "run.failed")  # which it is depends on who was connected
    until(lambda: not psutil.pid_exists(before), "the worker without descriptors has ended")
    system.prompt_works("leaky")

"""A worker that is frozen inside its transaction keeps SQLite's lock: the gateway still answers in bounded time."""

import random
import signal
import sys
import time
from typing import Any

import pytest

from tests.supervision.conftest import Serve
from tests.supervision.support import STALL_S, STOP_BLOCKED_S, Follower, Pulse, kill, settled, worker_pid
from tests.supervision.support import began as began_tool
from tests.system.support import full, percentile, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(full(1500, 90))]

ANSWER_S = STALL_S + 2.0  # busy_timeout; the supervisor kills before it is over
REPLACED_S = 20.0


def test_a_worker_that_blocks_inside_a_transaction_delays_a_new_prompt_no_longer_than_one_that_just_blocks(
    serve: Serve, figures: Any
):
    """Its writer may be in a transaction when a tool takes the interpreter: the stop itself then waits for the lock."""
    system = serve()
    settled(system)
    first = Follower(system, system.run('!tool hold {"seconds": 30}', session="s"))
    began_tool(system, "hold")
    asked = time.monotonic()
    second = Follower(system, system.run("!say free again", session="s"))
    made_s = time.monotonic() - asked
    end = first.end(10)[-1]
    assert (end["type"], end["reason"]) == ("run.cancelled", "superseded"), end
    assert second.end(10)[-1]["output"] == "free again"
    started_s = second.until("run.started") - asked
    assert started_s < STOP_BLOCKED_S + 0.5, f"{started_s:.2f} s"
    figures(
        "blocked inside a transaction", [f"the prompt is taken after {made_s:.2f} s, starts after {started_s:.2f} s"]
    )


def test_sigstop_of_the_worker_while_it_writes_delays_creates_and_stops_by_a_bounded_time(serve: Serve, figures: Any):
    """The supervisor judges by a pipe, not by the database that the frozen process may hold."""
    times, seed = full(40, 1), random.SystemRandom().randrange(10**6)
    sys.stdout.write(f"seed {seed}\n")
    chance = random.Random(seed)
    took: list[float] = []
    held = 0
    livez = 0.0
    system = serve()
    for i in range(times):
        if i and i % 3 == 0:  # more replacements in a minute would wait, on purpose
            system = serve()
        settled(system)
        found = [Follower(system, system.run("!tokens n=3000 rate=300", session=f"s{i}-{n}")) for n in range(6)]
        until(lambda f=found: all("t5 " in each.said() for each in f), "all stream")
        worker = worker_pid(system)
        pulse = Pulse(system.http)
        time.sleep(chance.uniform(0.0, 0.3))
        kill(worker, signal.SIGSTOP)
        began = time.monotonic()
        made = system.run("!say made meanwhile", session=f"new-{i}")
        first = time.monotonic() - began
        system.stop(found[0].run)
        took += [first, time.monotonic() - began - first]
        held += first > 1.0
        until(lambda s=system, w=worker: worker_pid(s) != w, "the worker is replaced", REPLACED_S)
        assert system.end(made, REPLACED_S)["output"] == "made meanwhile"
        for each in found[1:]:
            system.stop(each.run)
        for each in found:
            assert each.end(30)[-1]["reason"] in ("stopped", "finished"), each.events[-1]
        livez = max(livez, pulse.worst())
        assert max(took) < ANSWER_S, f"seed {seed}: {took}"
        assert livez < 1.0
    figures(
        f"SIGSTOP of a writing worker, {times} times, seed {seed}",
        [
            f"creates and stops: p50 {percentile(took, 0.5):.2f} s, worst {max(took):.2f} s; /livez {livez:.2f} s",
            f"frozen inside a transaction: {held} times",
        ],
    )

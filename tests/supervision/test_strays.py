"""Stop reaches what an agent started and does not wait for, and what cannot be reached costs a worker, not a server."""

import time

import psutil
import pytest

from tests.supervision.conftest import Serve
from tests.supervision.support import settled, worker_pid
from tests.system.support import System, full, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(full(300, 60))]

AGENTS = ("agents_supervised:crew", "agents_supervised:scatter")
HOWS = ["wait", "shield", "forget"]


def stopped(system: System, how: str) -> dict:
    """The record of a run that was stopped while its task ticked."""
    before = len(system.journal("scatter"))
    run = system.run(how, session=how, agent="scatter")
    until(lambda: len(system.journal("scatter")) > before + 1, "the task works")
    system.stop(run)
    return system.end(run)


def test_stop_ends_the_tasks_that_an_agent_started(serve: Serve):
    """P2: `asyncio.wait` and `shield` pass no cancellation on: they would work for a stopped run for ever."""
    system = serve(*AGENTS)
    for how in HOWS:
        record = stopped(system, how)
        ended = time.monotonic()
        assert (record["state"], record["receipt"]["abandoned"]) == ("cancelled", False), record
        time.sleep(0.3)
        late = [entry["at"] - ended for entry in system.journal("scatter") if entry["at"] > ended]
        assert not late, (how, late)
        system.prompt_works(how)


def test_tasks_that_ignore_their_end_are_bounded_by_a_new_worker(serve: Serve):
    """P7: nothing can end such a task but the end of its process; it is said on the receipt, and it does not add up."""
    system = serve(*AGENTS, HOLDFAST_QUARANTINE="2", HOLDFAST_DRAIN_S="1")
    before, _ = settled(system)
    for _ in range(2):
        assert stopped(system, "deaf")["receipt"]["abandoned"] is True
    until(lambda: worker_pid(system) != before, "another worker works")
    system.prompt_works("deaf")
    until(lambda: not psutil.pid_exists(before), "the worker with the tasks has ended")
    until(lambda: system.http.ask("GET", "/readyz")[0] == 200, "it is ready")

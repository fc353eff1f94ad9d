"""P9: how long a run stands still when its worker is killed."""

import time
from typing import Any

import pytest

from tests.supervision.conftest import Serve
from tests.supervision.support import Follower, attempts, kill, settled, worker_pid
from tests.system.support import full, percentile, table, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(full(900, 90))]

WITH_SPARE_S = 2.0
WITHOUT_SPARE_S = 15.0
PAUSE_S = 21.0  # at full size: no more than three replacements in a minute


@pytest.mark.parametrize("spare", full(["true", "false"], ["true"]))
def test_a_run_goes_on_soon_after_its_worker_is_killed(serve: Serve, figures: Any, spare: str):
    """The lease need not run out: whoever saw the process die knows."""
    rounds = full(20, 2)
    system = serve(HOLDFAST_SPARE=spare)
    waits: list[float] = []
    for i in range(rounds):
        if spare == "true":
            settled(system)
        follower = Follower(system, system.run("!tokens n=4000 rate=50", session=f"s{i}"))
        until(lambda f=follower: "t5 " in f.said(), "it streams")
        killed = time.monotonic()
        kill(worker_pid(system))
        until(lambda f=follower: len(attempts(f.events)) == 2, "the next attempt", WITHOUT_SPARE_S)
        waits.append(next(a for a, e in zip(follower.at, follower.events, strict=False) if e.get("attempt") == 2))
        waits[-1] -= killed
        system.stop(follower.run)
        follower.end()
        if rounds > 3:
            time.sleep(max(0.0, PAUSE_S - (time.monotonic() - killed)))
    cells = [f"{percentile(waits, p):.2f} s" for p in (0.5, 0.99)]
    rows = [["", "n", "p50", "p99"], [f"spare {spare}", str(rounds), *cells]]
    figures(f"SIGKILL of the worker to the run's next event, spare {spare}", table(rows))
    assert max(waits) < (WITH_SPARE_S if spare == "true" else WITHOUT_SPARE_S)

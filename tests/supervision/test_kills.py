"""P1, P5 and P9 under fire: kill -9 of worker, gateway or both at random moments, while runs with tools live."""

import random
import signal
import sys
import time
from collections import Counter
from typing import Any

import pytest

from tests.supervision.conftest import Serve
from tests.supervision.field import Field
from tests.supervision.support import kill, worker_pid
from tests.system.support import full, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(full(3400, 150))]

RUNS = 30
ATTEMPTS = 10
KINDS = ("worker", "gateway", "both")


def test_kills_at_random_moments_lose_nothing_and_everything_ends(serve: Serve, figures: Any):
    """What a client saw stays, no tool runs twice in silence, and every session keeps every prompt."""
    kills, seed = full(100, 4), random.SystemRandom().randrange(10**6)
    sys.stdout.write(f"seed {seed}\n")
    chance = random.Random(seed)
    # Attempts are not what is shown here: with ten of them a run outlives the kills that come in its time.
    system = serve(HOLDFAST_ATTEMPTS=str(ATTEMPTS))
    field = Field(system, chance, RUNS)
    done: Counter[str] = Counter()
    for _ in range(kills):
        field.fill()
        time.sleep(chance.uniform(0.1, 2.0))
        kind = chance.choice(KINDS)
        done[kind] += 1
        worker, server = worker_pid(system), system.server
        if kind != "gateway":
            kill(worker)
        if kind != "worker":
            server.signal(signal.SIGKILL)
            server.wait(10)
            system.start()
        until(lambda: system.http.ask("GET", "/readyz")[0] == 200, "it takes runs again", 40)
    said = field.judge(ATTEMPTS, seed)
    figures(
        f"{kills} kills under {RUNS} live runs, seed {seed}",
        [f"{dict(done)}", *said],
    )

"""P4 and document 4: a new prompt never waits for an old one, whatever the old one is doing."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.supervision.conftest import Serve
from tests.supervision.support import STOP_BLOCKED_S, STOP_S, Follower, began, settled
from tests.system.support import System, full, table, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(full(400, 120))]


Before = Callable[[str], int]  # how often a tool had begun, or with "" how many requests the model had


def _asks_model(system: System, a: Follower, before: Before) -> None:
    until(lambda: system.model.stats()["requests"] > before(""), "the model has the request")


def _streams(system: System, a: Follower, before: Before) -> None:
    until(lambda: "t5 " in a.said(), "text is shown")


def _in(tool: str, pause_s: float = 0.0) -> Callable[[System, Follower, Before], None]:
    def reach(system: System, a: Follower, before: Before) -> None:
        began(system, tool, before(tool) + 1)
        time.sleep(pause_s)

    return reach


# A's phase: its script, how to see that it is there, B's bound, whether A costs the worker
PHASES: dict[str, tuple[str, Callable[[System, Follower, Before], None], float, bool]] = {
    "before headers": ("!slow_headers for=60", _asks_model, STOP_S, False),
    "before the first token": ("!first_token delay=60", _asks_model, STOP_S, False),
    "mid-stream": ("!tokens n=100000 rate=50", _streams, STOP_S, False),
    "async tool": ('!tool nap {"seconds": 60}', _in("nap"), STOP_S, False),
    "deaf tool": ('!tool deaf {"seconds": 8}', _in("deaf"), STOP_S, False),
    "sync tool": ('!tool block {"seconds": 8}', _in("block"), STOP_S, False),
    "blocked loop": ('!tool hog {"seconds": 60}', _in("hog", 0.6), STOP_BLOCKED_S, True),
    "loop blocks now": ('!tool hog {"seconds": 60}', _in("hog"), STOP_BLOCKED_S, True),
    "loop blocks late": ('!tool late_hog {"seconds": 60}', _in("late_hog"), STOP_BLOCKED_S, True),
    "held interpreter": ("!tool regex {}", _in("regex", 0.6), STOP_BLOCKED_S, True),
}


def test_the_first_token_of_b_comes_soon_in_each_phase_of_a(serve: Serve, figures: Any):
    """Cooperative or stubborn, the old run is over before the new one begins, and the new one begins in time."""
    system = serve()
    rows = [["A is in", "n", "B's first token, worst", "A's end, worst", "bound"]]
    rounds = full(5, 1)
    for name in full(list(PHASES), ["mid-stream", "async tool", "sync tool", "loop blocks late"]):
        script, reach, bound_s, costs_worker = PHASES[name]
        times = 1 if costs_worker else rounds
        firsts, ends = [], []
        for i in range(times):
            settled(system)
            if costs_worker and kills_left(system) == 0:
                system = serve()
                settled(system)
            first, end = _supersede(system, name, script, reach, f"{name.replace(' ', '-')}-{i}")
            firsts.append(first)
            ends.append(end)
        rows.append([name, str(times), f"{max(firsts):.2f} s", f"{max(ends):.2f} s", f"{bound_s:.1f} s"])
        assert max(firsts) < bound_s, "\n".join(table(rows))
    figures("supersede: B's first token after its request, by A's phase", table(rows))


def kills_left(system: System) -> int:
    """More than three replacements in a minute make the next one wait, on purpose."""
    log = system.server.log()
    return 3 - log.count("worker_killed") - log.count("worker_tired")


def _supersede(system: System, name: str, script: str, reach: Any, session: str) -> tuple[float, float]:
    requests = system.model.stats()["requests"]
    tools = Counter(e["tool"] for e in system.journal() if e["what"] == "began")
    a = Follower(system, system.run(script, session=session))
    reach(system, a, lambda tool: tools[tool] if tool else requests)
    asked = time.monotonic()
    b = Follower(system, system.run("!tokens n=3 rate=100", session=session))
    first = b.until("text.delta") - asked
    ended, events = a.end(10), b.end(10)
    assert (ended[-1]["type"], ended[-1]["reason"]) == ("run.cancelled", "superseded"), name
    assert events[-1]["output"] == "t1 t2 t3 "
    started = next(e["ts"] for e in events if e["type"] == "run.started")
    assert ended[-1]["ts"] <= started, "A is over before B begins"
    return first, a.at[-1] - asked

"""P4: never two active runs of a session, and everything ends, whatever order people press things in."""

import random
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest

from tests.supervision.conftest import Serve
from tests.system.reading import stored
from tests.system.support import System, full, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(full(3000, 120))]

SESSIONS = 20
HANDS = 16
SCRIPTS = (
    "!say short",
    "!tokens n=30 rate=100",
    "!tokens n=400 rate=100",
    '!tool nap {"seconds": 0.3}\n!say rested',
    '!tool block {"seconds": 0.2}\n!say unblocked',
    "!first_token delay=0.5\n!say late",
    '!tokens n=3 rate=50\n!tool nap {"seconds": 5}\n!say long',
)
POLICIES = ("supersede", "supersede", "enqueue", "reject", "steer")


class Storm:
    """Many hands, each with its own chance from one seed."""

    def __init__(self, system: System, steps: int, seed: int) -> None:
        self.system = system
        self.done: Counter[str] = Counter()
        self.runs: list[tuple[str, str]] = []
        self.problems: list[str] = []
        self.slowest = 0.0
        self._left = steps
        self._seed = seed
        self._lock = threading.Lock()
        self.hands = [threading.Thread(target=self._work, args=(i,), daemon=True) for i in range(HANDS)]

    def go(self, limit_s: float) -> None:
        for hand in self.hands:
            hand.start()
        end = time.monotonic() + limit_s
        for hand in self.hands:
            hand.join(max(0.1, end - time.monotonic()))
        assert not any(hand.is_alive() for hand in self.hands), f"deadlock: {self.done}, {self.problems[:5]}"
        assert not self.problems, self.problems[:10]

    def _work(self, number: int) -> None:
        chance = random.Random(self._seed * 1000 + number)
        while True:
            with self._lock:
                if self._left <= 0 or self.problems:
                    return
                self._left -= 1
            try:
                self._step(chance)
            except Exception as error:  # noqa: BLE001 - told by the test
                self.problems.append(repr(error))

    def _step(self, chance: random.Random) -> None:
        session = f"s{chance.randrange(SESSIONS)}"
        dice = chance.random()
        if dice < 0.70:
            policy = chance.choice(POLICIES)
            body = {"input": chance.choice(SCRIPTS), "session": session, "on_busy": policy}
            status, record = self._ask(f"prompt {policy}", "POST", "/api/runs", body, {200, 201, 202, 409})
            if status in (200, 201, 202):
                self.runs.append((session, record["id"]))
        elif dice < 0.85 and self.runs:
            _, run = chance.choice(self.runs[-60:])
            self._ask("stop", "POST", f"/api/runs/{run}/stop", None, {202, 404})
        elif dice < 0.95:
            self._ask("stop session", "POST", f"/api/sessions/{session}/stop", None, {200, 202, 404, 409})
        else:
            self._ask("delete", "DELETE", f"/api/sessions/{session}", None, {200, 202, 204, 404})
        time.sleep(chance.random() * 0.02)

    def _ask(self, what: str, method: str, path: str, body: Any, allowed: set[int]) -> tuple[int, Any]:
        began = time.monotonic()
        status, answer = self.system.http.ask(method, path, body)
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.done[f"{what} {status}"] += 1
        if status not in allowed:
            self.problems.append(f"{what}: {status} {answer}")
        return status, answer


class Sampler(threading.Thread):
    """Looks at the runs of each session while the storm goes on."""

    def __init__(self, system: System) -> None:
        super().__init__(daemon=True)
        self.looks = 0
        self.doubles: list[Any] = []
        self._system = system
        self._ending = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ending.wait(0.05):
            with suppress(OSError):
                active = Counter(
                    run["session"]
                    for state in ("running", "waiting")
                    for run in self._system.http.get(f"/api/runs?state={state}&limit=200")["runs"]
                )
                self.doubles += [(s, n) for s, n in active.items() if n > 1]
                for session in self._system.http.get("/api/sessions?limit=100")["sessions"]:
                    assert not isinstance(session.get("active"), list), session
                self.looks += 1

    def end(self) -> None:
        self._ending.set()
        self.join(20)
        # Two pages are two looks: a run that ended between them is no double, a session seen twice in one is.
        assert not self.doubles, f"two active runs at once: {self.doubles[:5]}"
        assert self.looks > 3


def test_random_interleavings_never_make_two_active_runs_of_a_session_and_everything_ends(serve: Serve, figures: Any):
    """Prompts of all policies, stops and deletes by many hands on 20 sessions; the logs themselves are the judge."""
    steps, seed = full(10_000, 500), random.SystemRandom().randrange(10**6)
    sys.stdout.write(f"seed {seed}\n")
    system = serve()
    sampler = Sampler(system)
    storm = Storm(system, steps, seed)
    began = time.monotonic()
    storm.go(full(2400, 60))
    for i in range(SESSIONS):
        system.http.ask("POST", f"/api/sessions/s{i}/stop")

    def open_runs() -> list[str]:
        states = ("queued", "running", "waiting")
        return [r["id"] for s in states for r in system.http.get(f"/api/runs?state={s}&limit=200")["runs"]]

    until(lambda: not open_runs(), f"seed {seed}: everything ends", 40, every_s=0.2)
    sampler.end()
    took = time.monotonic() - began
    checked = _never_two(system, storm.runs, seed)
    figures(
        f"{steps} random steps on {SESSIONS} sessions, seed {seed}",
        [
            f"{took:.0f} s, {len(storm.runs)} runs, {checked} that began, {sampler.looks} samples",
            f"slowest answer {storm.slowest:.2f} s",
            ", ".join(f"{k}: {v}" for k, v in sorted(storm.done.items())),
        ],
    )


def _never_two(system: System, runs: list[tuple[str, str]], seed: int) -> int:
    """By each log: from run.started to the terminal event, no other run of its session is between these."""
    import msgspec

    spans: dict[str, list[tuple[str, str, str]]] = {}
    count = 0
    for session, run in dict.fromkeys(runs):
        events = [msgspec.json.decode(row.data) for row in stored(system, run)]
        if not events:
            continue  # forgotten with its session
        assert [e["seq"] for e in events] == list(range(1, len(events) + 1)), run
        assert events[-1]["type"] in ("run.completed", "run.failed", "run.cancelled"), (seed, run, events[-1])
        assert sum(e["type"] in ("run.completed", "run.failed", "run.cancelled") for e in events) == 1
        started = [e["ts"] for e in events if e["type"] == "run.started"]
        if started:
            spans.setdefault(session, []).append((started[0], events[-1]["ts"], run))
            count += 1
    for session, found in spans.items():
        found.sort()
        for (_, end, a), (start, _, b) in pairwise(found):
            assert end <= start, f"seed {seed}: {a} and {b} of {session} were active at once: {end} > {start}"
    return count

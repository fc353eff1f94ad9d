"""Kill -9 and SIGSTOP of workers, servers and Redis at random moments, and deploys that nobody notices."""

import random
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import psutil
import pytest

from tests.cluster.deployment import LEASE_S, Cluster, thaw
from tests.supervision.field import Field
from tests.supervision.support import Follower, attempts, kill
from tests.system.support import FULL, Http, full, percentile, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(full(3000, 180))]

ATTEMPTS = 10
RUNS = full(50, 15)
RECOVERY_S = LEASE_S + 15.0  # the promise is lease + 1 s; this machine pauses
KINDS = (
    "kill a worker process",
    "kill a worker machine",
    "pause a worker process",
    "pause a worker machine",
    "kill a server",
    "pause a server",
    "kill redis",
    "pause redis",
)


class Faults:
    """One fault after the other, by chance; what is paused goes on by itself, what is killed is started again."""

    def __init__(self, cluster: Cluster, chance: random.Random) -> None:
        self.done: Counter[str] = Counter()
        self.ended = 0  # by themselves: who starts while Redis is away gives up, and is started again
        self._cluster = cluster
        self._chance = chance
        self._timers: list[threading.Timer] = []

    def one(self) -> None:
        """To somebody who is there."""
        self.ended += self._cluster.tend()
        kind = self._chance.choice(KINDS)
        machines = self._cluster.servers if "server" in kind else self._cluster.workers_
        machine = self._chance.choice(machines)
        if "redis" in kind:
            self._redis(kill="kill" in kind)
        elif "process" in kind and not machine.workers():
            return  # it is being replaced
        elif kind == "kill a worker process":
            kill(machine.workers()[0].pid)
        elif "kill" in kind:
            machine.kill()
            machine.start()
        else:
            self._pause(machine.workers()[:1] if "process" in kind else machine.freeze())
        self.done[kind] += 1

    def _redis(self, *, kill: bool) -> None:
        redis = self._cluster.redis
        if kill:
            redis.signal(signal.SIGCONT)
            redis.kill()
            time.sleep(self._chance.uniform(0.0, 1.0))
            redis.start()
        else:
            redis.signal(signal.SIGSTOP)
            time.sleep(self._chance.uniform(0.2, full(8, 2)))
            redis.signal(signal.SIGCONT)

    def _pause(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            with suppress(psutil.Error):
                process.suspend()
        timer = threading.Timer(self._chance.uniform(0.2, 1.8 * LEASE_S), thaw, [processes])
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def over(self) -> None:
        """Wait until nobody is paused, and everybody is there again."""
        for timer in self._timers:
            timer.join(2 * LEASE_S)
        until(self._all_started, "everybody is there", 60, 0.1)
        self._cluster.until_up()

    def _all_started(self) -> bool:
        self.ended += self._cluster.tend()
        return all(machine.started() for machine in self._cluster.machines if machine.process.popen.poll() is None)


def test_faults_of_every_part_at_random_moments_lose_nothing_and_everything_ends(cluster: Cluster, figures: Any):
    """Whoever dies or sleeps, and whenever: no reader loses what it saw, no tool runs twice in silence."""
    times, seed = full(200, 4), random.SystemRandom().randrange(10**6)
    sys.stdout.write(f"seed {seed}\n")
    chance = random.Random(seed)
    field = Field(cluster, chance, RUNS, "f")
    faults = Faults(cluster, chance)
    while sum(faults.done.values()) < times:
        field.fill()
        time.sleep(chance.uniform(0.1, 1.5))
        faults.one()
    faults.over()
    field.fill()
    last = chance.choice(cluster.workers_)
    live = [follower for follower in field.followers if not follower.closed]
    until(lambda: all(follower.events for follower in live), "all have begun")
    time.sleep(0.2)
    last.kill()
    killed = time.monotonic()
    silent = _recovered(live, killed, seed)
    last.start()
    said = field.judge(ATTEMPTS, seed)
    cluster.until_up()
    assert not cluster.problems, f"seed {seed}: {cluster.problems[:5]}"
    figures(
        f"{times} faults under {RUNS} live runs, seed {seed}",
        [
            ", ".join(f"{kind}: {n}" for kind, n in sorted(faults.done.items())),
            *said,
            f"after the last kill the {len(silent)} live runs went on or ended within {max(silent, default=0):.2f} s "
            f"(p50 {percentile(silent or [0.0], 0.5):.2f} s; lease {LEASE_S:.0f} s; load {psutil.getloadavg()[0]:.1f})",
            f"clients were told {cluster.told_to_retry} times to retry; {faults.ended} starts gave up without Redis",
        ],
    )


def _recovered(live: list[Follower], killed: float, seed: int) -> list[float]:
    """How long each run that lived at the last fault was silent after it."""

    def quiet() -> list[str]:
        return [f.run for f in live if f.after(killed) is None and not f.closed]

    until(lambda: not quiet(), f"seed {seed}: every run goes on or has ended", RECOVERY_S)
    return [f.after(killed) or 0.0 for f in live]


def test_every_process_is_replaced_in_turn_and_no_client_notices(cluster: Cluster, figures: Any):
    """A rolling deploy: SIGTERM, wait for the end, start the new one, the next."""
    seed = random.SystemRandom().randrange(10**6)
    sys.stdout.write(f"seed {seed}\n")
    field = Field(cluster, random.Random(seed), full(30, 12), "d")
    asking = _Asking(cluster, field)
    cluster.problems, cluster.told_to_retry, cluster.cut = [], 0, 0
    took = []
    try:
        in_ci = [cluster.workers_[0], cluster.servers[0]]
        for machine in [*cluster.workers_, *cluster.servers] * 3 if FULL else in_ci:
            asking.look()
            time.sleep(0.5)
            began = time.monotonic()
            machine.process.signal(signal.SIGTERM)
            assert machine.process.wait(30) == 0, machine.process.log()[-2000:]
            took.append(time.monotonic() - began)
            machine.start()
            cluster.until_up()
    finally:
        asking.end()
    said = field.judge(ATTEMPTS, seed)
    lost = [f.run for f in field.followers if f.events[-1]["type"] != "run.completed"]
    assert not lost
    assert not cluster.problems, cluster.problems[:5]
    assert cluster.cut == 0, f"{cluster.cut} requests were taken and not answered"
    figures(
        f"every process replaced in turn under {full(30, 12)} runs",
        [
            *said,
            f"SIGTERM to exit: {max(took):.1f} s at most; {cluster.told_to_retry} times told to retry, "
            f"{cluster.refused} times nobody listened",
        ],
    )


class _Asking(threading.Thread):
    """Keeps prompting while machines come and go."""

    def __init__(self, cluster: Cluster, field: Field) -> None:
        super().__init__(daemon=True)
        self._field = field
        self._ending = threading.Event()
        self._problem: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            while not self._ending.wait(0.05):
                self._field.fill()
        except BaseException as problem:  # noqa: BLE001 - raised again by the test
            self._problem = problem

    def look(self) -> None:
        if self._problem is not None:
            raise self._problem

    def end(self) -> None:
        self._ending.set()
        self.join(60)
        self.look()


def test_redis_pauses_and_dies_in_the_middle_of_streams(cluster: Cluster, figures: Any):
    """Longer than a lease, and nobody takes a run from a worker that lives; nothing twice, nothing lost."""
    runs = [cluster.run(f"!tokens n={full(1200, 250)} rate=50", session=f"p{i}") for i in range(6)]
    followers = [Follower(cluster, run) for run in runs]
    until(lambda: all("t10 " in f.said() for f in followers), "all stream")
    pause_s = full(8, 5)
    assert pause_s > LEASE_S
    cluster.redis.signal(signal.SIGSTOP)
    time.sleep(pause_s)
    cluster.redis.signal(signal.SIGCONT)
    woken = time.monotonic()
    until(lambda: all(f.after(woken) for f in followers), "all stream again")
    cluster.redis.kill()
    time.sleep(0.5)
    cluster.redis.start()
    back = time.monotonic()
    for follower in followers:
        events = follower.end(60)
        assert events[-1]["type"] == "run.completed", events[-1]
        assert attempts(events) == [1], "nobody may take a run from a worker that lives"
    again = [f.after(back) or 0.0 for f in followers]
    figures(f"redis paused {pause_s} s, then killed", [f"readers go on {max(again) * 1000:.0f} ms after it is back"])


def test_a_worker_that_is_replaced_while_redis_is_away_waits_for_it(cluster: Cluster):
    """A store that comes back finds workers, not supervisors that have counted too many replacements."""
    cluster.redis.kill()
    killed = [worker.workers()[0] for worker in cluster.workers_]
    for process in killed:
        process.kill()
    for worker in cluster.workers_:
        until(lambda w=worker: "part=open" in w.process.log(), "the new one has tried", 30)
    cluster.redis.start()
    cluster.until_up()
    done = cluster.end(cluster.run("!say here", session="replaced"))
    assert (done["state"], done["output"]) == ("completed", "here")
    for worker, old in zip(cluster.workers_, killed, strict=True):
        lost = [line for line in worker.process.log().splitlines() if line.startswith("worker_lost")]
        assert f"pid={old.pid}" in lost[-1], "the new one has not ended"


def test_redis_at_its_memory_limit_refuses_what_is_new_and_loses_nothing(cluster: Cluster):
    """A full memory keeps nobody from ending what runs: by a stop, or with store_error and all that was said."""
    server: Http = cluster.servers[0].http
    in_tool = Follower(cluster, cluster.run('!tool nap {"seconds": 60}', session="full-0"))
    behind = Follower(cluster, cluster.run("!say later", session="full-0", on_busy="enqueue"))
    writes = Follower(cluster, cluster.run("!tokens n=4000 rate=40", session="full-1"))
    in_tool.until("tool.called")
    until(lambda: "t5 " in writes.said(), "it streams")
    with cluster.redis.client() as client:
        client.config_set("maxmemory", 1_000_000)
        try:
            status, refused = server.ask("POST", "/api/runs", {"input": "!say no", "session": "full-new"})
            assert (status, refused["code"]) == (503, "store_unavailable"), refused
            assert "raise maxmemory" in refused["remedy"], refused
            assert server.ask("GET", "/readyz")[0] == 503
            end = writes.end(20)[-1]
            assert (end["type"], end["reason"]) == ("run.failed", "store_error"), end
            assert end["error"]["retryable"]
            assert "raise maxmemory" in end["error"]["remedy"]
            assert end["partial"] == writes.said(), "what was shown is kept"
            cluster.stop(in_tool.run)
            assert in_tool.end(20)[-1]["reason"] == "stopped"
            assert cluster.record(behind.run)["state"] == "queued", "it waits, and is not lost"
        finally:
            client.config_set("maxmemory", 0)
    assert behind.end(60)[-1]["output"] == "later"
    cluster.until_up()
    assert cluster.end(cluster.run("!say again", session="full-new"))["output"] == "again"

"""What several machines cost and how soon they notice: two servers, two workers and a Redis, all on this one."""

import json
import time
from contextlib import ExitStack, closing
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from bench import cost, latency
from tests.cluster.deployment import LEASE_S, Cluster, Machine
from tests.redis_server import RedisServer
from tests.supervision.support import Follower, attempts, kill
from tests.system.support import Open, System, Watch, frames, percentile, until

RATE = 20
SECONDS = 5
AT_ONCE = 20
TOKENS = "!tokens n=100000 rate=50"


def _deploy(system: System, stack: ExitStack) -> Cluster:
    directory = Path(system.directory) / f"cluster-{time.monotonic_ns()}"
    directory.mkdir()
    redis = RedisServer(directory, "--appendonly", "yes", "--appendfsync", "everysec")
    stack.callback(redis.close)
    redis.start()
    return stack.enter_context(closing(Cluster(directory, redis)))


def times(system: System, rounds: int) -> tuple[str, list[list[str]]]:
    """First token, tail, stop and recovery."""
    rows = [["", "n", "p50", "p99", "worst"]]
    with ExitStack() as stack:
        cluster = _deploy(system, stack)
        first = [latency._native(cluster, "!tokens n=1 rate=1000") * 1000 for _ in range(10 * rounds + 5)][5:]
        rows.append(_row("first token", first))
        rows.append(_row("an event, from its worker to a reader at a server", _tail_ms(cluster)))
        rows.append(_row("stop through the other server, until the model sees it", _stops_ms(cluster, 4 * rounds)))
        for what, victim in (("process", _process), ("machine", Machine.kill)):
            taken = [_recovery_ms(cluster, i, victim) for i in range(max(2, rounds // 2))]
            rows.append(_row(f"kill -9 of a worker {what}, until the next attempt's first token", taken))
    return f"two servers, two workers, Redis with appendfsync everysec, lease {LEASE_S:.0f} s", rows


def cpu(system: System, rounds: int) -> tuple[str, list[list[str]]]:
    """CPU for each token at a model's pace, by whose it is."""
    rows = [["runs at once", "servers", "workers", "redis", "together", "deltas per token"]]
    with ExitStack() as stack:
        cluster = _deploy(system, stack)
        n = SECONDS * RATE
        for at_once in (1, AT_ONCE):
            found: list[list[float]] = []
            deltas = 0
            cost._carry(cluster, f"!tokens n={RATE} rate=1000", at_once, RATE)  # connections, caches
            for _ in range(rounds):
                before = _used(cluster)
                deltas = cost._carry(cluster, f"!tokens n={n} rate={RATE}", at_once, n)
                time.sleep(0.5)  # whatever lags behind is paid for
                after = _used(cluster)
                found.append([(b - a) / (at_once * n) * 1e6 for a, b in zip(before, after, strict=True)])
            middle = [median(each) for each in zip(*found, strict=True)]
            cells = [f"{us:.0f} us" for us in (*middle, sum(middle))]
            rows.append([str(at_once), *cells, f"{deltas / (at_once * n):.2f}"])
    return f"CPU for each token, two servers and two workers, {RATE} tokens/s a run", rows


def _used(cluster: Cluster) -> list[float]:
    """CPU seconds so far of the servers, the workers with their supervisors, and Redis."""
    with cluster.redis.client() as client:
        info: Any = client.info("cpu")
    groups = []
    for machines in (cluster.servers, cluster.workers_):
        used = [p.cpu_times() for machine in machines for p in machine.everybody()]
        groups.append(sum(t.user + t.system for t in used))
    return [*groups, info["used_cpu_user"] + info["used_cpu_sys"]]


def _row(what: str, values: list[float]) -> list[str]:
    shown = [f"{percentile(values, part):.1f} ms" for part in (0.5, 0.99, 1.0)]
    return [what, str(len(values)), *shown]


def _tail_ms(cluster: Cluster) -> list[float]:
    """By the clock of this machine, which both ends share; events carry whole milliseconds."""
    late: list[float] = []
    body = {"input": "!tokens n=150 rate=50", "agent": "diver"}
    with cluster.http.stream("/api/runs", method="POST", body=body) as response:
        for _, event, data in frames(response):
            if event == "text.delta":
                late.append(max(0.0, (time.time() - _seconds(json.loads(data)["ts"])) * 1000))
    return late


def _seconds(ts: Any) -> float:
    """Of an event's `ts`, RFC 3339."""
    return datetime.fromisoformat(ts).timestamp()


def _stops_ms(cluster: Cluster, rounds: int) -> list[float]:
    first, second = cluster.through(0), cluster.through(1)
    taken = []
    for i in range(rounds):
        run = first.run(TOKENS, session=f"stop-{i}")
        watch = Watch(first, run)
        first.until_text(run, "t2 ")
        opened = Open(cluster.model)
        time.sleep(0.02)
        asked = time.monotonic()
        second.stop(run)
        watch.end()
        taken.append((opened.end() - asked) * 1000)
    return taken


def _process(machine: Machine) -> None:
    kill(machine.workers()[0].pid)


def _recovery_ms(cluster: Cluster, number: int, victim: Any) -> float:
    run = cluster.run(TOKENS, session=f"recover-{victim.__name__}-{number}")
    follower = Follower(cluster, run)
    until(lambda: "t5 " in follower.said(), "it streams")
    machine = cluster.holder(run)
    killed = time.monotonic()
    victim(machine)

    def again() -> float | None:
        events = follower.events
        begun = next((i for i, e in enumerate(events) if e.get("attempt") == 2), len(events))
        return next((follower.at[i] for i in range(begun, len(events)) if events[i]["type"] == "text.delta"), None)

    at = until(again, "attempt 2 speaks", LEASE_S + 30.0)
    assert attempts(follower.events) == [1, 2]
    cluster.stop(run)
    follower.end()
    if victim is not _process:
        machine.start()
    cluster.until_up()
    return (at - killed) * 1000

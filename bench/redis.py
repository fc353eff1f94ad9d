"""What one Redis carries: the cost of each operation, bytes, idle processes, and a token with two of everything.

The constants of docs/scaling.md. Redis is single-threaded, so that its CPU time is what runs out first: it is read from
Redis itself (INFO cpu), and does not depend on who else uses this machine as much as a wall clock does.
"""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from msgspec.structs import replace

from bench.cost import RATE, _alone
from holdfast.aio import Owner, settle, wait_event
from holdfast.domain.runs import Policy, Reason
from holdfast.ports.store import READY_TOPIC, worker_topic
from holdfast.stores.redis.store import RedisStore
from holdfast.testing.build import CALM, new_run, text
from holdfast.testing.rig import LONG_LEASE_MS, Holder
from tests.redis_server import RedisServer
from tests.system.support import Http, Process, System, frames, free_port, until
from tests.system.test_workers import Deployment

N = 500  # calls of each kind, for one round
BATCH = 20
EVENTS = 200
SUBSCRIBERS = (0, 10, 100)
IDLE_S = 8.0
IDLE_WORKERS = (2, 20, 200)
HERD = 40
SECONDS = 5
AT_ONCE = 20
TEXT = "a token or two, "
FULL = replace(CALM, runs_active_max=1)
Table = tuple[str, list[list[str]]]


def operations(system: System, rounds: int) -> Table:
    """Redis's CPU for a call of each script, against PING on the same connections; and what the caller waits."""
    with _server(system, "redis-operations") as server:
        return asyncio.run(_operations(server, rounds))


def memory(system: System, rounds: int) -> Table:
    """What an event and a run take, by Redis's own account."""
    with _server(system, "redis-memory") as server:
        return asyncio.run(_memory(server, rounds))


def idle(system: System, rounds: int) -> Table:
    """What processes ask that have nothing to do, and what a run costs beneath many that are idle."""
    del rounds
    rows = [["processes", "calls/s", "CPU of Redis", "calls for one run", "CPU of Redis for one run", "own CPU, idle"]]
    with closing(_cluster(system, "redis-idle")) as cluster:
        for workers in (1, 3):
            while len(cluster.http.get("/api/workers")["workers"]) < workers:
                began = len(cluster.http.get("/api/workers")["workers"])
                cluster.work()
                until(lambda n=began: len(cluster.http.get("/api/workers")["workers"]) > n, "a worker more", 60)
            time.sleep(3.0)
            before, own = _info(cluster.redis), cluster.cpu_s()
            time.sleep(IDLE_S)
            after = _info(cluster.redis)
            quiet = [(after[i] - before[i]) / IDLE_S for i in range(2)]
            spent = (cluster.cpu_s() - own) / IDLE_S / (1 + workers)
            before, began_at = _info(cluster.redis), time.monotonic()
            for n in range(HERD):
                body = {"input": "!say hi", "session": f"{workers}-{n}"}
                with cluster.http.stream("/api/runs", method="POST", body=body) as response:
                    response.read()
            after, took = _info(cluster.redis), time.monotonic() - began_at
            run = [(after[i] - before[i] - quiet[i] * took) / HERD for i in range(2)]
            name = f"1 server, {workers} worker{'s' if workers > 1 else ''}"
            rows.append(
                [
                    name,
                    f"{quiet[0]:.1f}",
                    f"{quiet[1] * 100:.2f} %",
                    f"{run[0]:.0f}",
                    f"{run[1] * 1e6:.0f} us",
                    f"{spent * 100:.1f} % a process",
                ]
            )
    return (
        f"idle for {IDLE_S:.0f} s, then {HERD} runs of one word, one after the other, each with a reader",
        rows,
    )


def tokens(system: System, rounds: int) -> Table:
    """CPU for a token with two servers and two workers on one Redis, against pydantic-ai alone."""
    with closing(_cluster(system, "redis-tokens")) as cluster:
        cluster.work()
        cluster.work()
        until(lambda: len(cluster.http.get("/api/workers")["workers"]) == 2, "two workers", 60)
        other = cluster.serve_too()
        _carry(cluster, [cluster.http, other], RATE)
        n, found, calls = SECONDS * RATE, [], []
        for _ in range(rounds):
            before, was = cluster.cpu_by_part(), _info(cluster.redis)
            _carry(cluster, [cluster.http, other], n)
            time.sleep(0.5)
            after, now = cluster.cpu_by_part(), _info(cluster.redis)
            found.append({part: (after[part] - before[part]) / (AT_ONCE * n) for part in after})
            calls.append((now[0] - was[0]) / (AT_ONCE * n))
        alone = _alone(system, AT_ONCE, n) / (AT_ONCE * n)
    parts = {part: median(each[part] for each in found) for part in found[0]}
    rows = [["", "CPU for a token", "of pydantic-ai alone"]]
    rows += [
        [part, f"{s * 1e6:.0f} us", f"{s / alone:.2f}"] for part, s in [*parts.items(), ("all", sum(parts.values()))]
    ]
    rows.append(["calls of Redis for a token", f"{median(calls):.2f}", ""])
    return (
        f"{AT_ONCE} runs of {RATE} tokens/s with a reader each for {SECONDS} s, 2 servers, 2 workers, {rounds} times",
        rows,
    )


def herd(system: System, rounds: int) -> Table:
    """What a run costs beneath many workers that have nothing to do."""
    with _server(system, "redis-herd") as server:
        return asyncio.run(_herd(server, rounds))


async def _herd(server: RedisServer, rounds: int) -> Table:
    rows = [["idle workers", "calls for one run", "CPU of Redis for one run", "made to ended p50"]]
    store = await RedisStore.open(server.url)
    owner = Owner(lambda *_: None)
    try:
        for many in IDLE_WORKERS:
            ended = asyncio.Event()
            tasks = [owner.spawn(_work(store, f"{many}-{n}", ended), "worker") for n in range(many)]
            await asyncio.sleep(1.0)
            before, walls = _info(server), []
            for n in range(rounds * HERD):
                began = time.perf_counter()
                ended.clear()
                await store.create(new_run(f"{many}-{n}"))
                assert await wait_event(ended, 5.0), "nobody took the run"
                walls.append(time.perf_counter() - began)
            after = _info(server)
            calls, cpu = ((after[i] - before[i]) / len(walls) for i in range(2))
            rows.append([str(many), f"{calls:.1f}", f"{cpu * 1e6:.0f} us", f"{median(walls) * 1e3:.1f} ms"])
            for task in tasks:
                task.cancel()
            await settle(tasks, 5.0)
    finally:
        await owner.close(5.0)
        await store.close()
    return (
        f"create, claim, start, finish, of {rounds * HERD} runs one after the other; workers that only wait for wakes",
        rows,
    )


async def _work(store: RedisStore, name: str, ended: asyncio.Event) -> None:
    """As a worker does, without an agent, and without asking each second."""
    with store.subscribe(worker_topic(READY_TOPIC, name)) as wake:
        while True:
            claims = await store.claim(name, 16, LONG_LEASE_MS)
            for claim in claims:
                holder = Holder(store, claim)
                await holder.start()
                await holder.finish()
                ended.set()
            if not claims:
                await wake.wait(60.0)


async def _operations(server: RedisServer, rounds: int) -> Table:
    store = await RedisStore.open(server.url)
    try:
        costs: dict[str, list[tuple[float, float]]] = {}
        for number in range(rounds):
            for name, cost in (await _round(store, server, number)).items():
                costs.setdefault(name, []).append(cost)
    finally:
        await store.close()
    best = {name: (min(cpu for cpu, _ in found), median(wall for _, wall in found)) for name, found in costs.items()}
    base = best["PING"][0]
    rows = [["", "CPU of Redis", "ratio", "a core carries", "caller waits p50"]]
    for name, (cpu, wall) in best.items():
        each = f"{1 / cpu:,.0f} /s" if cpu > 0 else "-"
        rows.append([name, f"{cpu * 1e6:.1f} us", f"{cpu / base:.1f}", each, f"{wall * 1e3:.2f} ms"])
    return f"one call after the other, {N} of each, best of {rounds}", rows


async def _round(store: RedisStore, server: RedisServer, number: int) -> dict[str, tuple[float, float]]:
    """CPU and wall seconds of a call of each kind."""
    costs: dict[str, tuple[float, float]] = {}
    news = [new_run(f"{number}-{n}") for n in range(N)]
    holders: list[Holder] = []
    measure = _Measure(server, costs)
    await measure("PING", N, lambda _: store._link.command("PING"))
    await measure("claim, nothing ready", N, lambda _: store.claim("w", 16, LONG_LEASE_MS))
    await measure("create", N, lambda n: store.create(news[n]))

    async def claim(_: int) -> None:
        (claimed,) = await store.claim("w", 1, LONG_LEASE_MS)
        holders.append(Holder(store, claimed))

    await measure("claim", N, claim)
    await measure("append run.started", N, lambda n: holders[n].start())
    await measure("append, 1 event", N, lambda n: holders[n].say(TEXT))
    deltas = [text(0, TEXT)] * BATCH
    await measure(f"append, {BATCH} events", N, lambda n: holders[n].append(*deltas))
    page = BATCH + 3
    await measure(f"read, {page} events", N, lambda n: store.read(holders[n].key, 0))
    await measure("read, 1 event", N, lambda n: store.read(holders[n].key, page - 1))
    await measure("renew, 1 run", N, lambda n: store.renew("w", [holders[n].held], LONG_LEASE_MS))
    many = [holder.held for holder in holders[:64]]
    await measure("renew, 64 runs", N // 5, lambda _: store.renew("w", many, LONG_LEASE_MS))
    await measure("reap, nothing due, and next_due", N, lambda _: _reap(store))
    await measure("finish", N, lambda n: holders[n].finish())
    refused = [new_run(f"r-{n}", limits=FULL) for n in range(N)]
    busy = await store.create(new_run("busy"))
    await measure("create, refused at a cap", N, lambda n: store.create(refused[n]))
    again = [new_run("busy", policy=Policy.SUPERSEDE) for _ in range(N)]
    await measure("create, supersedes a queued run", N, lambda n: store.create(again[n]))
    assert busy.record is not None
    await store.request_stop(again[-1].key, Reason.STOPPED, "bench")
    await _wakes(store, server, measure)
    return costs


async def _wakes(store: RedisStore, server: RedisServer, measure: "_Measure") -> None:
    """A wake reaches everybody who listens."""
    channel = f"{store._link.address.prefix}w:{READY_TOPIC}"
    for many in SUBSCRIBERS:
        with ExitStack() as stack:
            for _ in range(many):
                listener = stack.enter_context(closing(server.client().pubsub()))
                listener.subscribe(channel)
                listener.get_message(timeout=5)
            await measure(f"wake, {many} processes listen", N, lambda _: store._link.command("PUBLISH", channel, ""))


async def _reap(store: RedisStore) -> None:
    await store.reap(100, 2000)
    await store.next_due_ms()


class _Measure:
    """Calls in turn, and keeps what one cost."""

    def __init__(self, server: RedisServer, costs: dict[str, tuple[float, float]]) -> None:
        self._server = server
        self._costs = costs

    async def __call__(self, name: str, n: int, call: Callable[[int], Awaitable[Any]]) -> None:
        before, walls = _info(self._server)[1], []
        for i in range(n):
            began = time.perf_counter()
            await call(i)
            walls.append(time.perf_counter() - began)
        self._costs[name] = (_info(self._server)[1] - before) / n, median(walls)


async def _memory(server: RedisServer, rounds: int) -> Table:
    """Bytes by the difference that each step makes."""
    del rounds
    store = await RedisStore.open(server.url)
    try:
        news = [new_run(f"{n}", text="x" * 200) for n in range(N)]
        used = [_used(server)]
        for new in news:
            await store.create(new)
        used.append(_used(server))
        holders = [Holder(store, c) for _ in range(N) for c in await store.claim("w", 1, LONG_LEASE_MS)]
        for holder in holders:
            await holder.start()
        used.append(_used(server))
        for holder in holders:
            for _ in range(EVENTS // BATCH):
                await holder.append(*[text(0, TEXT)] * BATCH)
        used.append(_used(server))
        for holder in holders:
            await holder.finish()
        used.append(_used(server))
    finally:
        await store.close()
    made, began, events, ended = (int((b - a) / N) for a, b in pairwise(used))
    event = len(holders[0].encode(text(0, TEXT))[0])
    rows = [
        ["", "bytes"],
        ["a queued run with 200 bytes of input", str(made)],
        ["claimed and begun: more", str(began)],
        [f"an event of {event} bytes", str(events // EVENTS)],
        ["ended: more, with its entry in the history", str(ended)],
    ]
    return f"memory of {N} runs, by used_memory", rows


class Cluster(Deployment):
    """Servers and workers on one Redis; the processes are those of the tests."""

    def serve_too(self) -> Http:
        """A second server."""
        http = Http(free_port())
        server = Process("serve-too", self.command(http.port), self.directory, self.env)
        self.processes.append(server)
        until(lambda: server.answers(http, "/readyz"), "the second server is ready", 60)
        return http

    def close(self) -> None:
        """The processes first, then their Redis."""
        super().close()
        self.redis.close()

    def cpu_by_part(self) -> dict[str, float]:
        """CPU seconds of the servers, the workers with their supervisors, and Redis."""
        parts = {"servers": 0.0, "workers": 0.0}
        for process in self.processes[1:]:  # the first is the model
            parts["servers" if process.name.startswith("serve") else "workers"] += _cpu_of(process.pid)
        return {**parts, "Redis": _info(self.redis)[1]}

    def cpu_s(self) -> float:
        """Of all but Redis."""
        return sum(_cpu_of(process.pid) for process in self.processes[1:])


def _cluster(system: System, name: str) -> Cluster:
    directory = _directory(system, name)
    server = RedisServer(directory)
    server.start()
    return Cluster(directory, server)


def _server(system: System, name: str) -> "closing[RedisServer]":
    server = RedisServer(_directory(system, name), "--appendonly", "yes")
    server.start()
    return closing(server)


def _directory(system: System, name: str) -> Path:
    directory = Path(system.directory) / name
    directory.mkdir(exist_ok=True)
    return directory


def _carry(cluster: Cluster, servers: list[Http], n: int) -> None:
    """Runs through both servers; what a reader was sent is what the other server has in the log."""
    wanted = "".join(f"t{i} " for i in range(1, n + 1))
    found: list[tuple[int, list[dict[str, Any]]]] = []

    def follow(number: int) -> None:
        http = servers[number % 2]
        with http.stream("/api/runs", method="POST", body={"input": f"!tokens n={n} rate={RATE}"}, limit_s=120) as got:
            found.append((number, [json.loads(data) for _, _, data in frames(got)]))

    readers = [threading.Thread(target=follow, args=(number,), daemon=True) for number in range(AT_ONCE)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(180)
    assert len(found) == AT_ONCE, f"{AT_ONCE - len(found)} runs did not end"
    for number, events in found:
        assert events[-1].get("output") == wanted, f"delivered: {events[-1]}"
        path = f"/api/runs/{events[0]['run']}/events"
        with servers[(number + 1) % 2].stream(path) as response:
            assert [json.loads(data) for _, _, data in frames(response)] == events, "the log is what came"


def _cpu_of(pid: int) -> float:
    root = psutil.Process(pid)
    times = [process.cpu_times() for process in [root, *root.children(recursive=True)]]
    return sum(t.user + t.system for t in times)


def _info(server: RedisServer) -> tuple[float, float]:
    """Calls that processes made, and CPU seconds."""
    with server.client() as client:
        found: dict[str, Any] = client.info("everything")  # type: ignore[assignment]
    calls = sum(int(found.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("evalsha", "eval"))
    return float(calls), float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


def _used(server: RedisServer) -> int:
    with server.client() as client:
        found: dict[str, Any] = client.info("memory")  # type: ignore[assignment]
    return int(found["used_memory"])

"""What `holdfast worker` answers over HTTP, by real processes on a Redis of their own: up, ready, started, metrics."""

import asyncio
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from holdfast.domain.ids import RunKey
from holdfast.stores.redis import RedisStore
from holdfast.telemetry.table import BY_NAME
from holdfast.testing.build import new_run
from tests.redis_server import RedisServer
from tests.supervision.support import is_child
from tests.system.support import START_S, Http, Process, free_port, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
KEY = "a-key-of-the-metrics"
BOUND_S = 3.0  # what is promised is 1; the machine may be busy
AGENTS = """\
import asyncio
import os
import signal


async def echo(ctx):
    if ctx.input == "stop me":
        os.kill(os.getpid(), signal.SIGSTOP)
    if ctx.input == "long":
        await asyncio.sleep(2.5)
    yield "hello"
"""


class Worker:
    """Two worker processes, the supervisor that answers for them, and their Redis."""

    def __init__(self, directory: Path, redis: RedisServer) -> None:
        (directory / "app.py").write_text(AGENTS)
        self.redis = redis
        self.http = Http(free_port())
        command = ["worker", "app:echo", "--store", redis.url, "--processes", "2", "--health-port"]
        env = {"HOLDFAST_SPARE": "false", "HOLDFAST_RENEW_S": "0.5", "HOLDFAST_LEASE_S": "2"}
        self.process = Process("worker", [*command, str(self.http.port)], directory, env)

    def ready(self) -> tuple[int, Any]:
        began = time.monotonic()
        found = self.http.ask("GET", "/readyz", limit_s=10)
        assert time.monotonic() - began < BOUND_S
        return found

    def until_ready(self) -> dict[str, Any]:
        return until(lambda: (found := self.ready())[0] == 200 and found[1], "the worker takes runs", START_S, 0.05)

    def metrics(self) -> str:
        return self.http.ask("GET", "/metrics", limit_s=10)[1]

    def value(self, series: str) -> float:
        found = re.search(rf"^{re.escape(series)} (\S+)$", self.metrics(), re.MULTILINE)
        return float(found[1]) if found else -1.0

    def children(self) -> list[psutil.Process]:
        return [p for p in psutil.Process(self.process.pid).children() if is_child(p)]

    def run(self, text: str) -> RunKey:
        """A run, made as a server elsewhere would."""

        async def create() -> RunKey:
            store = await RedisStore.open(self.redis.url)
            try:
                made = new_run(f"s-{text}", text=text)
                await store.create(made)
                return made.key
            finally:
                await store.close()

        return asyncio.run(create())

    def state(self, key: RunKey) -> str:
        async def get() -> str:
            store = await RedisStore.open(self.redis.url)
            try:
                return (await store.get(key)).state
            finally:
                await store.close()

        return asyncio.run(get())


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """Started once; the last test ends it."""
    directory = tmp_path_factory.mktemp("probes")
    with ExitStack() as stack:
        redis = RedisServer(directory)
        stack.callback(redis.close)
        redis.start()
        made = Worker(directory, redis)
        stack.callback(made.process.end)
        until(lambda: made.process.answers(made.http, "/livez"), "the worker has started", START_S)
        made.until_ready()
        yield made


def test_it_says_how_it_started_and_that_each_of_its_processes_takes_runs(worker: Worker) -> None:
    """F74: a worker that nobody can ask is found missing by its runs only."""
    found = worker.until_ready()
    assert set(found["parts"]) == {"store", "worker"}
    each = found["parts"]["worker"]["workers"]
    assert len(each) == 2
    assert all(facts["ok"] and facts["accepting"] and facts["quarantined"] == 0 for facts in each.values())
    started = worker.http.get("/startupz")
    phases = ["settings", "store", "models", "tools", "telemetry", "recovery", "ready"]
    assert (started["started"], [phase["phase"] for phase in started["phases"]]) == (True, phases)
    assert worker.http.ask("GET", "/api/runs")[0] == 404, "nothing but probes"
    assert worker.http.ask("POST", "/readyz")[0] == 405
    assert worker.http.ask("GET", "/metrics", headers={"Host": "evil.example"})[0] == 403


def test_its_metrics_are_those_of_the_gateways_and_count_what_its_processes_did(worker: Worker) -> None:
    """The dashboard and the rules know one set of names; what is the deployment's is the gateways' to say."""
    before = worker.value("holdfast_runs_started_total")
    keys = [worker.run(f"run {n}") for n in range(4)]
    until(lambda: all(worker.state(key) == "completed" for key in keys), "they end")
    until(lambda: worker.value("holdfast_runs_started_total") == before + 4, "and are counted")
    text = worker.metrics()
    names = set(re.findall(r"^(holdfast_\w+?)(?:_bucket|_sum|_count)?(?:\{| )", text, re.MULTILINE))
    assert {name for name in names if name not in BY_NAME} == set()
    assert worker.value('holdfast_worker_fact{fact="concurrency"}') == 128, "of both"
    assert worker.value("holdfast_ready") == worker.value('holdfast_scrape_ok{part="workers"}') == 1
    assert "process_resident_memory_bytes" in text
    assert not names & {"holdfast_runs", "holdfast_queue_ready", "holdfast_readers"}


def test_it_answers_while_a_process_of_it_is_stopped_and_says_so_until_another_has_its_place(worker: Worker) -> None:
    """The supervisor answers, not the worker: SIGSTOP in an agent holds up neither probe nor scrape."""
    killed = worker.value('holdfast_worker_replacements_total{why="killed"}')
    worker.run("stop me")
    until(lambda: worker.ready()[0] == 503, "it is seen", 20, 0.05)
    assert worker.http.ask("GET", "/livez", limit_s=10) == (200, {"status": "up"})
    detail = until(lambda: (found := worker.ready())[0] == 503 and found[1]["detail"], "and said", 5)
    assert detail.startswith("worker: ")
    assert "last reported" in detail or "replaced" in detail or "not reported yet" in detail
    until(lambda: worker.value('holdfast_worker_replacements_total{why="killed"}') > killed, "counted", 30, 0.2)
    for child in worker.children():  # the run is not taken up again: an agent without checkpoints is begun once
        assert child.status() != psutil.STATUS_STOPPED
    worker.until_ready()


def test_a_store_that_is_away_is_named_and_costs_no_probe_its_bound(worker: Worker) -> None:
    """Each part has 0.6 s; /livez depends on none of them; what comes back needs no restart."""
    worker.redis.signal(signal.SIGSTOP)
    try:
        status, said = worker.ready()
        assert status == 503
        assert said["parts"]["store"] == {"ok": False, "why": "store did not answer within 0.6 s"}
        assert worker.http.ask("GET", "/livez", limit_s=1)[0] == 200
        assert worker.value('holdfast_scrape_ok{part="store"}') == 0
        assert worker.value("holdfast_runs_started_total") >= 4, "what was counted stays"
    finally:
        worker.redis.signal(signal.SIGCONT)
    worker.until_ready()


def test_it_is_not_ready_first_when_it_drains(worker: Worker) -> None:
    """F71: whoever looks sees it while the last run goes on; then it ends with 0."""
    key = worker.run("long")
    until(lambda: worker.state(key) == "running", "it is worked on")
    worker.process.signal(signal.SIGTERM)
    status, said = until(lambda: (found := worker.ready())[0] == 503 and found, "not ready", 5)
    assert (status, said["parts"]["server"]) == (503, {"ok": False, "why": "draining"})
    assert worker.state(key) == "running"
    assert worker.process.wait(30) == 0
    assert worker.state(key) == "completed"


@pytest.mark.parametrize("keyed", [True, False])
def test_elsewhere_than_on_loopback_strangers_are_told_whether_and_not_why(
    keyed: bool, worker: Worker, tmp_path: Path
) -> None:
    """The rules of docs/access.md: /metrics wants a key; without any, no other address is listened on."""
    (tmp_path / "app.py").write_text(AGENTS)
    http = Http(free_port())
    command = ["worker", "app:echo", "--store", worker.redis.url, "--health-port", str(http.port)]
    keys = {"HOLDFAST_API_KEYS": f"metrics:{KEY} scopes=read"} if keyed else {}
    process = Process(
        "keyed", [*command, "--health-host", "0.0.0.0", "--profile", "production"], tmp_path,
        {"HOLDFAST_SPARE": "false", **keys},
    )  # fmt: skip
    try:
        if not keyed:
            assert process.wait(START_S) == 1
            assert "without API keys health is told on loopback only" in process.log()
            return
        until(lambda: process.answers(http, "/readyz"), "it is ready", START_S, 0.05)
        assert http.get("/readyz") == {"ready": True}
        assert http.get("/startupz") == {"started": True}
        assert http.ask("GET", "/metrics")[0] == 401
        known = {"Authorization": f"Bearer {KEY}"}
        assert "holdfast_workers 1.0" in http.ask("GET", "/metrics", headers=known)[1]
        assert http.ask("GET", "/readyz", headers=known)[1]["parts"]["worker"]["ok"]
        child = next(p for p in psutil.Process(process.pid).children() if is_child(p))
        assert KEY not in str(child.environ()), "user code sees no key"
    finally:
        process.end()

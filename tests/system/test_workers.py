"""`serve --no-worker` and `holdfast worker` on Redis: servers without agent code, workers that come and go."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.redis_server import RedisServer
from tests.system.support import Process, System, Watch, full, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

LEASE_S = 4.0
ENV = {
    "HOLDFAST_SPARE": "false",
    "HOLDFAST_LEASE_S": str(LEASE_S),
    "HOLDFAST_RENEW_S": "1",
    "HOLDFAST_QUEUE_TIMEOUT_S": "60",
    "HOLDFAST_DRAIN_S": "1",
}


class Deployment(System):
    """A server that runs nothing, on a Redis of its own; workers are started by the tests."""

    def __init__(self, directory: Path, redis: RedisServer) -> None:
        self.redis = redis
        super().__init__(directory, env=ENV)

    def command(self, port: int) -> list[str]:
        return ["serve", "--no-worker", "--port", str(port), "--store", self.redis.url]

    def start(self) -> Process:
        """It answers at once, and is ready when a worker reports."""
        server = Process("serve", self.command(self.http.port), self.directory, self.env)
        self.processes.append(server)
        self.server = server
        until(lambda: server.answers(self.http, "/livez"), "serve answers", 40)
        return server

    def work(self, *more: str) -> Process:
        """Start `holdfast worker`."""
        model = ["--model", "rehearsal", "--model-url", self.model.url]
        command = ["worker", "agents_under_test:diver", *model, "--store", self.redis.url, *more]
        worker = Process(f"worker-{len(self.processes)}", command, self.directory, self.env)
        self.processes.append(worker)
        return worker

    def until_ready(self) -> None:
        until(lambda: self.server.answers(self.http, "/readyz"), "a worker has reported", 40)


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    with ExitStack() as stack:
        redis = RedisServer(tmp_path)
        stack.callback(redis.close)
        redis.start()
        yield stack.enter_context(closing(Deployment(tmp_path, redis)))


def test_workers_come_and_go_beneath_a_server(deployment: Deployment) -> None:
    """A rolling deploy loses no run: the old worker drains and gives back, the new one goes on."""
    status, ready = deployment.http.ask("GET", "/readyz")
    assert status == 503
    assert "holdfast worker" in ready["parts"]["worker"]["why"]
    status, refused = deployment.http.ask("POST", "/api/runs", {"input": "hello"})
    assert (status, refused["code"]) == (503, "not_ready")

    old = deployment.work("--concurrency", "8")
    deployment.until_ready()
    assert [agent["name"] for agent in deployment.http.get("/api/workers")["agents"]] == ["diver"]
    done = deployment.end(deployment.run("!say hello", session="first"))
    assert (done["state"], done["output"], done["rehearsal"]) == ("completed", "hello", True)

    runs = [deployment.run("!tokens n=150 rate=50", session=f"s{n}") for n in range(3)]
    watches = [Watch(deployment, run) for run in runs]
    deployment.until_text(runs[2], "t5 ")
    processes = full(2, 1)
    new = deployment.work("--processes", str(processes))
    until(lambda: len(deployment.http.get("/api/workers")["workers"]) > processes, "new workers have reported", 40)
    old.signal(signal.SIGTERM)
    assert old.wait(30) == 0
    for watch in watches:
        events = watch.end(60)
        assert events[-1]["type"] == "run.completed", events[-1]
        assert [e["type"] for e in events].count("run.started") <= 2
    stopped = deployment.run("!tokens n=3000 rate=50", session="s0")
    deployment.until_text(stopped, "t3 ")
    deployment.stop(stopped)
    assert deployment.end(stopped)["reason"] == "stopped"
    new.signal(signal.SIGTERM)
    assert new.wait(30) == 0
    assert deployment.server.popen.poll() is None

"""Many machines on one: a redis-server, servers without workers, workers of their own, and whoever starts them again.

Clients take the servers in turns and do what they are told: what is retryable is sent again, with its Idempotency-Key,
anything else is a problem that the tests look at.
"""

from __future__ import annotations

import copy
import http.client
import shutil
import signal
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from holdfast.domain.ids import LOCAL_TENANT, RunKey
from holdfast.stores.redis.rows import uid
from tests.redis_server import RedisServer
from tests.supervision.support import is_child, kill
from tests.system.support import Http, Process, System, ended, free_port, until

ROOT = Path(__file__).resolve().parents[1]
AGENTS = ("agents_supervised:crew", "agents_under_test:diver")
START_S = 60.0
LEASE_S = 4.0
ENV = {
    "HOLDFAST_SPARE": "false",
    "HOLDFAST_LEASE_S": str(LEASE_S),
    "HOLDFAST_RENEW_S": "1",
    "HOLDFAST_QUEUE_TIMEOUT_S": "120",
    "HOLDFAST_DRAIN_S": "1",
    "HOLDFAST_ATTEMPTS": "10",  # attempts are not what is shown here
}


class InTurns(Http):
    """Requests to each of several servers in turns, as through a balancer that looks at nothing."""

    def __init__(self, ports: list[int]) -> None:
        super().__init__(ports[0])
        self.ports = ports
        self._asked = 0

    def connection(self, limit_s: float = 30.0) -> http.client.HTTPConnection:
        self._asked += 1
        return Http(self.ports[self._asked % len(self.ports)]).connection(limit_s)


class Machine:
    """A `holdfast serve --no-worker` or a `holdfast worker`, with all its processes; it can be started again."""

    def __init__(self, name: str, arguments: list[str], directory: Path, env: dict[str, str], port: int = 0) -> None:
        self.name = name
        self.http = Http(port)
        self.log = directory / f"{name}.log"
        self.up = False
        self.retired: list[Process] = []
        self._arguments = arguments
        self._directory = directory
        self._env = env
        self.start()

    def start(self) -> None:
        self.process = Process(self.name, self._arguments, self._directory, self._env)
        self.retired.append(self.process)

    @property
    def serves(self) -> bool:
        """Whether it is a server, not a worker."""
        return bool(self.http.port)

    def started(self) -> bool:
        """Whether the process of now has said that it is ready."""
        assert self.process.popen.poll() is None, f"{self.name} ended: {self.process.log()[-3000:]}"
        if self.serves:
            return self.process.answers(self.http, "/livez")
        return bool(self.workers())

    def workers(self) -> list[psutil.Process]:
        """The processes that run agents."""
        with suppress(psutil.Error):
            return [p for p in psutil.Process(self.process.pid).children() if is_child(p)]
        return []

    def everybody(self) -> list[psutil.Process]:
        """Every process, its guard too, as when the machine itself is meant."""
        with suppress(psutil.Error):
            whole = psutil.Process(self.process.pid)
            return [whole, *whole.children(recursive=True)]
        return []

    def freeze(self) -> list[psutil.Process]:
        """SIGSTOP of everybody: a machine that is paused."""
        frozen = self.everybody()
        for process in frozen:
            with suppress(psutil.Error):
                process.suspend()
        return frozen

    def kill(self) -> None:
        """SIGKILL of everybody at once: a machine that is gone."""
        dead = self.freeze()
        for process in dead:
            kill(process.pid)
        self.process.wait(10)
        until(lambda: all(map(ended, dead)), f"{self.name} is gone", 10)

    def close(self) -> None:
        for process in self.everybody():
            kill(process.pid, signal.SIGCONT)
        for process in self.retired:
            process.end()


def thaw(frozen: list[psutil.Process]) -> None:
    """SIGCONT, in the order of the SIGSTOP."""
    for process in frozen:
        with suppress(psutil.Error):
            process.resume()


class Cluster(System):
    """Two servers and two workers, unless a test wants other numbers."""

    def __init__(self, directory: Path, redis: RedisServer, servers: int = 2, workers: int = 2, **env: str) -> None:
        self.redis = redis
        self.problems: list[str] = []  # what a client was told without being told to send it again
        self.told_to_retry = 0
        self.refused = 0  # nobody listened
        self.cut = 0  # somebody did, and did not answer
        self._numbers = (servers, workers)
        self.servers: list[Machine] = []
        self.workers_: list[Machine] = []
        shutil.copy(ROOT / "supervision" / "agents_supervised.py", directory)
        super().__init__(directory, env={**ENV, **env})

    def start(self) -> Process:
        """Everybody; ready when a worker has reported and each server has seen it."""
        for _ in range(self._numbers[0]):
            self.add_server()
        for _ in range(self._numbers[1]):
            self.add_worker()
        self.http = InTurns([server.http.port for server in self.servers])
        self.until_up()
        return self.servers[0].process

    @property
    def machines(self) -> list[Machine]:
        return [*self.servers, *self.workers_]

    def add_server(self, **env: str) -> Machine:
        port = free_port()
        command = ["serve", "--no-worker", "--port", str(port), "--store", self.redis.url]
        self.servers.append(Machine(f"server-{len(self.servers)}", command, self.directory, {**self.env, **env}, port))
        return self.servers[-1]

    def add_worker(self) -> Machine:
        model = ["--model", "rehearsal", "--model-url", self.model.url]
        command = ["worker", *AGENTS, *model, "--store", self.redis.url]
        self.workers_.append(Machine(f"worker-{len(self.workers_)}", command, self.directory, self.env))
        return self.workers_[-1]

    def tend(self) -> int:
        """Start again what has ended by itself, as an orchestrator does; how many those were."""
        down = [machine for machine in self.machines if machine.process.popen.poll() is not None]
        for machine in down:
            machine.start()
        return len(down)

    def until_up(self) -> None:
        """Until every process is there, and every server takes runs."""
        for machine in self.machines:
            until(machine.started, f"{machine.name} has started", START_S, 0.02)
        for server in self.servers:
            until(lambda s=server: s.process.answers(s.http, "/readyz"), f"{server.name} is ready", START_S, 0.02)
        expected = sum(len(worker.workers()) for worker in self.workers_)
        until(lambda: self._reported() >= expected, "every worker has reported", START_S, 0.05)

    def _reported(self) -> int:
        """How many of the workers that live have reported to the store."""
        alive = {str(p.pid) for worker in self.workers_ for p in worker.workers()}
        found = self.servers[0].http.get("/api/workers")["workers"]
        return len(alive & {worker["worker"][1:].partition("-")[0] for worker in found})

    def through(self, server: int) -> Cluster:
        """The same deployment, seen by a client of one server only."""
        seen = copy.copy(self)
        seen.http = self.servers[server].http
        return seen

    def holder(self, run: str) -> Machine:
        """The machine of the worker that has a run."""

        def found() -> Machine | None:
            name = self.record(run)["worker"]
            pid = int(name[1:].partition("-")[0]) if name else 0
            return next((m for m in self.workers_ if pid in [p.pid for p in m.workers()]), None)

        return until(found, f"a worker has {run}")

    def close(self) -> None:
        for machine in reversed(self.machines):
            machine.close()
        super().close()

    def logs(self) -> str:
        said = [f"--- {m.name}\n{m.process.log()[-5000:]}" for m in self.machines]
        return "\n".join([super().logs(), *said])

    # a client

    def run(self, text: str, **fields: Any) -> str:
        """Start a run as a client that does what it is told: retries with its key, at the next server."""
        status, record = self.insist("POST", "/api/runs", {"input": text, "agent": "crew", **fields})
        assert status in (200, 201), f"{status} {record}"
        return record["id"]

    def insist(self, method: str, path: str, body: Any = None, limit_s: float = 60.0) -> tuple[int, Any]:
        """The answer to a request, once there is one that says more than `again`."""
        headers = {"Idempotency-Key": uuid.uuid4().hex} if method == "POST" else {}
        end = time.monotonic() + limit_s
        while True:
            status, answer = 0, None
            try:
                status, answer = self.http.ask(method, path, body, headers, limit_s=10)
            except ConnectionRefusedError:
                self.refused += 1
            except (OSError, http.client.HTTPException) as error:
                self.cut += 1
                answer = repr(error)
            if status and status < 400:
                return status, answer
            if status and not (isinstance(answer, dict) and answer.get("retryable")):
                self.problems.append(f"{method} {path}: {status} {answer}")
                return status, answer
            self.told_to_retry += bool(status)
            assert time.monotonic() < end, f"{method} {path}: not within {limit_s} s: {status} {answer}"
            time.sleep(0.05)

    def get(self, path: str) -> Any:
        status, answer = self.insist("GET", path)
        assert status == 200, f"GET {path}: {status} {answer}"
        return answer

    def record(self, run: str) -> dict[str, Any]:
        return self.get(f"/api/runs/{run}")

    def stop(self, run: str) -> dict[str, Any]:
        status, record = self.insist("POST", f"/api/runs/{run}/stop")
        assert status == 202, f"{status} {record}"
        return record

    def log_rows(self, run: str) -> list[tuple[int, int, bytes]]:
        """Seq, epoch and bytes of each event, from Redis itself."""
        with self.redis.client() as client:
            entries = client.xrange(f"{{holdfast}}:log:{uid(RunKey(LOCAL_TENANT, run))}")
        ids = [tuple(map(int, id_.decode().split("-"))) for id_, _ in entries]
        return [(seq, epoch, entry[b"d"]) for (seq, epoch), (_, entry) in zip(ids, entries, strict=True)]

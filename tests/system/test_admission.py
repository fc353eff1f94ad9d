"""More work than a deployment takes: it is refused with a time at which to come again, and nobody waits in vain."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.redis_server import RedisServer
from tests.system.support import Process, System, full, percentile, until
from tests.system.test_workers import Deployment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ACTIVE, CONCURRENCY = 6, 3
CLIENTS = full(96, 24)  # four times what the deployment takes at once, or more
PATIENCE_S = full(180, 60)


class Client(threading.Thread):
    """Sends one prompt until it is taken, and comes again when it is told to."""

    def __init__(self, system: System, number: int) -> None:
        super().__init__(daemon=True)
        self.system, self.number = system, number
        self.refused: list[tuple[int, dict[str, Any], int]] = []
        self.run_id = ""

    def run(self) -> None:
        until_at = time.monotonic() + PATIENCE_S
        body = json.dumps({"input": "!tokens n=10 rate=25", "session": f"s{self.number}"})
        while time.monotonic() < until_at:
            with closing(self.system.http.connection()) as connection:
                connection.request("POST", "/api/runs", body, {"Idempotency-Key": f"k{self.number}"})
                response = connection.getresponse()
                answer = json.loads(response.read())
                told = response.getheader("Retry-After")
            if response.status == 201:
                self.run_id = answer["id"]
                return
            assert told is not None, answer
            self.refused.append((response.status, answer, int(told)))
            time.sleep(int(told))


CAPS = [("runs_active", 503, "overloaded"), ("tenant_runs_active", 429, "rate_limited")]


@pytest.mark.parametrize(("setting", "status", "code"), CAPS[: full(2, 1)])
def test_a_client_that_comes_again_when_told_gets_in(tmp_path: Path, setting: str, status: int, code: str) -> None:
    """Four times the load: never more runs than the cap, every refusal with a time, and in the end all are answered."""
    env = {
        f"HOLDFAST_{setting.upper()}": str(ACTIVE),
        "HOLDFAST_CONCURRENCY": str(CONCURRENCY),
        "HOLDFAST_SPARE": "false",
    }
    most = 0
    with closing(System(tmp_path, "agents_under_test:diver", env=env)) as system:
        clients = [Client(system, number) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        while any(client.is_alive() for client in clients):
            live = [r for r in system.http.get("/api/runs?limit=200")["runs"] if not r["ended_at"]]
            most = max(most, len(live))
            time.sleep(0.05)
        assert all(client.run_id for client in clients), [c.number for c in clients if not c.run_id]
        ends = [system.end(client.run_id) for client in clients]
        refused = [each for client in clients for each in client.refused]
        metrics = system.http.ask("GET", "/metrics")[1]
    assert {end["state"] for end in ends} == {"completed"}
    assert len({end["id"] for end in ends}) == CLIENTS
    assert ACTIVE // 2 <= most <= ACTIVE
    assert len(refused) >= CLIENTS - ACTIVE
    assert {(got, answer["code"], answer["cap"]) for got, answer, _ in refused} == {(status, code, setting)}
    assert all(answer["retry_after_s"] == told and 1 <= told <= 60 for _, answer, told in refused)
    assert f'holdfast_runs_refused_total{{cap="{setting}"}} {float(len(refused))}' in metrics
    rounds = max(len(client.refused) for client in clients)
    assert rounds <= CLIENTS / 2, "they come back one after another, not all at once again and again"


def test_at_a_cap_stop_supersede_and_steer_still_work(tmp_path: Path) -> None:
    """Whoever has a run can end it, replace it and speak to it; a repeat is told what it was told before."""
    env = {"HOLDFAST_RUNS_ACTIVE": "1", "HOLDFAST_SPARE": "false"}
    with closing(System(tmp_path, "agents_under_test:diver", env=env)) as system:
        first = system.run("!tokens n=3000 rate=50", session="s")
        system.until_text(first, "t1 ")
        got, problem = system.http.ask("POST", "/api/runs", {"input": "!say no", "session": "other"})
        assert (got, problem["code"]) == (503, "overloaded")
        got, _ = system.http.ask("POST", "/api/runs", {"input": "more", "session": "s", "on_busy": "steer"})
        assert got == 202
        body, key = {"input": "!tokens n=3000 rate=50", "session": "s"}, {"Idempotency-Key": "k"}
        got, second = system.http.ask("POST", "/api/runs", body, key)
        assert got == 201
        got, again = system.http.ask("POST", "/api/runs", body, key)
        assert (got, again["id"]) == (201, second["id"])
        assert system.end(first)["reason"] == "superseded"
        system.until_text(second["id"], "t1 ")
        system.stop(second["id"])
        assert system.end(second["id"])["reason"] == "stopped"


class Lagging(Deployment):
    """Its workers serve an agent that can hold up its loop."""

    def work(self, *more: str) -> Process:
        command = ["worker", "agents_under_test:laggard", "--store", self.redis.url, *more]
        worker = Process(f"worker-{len(self.processes)}", command, self.directory, self.env)
        self.processes.append(worker)
        return worker


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Lagging]:
    with ExitStack() as stack:
        redis = RedisServer(tmp_path)
        stack.callback(redis.close)
        redis.start()
        yield stack.enter_context(closing(Lagging(tmp_path, redis)))


def test_runs_go_to_the_worker_whose_loop_is_in_time(deployment: Lagging) -> None:
    """A worker that an agent holds up claims nothing until it keeps time again; the one beside it takes the runs."""
    workers = [deployment.work(), deployment.work()]
    until(lambda: len(deployment.http.get("/api/workers")["workers"]) == 2, "two workers report", 40)
    deployment.until_ready()
    times = full(8, 2)
    slow = deployment.run(json.dumps({"times": times, "seconds": 2}), session="slow")
    late = until(lambda: deployment.record(slow)["worker"], "a worker has it")
    until(lambda: any("claims_paused" in worker.log() for worker in workers), "it says that it is late")
    runs = []
    while not deployment.record(slow)["ended_at"]:
        runs.append(deployment.run("hello", session=f"s{len(runs)}"))
        deployment.end(runs[-1])
        time.sleep(0.1)
    assert len(runs) >= times
    took = [deployment.events(run)[-1]["timings"]["queued_ms"] for run in runs]
    assert late not in {deployment.record(run)["worker"] for run in runs}
    assert percentile([float(ms) for ms in took], 0.5) < 1000, took
    until(lambda: any("claims_resumed" in worker.log() for worker in workers), "it takes runs again")
    assert sum("claims_paused" in worker.log() for worker in workers) == 1
    metrics = until(lambda: _counted(deployment), "its next heartbeat says so")
    assert 'holdfast_worker_fact{fact="claims_paused"} 0.0' in metrics


def _counted(deployment: Lagging) -> str:
    text: str = deployment.http.ask("GET", "/metrics")[1]
    done = "holdfast_claims_paused_total 0.0" not in text and 'fact="claims_paused"} 0.0' in text
    return text if done else ""

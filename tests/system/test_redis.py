"""The same promises on Redis, with two servers on one store: real processes, kill -9 of any of them, Redis included."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path

import pytest

from tests.redis_server import RedisServer
from tests.system.support import Http, Process, System, Watch, check_log, frames, free_port, full, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

LEASE_S = 4.0
RECOVERY_S = LEASE_S + 15.0  # the promise is lease + 1 s; this machine pauses
ENV = {"HOLDFAST_SPARE": "false", "HOLDFAST_LEASE_S": str(LEASE_S), "HOLDFAST_RENEW_S": "1"}
AGENTS = ("agents_under_test:diver", "agents_under_test:ticker")


class RedisSystem(System):
    """A server on a Redis of its own, and a second one beside it where a test asks for it."""

    def __init__(self, directory: Path, redis: RedisServer) -> None:
        self.redis = redis
        super().__init__(directory, *AGENTS, env=ENV)

    def command(self, port: int) -> list[str]:
        return [*super().command(port)[:-1], self.redis.url]

    def second(self) -> Http:
        """Start another server on the same store; its address."""
        http = Http(free_port())
        process = Process("second", self.command(http.port), self.directory, {**self.env})
        self.processes.append(process)
        until(lambda: process.answers(http, "/readyz"), "the second server is ready", 40)
        return http


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSystem]:
    directory = tmp_path_factory.mktemp("redis")
    with ExitStack() as stack:
        redis = RedisServer(directory, "--appendonly", "yes", "--appendfsync", "always")
        stack.callback(redis.close)
        redis.start()
        yield stack.enter_context(closing(RedisSystem(directory, redis)))


def _read(http: Http, run: str, after: int = 0) -> list[dict]:
    with http.stream(f"/api/runs/{run}/events?after={after}") as response:
        return [json.loads(data) for _, _, data in frames(response)]


def test_redis_dies_and_pauses_in_the_middle_of_streams(system: RedisSystem) -> None:
    """No gap, no duplicate, no false takeover, no false end: readers only wait."""
    runs = [system.run(f"!tokens n={full(1200, 200)} rate=50", session=f"s{n}") for n in range(4)]
    watches = [Watch(system, run) for run in runs]
    system.until_text(runs[0], "t20 ")
    system.redis.kill()
    time.sleep(0.3)
    system.redis.start()
    system.until_text(runs[1], "t100 ")
    system.redis.signal(signal.SIGSTOP)
    time.sleep(full(8, 2))
    system.redis.signal(signal.SIGCONT)
    for watch in watches:
        events = watch.end(60)
        assert events[-1]["type"] == "run.completed", events[-1]
        assert [e["type"] for e in events].count("run.started") == 1
    system.prompt_works("s0")


def test_two_servers_on_one_store(system: RedisSystem) -> None:
    """What one began, the other reads, stops and, when the first is killed, finishes."""
    second = system.second()
    # Stop goes to whoever runs it.
    run = system.run("!tokens n=3000 rate=50", session="stopped")
    system.until_text(run, "t3 ")
    status, _ = second.ask("POST", f"/api/runs/{run}/stop")
    assert status == 202
    events = _read(second, run)
    check_log(events)
    assert (events[-1]["type"], events[-1]["reason"]) == ("run.cancelled", "stopped")
    until(lambda: system.model.stats()["open"] == 0, "the upstream is closed", 5)
    # One session, prompts through both: one is active, all end.
    prompts = [
        http.ask("POST", "/api/runs", {"input": "!tokens n=3 rate=50", "session": "both", "on_busy": "enqueue"})[1]
        for http in (system.http, second) * 4
    ]
    records = [system.end(prompt["id"]) for prompt in prompts]
    assert {record["state"] for record in records} == {"completed"}
    for before, after in pairwise(records):
        assert before["ended_at"] <= after["started_at"]
    # The first server and its worker die; whoever read there goes on at the second, without a gap.
    runs = [system.run("!tokens n=120 rate=50", session=f"k{n}") for n in range(4)]
    system.until_text(runs[3], "t10 ")
    seen = {run: system.seen(run) for run in runs}
    system.kill()
    killed = time.monotonic()
    for run in runs:
        whole = [*seen[run], *_read(second, run, len(seen[run]))]
        assert time.monotonic() - killed < RECOVERY_S + 10
        check_log(whole)
        assert whole[-1]["type"] in ("run.completed", "run.failed")
        if whole[-1]["type"] == "run.failed":
            assert whole[-1]["reason"] == "worker_lost"
    status, made = second.ask("POST", "/api/runs", {"input": "!say again", "session": "k0"})
    assert status == 201
    assert _read(second, made["id"])[-1]["type"] == "run.completed"

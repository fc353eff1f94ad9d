"""deploy/nginx.conf in front of a real server: what clients get through it is what the server wrote, as it wrote it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.deploy.nginx import Nginx
from tests.system.support import System, check_log, frames, free_port
from tests.ws.support import socket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

RATE = 40  # tokens a second


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with closing(System(tmp_path_factory.mktemp("behind"), env={"HOLDFAST_SPARE": "false"})) as system:
        yield system


@pytest.mark.parametrize("leave_out", ["", "proxy_buffering"], ids=["as it is", "with nginx's own buffering"])
def test_a_stream_comes_through_as_it_is_written(served: System, tmp_path: Path, leave_out: str) -> None:
    """A proxy that collects a stream shows nothing for seconds, then all at once; resumption goes through, too."""
    with closing(Nginx(tmp_path, [served.http.port] * 2, leave_out=leave_out)) as nginx:
        status, run = nginx.http.ask("POST", "/api/runs", {"input": f"!tokens n={2 * RATE} rate={RATE}"})
        assert status == 201, run
        seen, lag_s = [], []
        with nginx.http.stream(f"/api/runs/{run['id']}/events") as response:
            assert response.getheader("x-accel-buffering") is None  # nginx takes it, and does what it says
            for _, _, data in frames(response):
                event = json.loads(data)
                seen.append(event)
                if event["type"] == "text.delta":
                    lag_s.append(time.monotonic())
        check_log(seen, 0)
        assert seen[-1]["type"] == "run.completed"
        assert lag_s[-1] - lag_s[0] > 0.7, "the deltas of two seconds came at once"
        with nginx.http.stream(f"/api/runs/{run['id']}/events?after=3") as response:
            assert [json.loads(data) for _, _, data in frames(response)] == seen[3:]
        for path in ("/metrics", "/health"):
            assert nginx.http.ask("GET", path)[0] == 404
        assert nginx.http.ask("GET", "/readyz")[0] == 200


async def test_a_socket_is_upgraded_and_stays_open(served: System, tmp_path: Path) -> None:
    """Start, events and stop over one socket through the proxy."""
    with closing(Nginx(tmp_path, [served.http.port] * 2)) as nginx:
        async with socket(f"http://127.0.0.1:{nginx.http.port}") as client:
            run = (await client.ask("start", input="!tokens n=5000 rate=50"))["run"]
            await client.until(lambda f: f.get("run") == run and f.get("type") == "text.delta")
            await client.ask("stop", run=run)
            end = await client.end_of(run)
            assert (end["type"], end["reason"]) == ("run.cancelled", "stopped")


def test_a_gateway_that_is_gone_is_passed_over(served: System, tmp_path: Path) -> None:
    """Reads and prompts of which no gateway has seen a byte go to the other one: no client sees a deploy."""
    with closing(Nginx(tmp_path, [free_port(), served.http.port])) as nginx:
        for _ in range(4):
            assert nginx.http.ask("GET", "/api/runs")[0] == 200
            assert nginx.http.ask("POST", "/api/runs", {"input": "!say hello"})[0] == 201

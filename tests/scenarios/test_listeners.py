"""A run that is cancelled with its request does not outlive the gateway that served the request."""

import json
import signal
import time
from typing import Any

import pytest

from tests.scenarios.conftest import Serve
from tests.scenarios.support import Chat, told
from tests.system.support import System, frames, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

LEASE_S = 3
SLACK_S = 4.0
ENDLESS = "!tokens n=100000 rate=50"


def _open_and_kill(system: System, path: str, body: dict[str, Any], *, kill: bool = True) -> str:
    """Begin to read a stream, then kill -9 the gateway that serves it; the run."""
    with system.http.stream(path, method="POST", body=body) as response:
        run = response.headers["X-Run-Id"]
        for _ in zip(range(10), frames(response), strict=False):
            pass
        if kill:
            system.server.signal(signal.SIGKILL)
            system.server.wait(5)
    return run


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/runs"])
def test_a_run_whose_gateway_was_killed_ends_for_want_of_a_listener(serve: Serve, path: str):
    """After the restart it goes on from its checkpoint, for nobody, for as long as the lease at most."""
    system = serve(HOLDFAST_LISTENER_LEASE_S=str(LEASE_S))
    body = (
        {"prompt": ENDLESS, "stream": True} if path.startswith("/v1") else {"input": ENDLESS, "on_disconnect": "cancel"}
    )
    run = _open_and_kill(system, path, body)
    system.start()
    began = time.monotonic()
    record = system.end(run, LEASE_S + SLACK_S)
    assert (record["state"], record["reason"]) == ("cancelled", "client_disconnect")
    assert time.monotonic() - began < LEASE_S + SLACK_S
    until(lambda: system.model.stats()["open"] == 0, "the upstream is closed", 3)
    found = [line for line in told(system, run) if (line["run"], line["event"]) == (run, "stream_cancelled")]
    assert [(line["reason"], line["by"]) for line in found] == [("client_disconnect", "reaper")]


def test_a_run_that_continues_is_not_touched(serve: Serve):
    """on_disconnect continue: the restart resumes it, and it ends as it would have."""
    system = serve(HOLDFAST_LISTENER_LEASE_S=str(LEASE_S))
    run = _open_and_kill(system, "/api/runs", {"input": "!tokens n=300 rate=50"})
    system.start()
    record = system.end(run, 20)
    assert record["state"] == "completed"
    assert record["epoch"] > 1, "it was resumed"


def test_a_stream_longer_than_the_lease_is_kept_by_its_gateway(serve: Serve):
    """Renewed for every open request, streamed or not; a request that ended needs nothing."""
    system = serve(HOLDFAST_LISTENER_LEASE_S=str(LEASE_S))
    prompt = "!tokens n=350 rate=50"
    streamed = Chat(system, prompt)
    status, answer = system.http.ask("POST", "/v1/chat/completions", {"prompt": prompt})
    assert (status, answer["choices"][0]["message"]["content"].endswith("t350 ")) == (200, True), json.dumps(answer)
    assert streamed.end().error is None
    assert streamed.text.endswith("t350 ")

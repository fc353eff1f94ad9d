"""Whoever is woken by a run that is stuck finds it, ends it for good, and lets it go on: by the commands alone."""

import json
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.supervision.support import is_child
from tests.system.support import System, full, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


def holdfast(system: System, *arguments: str, code: int = 0) -> Any:
    """A command's JSON; or, where it fails, what it says."""
    command = [sys.executable, "-m", "holdfast", *arguments, "--json", "--url", f"http://127.0.0.1:{system.http.port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done.stderr if code else json.loads(done.stdout.splitlines()[-1])


def started(system: System, text: str, **fields: str) -> str:
    run = system.run(text, **fields)
    until(lambda: system.record(run)["state"] == "running" and system.record(run)["seq"] >= 2, "it runs")
    return run


def test_what_is_stuck_is_listed_with_what_ends_it(system: System) -> None:
    """F81: a run that waits in its tool for 10 s is in the list, with the tool's name and its timer."""
    run = started(system, '!tool nap {"seconds": 60}', session="listed", agent="watched")
    time.sleep(10.5)  # what is looked for is time itself
    found = {each["id"]: each["inspection"] for each in holdfast(system, "runs", "--stuck")["runs"]}
    assert found[run]["waiting_on"] == "tool nap"
    assert found[run]["fires"] == "tool_timeout"
    assert "metrics" not in found[run], "what a worker has counted is of all tenants"
    assert holdfast(system, "stop", run)["reason"] == "stopped"
    assert run not in {each["id"] for each in holdfast(system, "runs", "--stuck")["runs"]}


@pytest.mark.parametrize("how", ["deaf", "paused", "killed"] if full(1, 0) else ["deaf", "paused"])
def test_a_run_that_is_stuck_is_ended_and_goes_on(how: str, system: System) -> None:
    """F81: its agent deaf, its worker stopped or dead: `resume` cancels it for good, and goes on after it."""
    session = f"stuck-{how}"
    run = started(system, "do it", session=session, agent="stubborn")
    worker = next(each for each in system.workers() if is_child(each))
    if how == "paused":
        worker.send_signal(signal.SIGSTOP)
    elif how == "killed":
        worker.send_signal(signal.SIGKILL)
    made = holdfast(system, "resume", run)
    before = system.record(run)
    assert before["state"] in ("cancelled", "failed")  # failed: its worker was found dead before the stop came
    assert made["id"] != run
    assert made["session"] == session
    after = system.end(made["id"])
    assert (after["state"], after["reason"]) == ("completed", "finished")
    said = "".join(event["text"] for event in system.events(made["id"]) if event["type"] == "text.delta")
    assert said.startswith("begun after ")
    assert holdfast(system, "resume", run)["id"] == made["id"], "twice is once"
    assert "has completed" in holdfast(system, "resume", made["id"], code=1)


def test_what_needs_no_resuming_says_so(system: System) -> None:
    """A run in the queue begins by itself: nothing is stopped by mistake."""
    first = started(system, '!tool nap {"seconds": 60}', session="queued", agent="watched")
    second = system.run("next", session="queued", agent="watched", on_busy="enqueue")
    assert "is in the queue" in holdfast(system, "resume", second, code=1)
    assert system.record(second)["state"] == "queued"
    system.stop(second)
    system.stop(first)
    system.end(first)

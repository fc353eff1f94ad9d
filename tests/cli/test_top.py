"""`holdfast top`: the page, the keys, and what scripts get."""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import ExitStack

import pytest

from holdfast.cli.top_view import Look, fitted, in_order, whole_page
from tests.cli.stub import Stub
from tests.cli.test_chat import LIMIT_S, Terminal

NOW = dt.datetime(2026, 1, 2, 3, 4, 10, tzinfo=dt.UTC)


class Top(Terminal):
    """`holdfast top` at a terminal."""

    def __init__(self, stub):
        self._start(stub, *pty.openpty())

    def _start(self, stub, own, theirs):
        """The terminal is its controlling one, so that Ctrl-C is a key."""
        take = (
            "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        command = [sys.executable, "-c", take, sys.executable, "-m", "holdfast", "top", "--url", stub.url]
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 160, 0, 0))
        self.out = ""
        self._fd = self._in = own
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        self._close(theirs)

    def _close(self, theirs):
        os.close(theirs)

    def page(self):
        """What is on the screen: the last drawing that is whole."""
        whole = [drawn for drawn in self.out.split("\x1b[H")[1:] if "\x1b[J" in drawn]
        return re.sub(r"\x1b\[[?0-9;]*[A-Za-z]|\r", "", whole[-1]) if whole else ""

    def shows(self, *texts):
        """Read until all of this is on the screen at once."""
        end = time.monotonic() + LIMIT_S
        while not all(text in self.page() for text in texts):
            assert time.monotonic() < end, f"no {texts} within {LIMIT_S} s on {self.page()}"
            if select.select([self._fd], [], [], 0.05)[0]:
                self._read()
        return self.page()


def look(*runs, workers=()):
    counts = {state: str(sum(run["state"] == state for run in runs)) for state in ("running", "waiting", "queued")}
    return Look(NOW, "http://here", list(workers), [], in_order(runs), counts)


def run(name, state="running", **more):
    return {"id": name, "state": state, "created_at": "2026-01-02T03:04:05.000Z", "session": "s", "agent": "a", **more}


def test_what_runs_stands_before_what_waits_and_the_oldest_first():
    """The run that has been there longest is the one that is looked for."""
    young, old = run("young", started_at="2026-01-02T03:04:09.000Z"), run("old", started_at="2026-01-02T03:04:06.000Z")
    found = in_order([run("queued", "queued"), young, run("waiting", "waiting"), old])
    assert [each["id"] for each in found] == ["old", "young", "waiting", "queued"]


def test_a_run_shows_what_it_waits_on_and_what_ends_that():
    """F81: a run that hangs is seen, with the phase it hangs in."""
    inspection = {
        "waiting_on": "tool sleep", "phase": "tool", "progress_ms": 4000, "elapsed_ms": 5000,
        "timers": [{"name": "lease", "left_ms": 100}, {"name": "tool_timeout", "left_ms": 90_000}],
    }  # fmt: skip
    page = "\n".join(whole_page(look(run("r_1", attempt=2, stopping="stopped", inspection=inspection))))
    for text in ("stopping: stopped", "tool sleep", "4.0 s ago", "5.0 s", "tool_timeout in 90.0 s", "1 running"):
        assert text in page


def test_an_empty_deployment_says_what_is_missing():
    """A blank page would look like a fault of the page."""
    page = "\n".join(whole_page(look()))
    assert "no worker has reported" in page
    assert "no run is running" in page


def test_what_does_not_fit_is_counted():
    """A page that is cut off in silence says that there is no more."""
    assert fitted(["x" * 20] * 5, 4, 3) == ["xxxx", "xxxx", ".. 3"]
    assert fitted(["a", "b"], 10, 2) == ["a", "b"]


@pytest.mark.parametrize("arguments", [("--once",), ()], ids=["asked for", "no terminal"])
def test_without_a_terminal_one_plain_table_is_printed(stub, holdfast, arguments):
    """For scripts: no control character, and an end."""
    made = stub.create("slow")["id"]
    result = holdfast("top", *arguments)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    for text in (made, "running", "model", "12.0 s ago", "run_deadline in 9 min", "w1", "1/64", "7 ms", "4/4", "no"):
        assert text in result.stdout
    assert "api openai open for 12 s" in result.stdout


def test_json_is_one_document(stub, holdfast):
    """What the page shows, for programs."""
    made = stub.create("slow")["id"]
    document = json.loads(holdfast("top", "--json").stdout)
    assert document["counts"] == {"running": "1", "waiting": "0", "queued": "0"}
    assert [(each["id"], each["inspection"]["waiting_on"]) for each in document["runs"]] == [(made, "model")]
    assert document["workers"][0]["facts"]["concurrency"] == 64


def test_page_follows_the_runs(stub):
    """What is asked elsewhere shows by itself."""
    with Top(stub) as top:
        top.shows("0 running", "no run is running")
        made = stub.create("slow")["id"]
        top.shows("1 running", made)
        stub.stop(made)
        top.shows("0 running")
        top.type("q")
        assert top.leave() == 0


@pytest.mark.parametrize("end", ["q", "\x03", signal.SIGINT, signal.SIGTERM])
def test_the_terminal_is_given_back(stub, end):
    """A shell whose keys are not shown is broken, whatever ended the program before it."""
    with ExitStack() as stack:
        own, theirs = pty.openpty()
        stack.callback(os.close, own)
        stack.callback(os.close, theirs)
        before = termios.tcgetattr(theirs)
        top = stack.enter_context(Attached(stub, own, theirs))
        top.shows("0 running")
        assert termios.tcgetattr(theirs) != before
        if isinstance(end, str):
            top.type(end)
        else:
            top.process.send_signal(end)
        assert top.process.wait(LIMIT_S) == (0 if end != signal.SIGTERM else 128 + signal.SIGTERM)
        assert termios.tcgetattr(theirs) == before
        top.until("\x1b[?1049l")


class Attached(Top):
    """At a terminal that outlives it."""

    def __init__(self, stub, own, theirs):
        self._start(stub, os.dup(own), theirs)

    def _close(self, theirs):
        """Whoever made it does."""


def test_a_small_terminal_shows_the_top_and_the_last_line(stub):
    """A line too many would scroll the page away with each drawing."""
    for _ in range(20):
        stub.create("slow")
    with Top(stub) as top:
        top.shows("20 running", "q quits")
        fcntl.ioctl(top._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 8, 40, 0, 0))
        page = top.shows("more lines")
        assert [len(line) <= 40 for line in page.split("\n")] == [True] * 8
        assert "holdfast top" in page.split("\n")[0]
        assert "q quits" in page.split("\n")[-1]
        top.type("q")
        assert top.leave() == 0


def test_a_run_is_stopped_only_after_a_question(stub):
    """One key must not end somebody's work."""
    made = stub.create("slow")["id"]
    with Top(stub) as top:
        top.shows(made)
        top.type("s")  # none is chosen
        top.type("j")
        top.type("s")
        top.shows(f"stop {made}?")
        top.type("n")
        top.shows("q quits")
        assert stub.runs[made]["state"] == "running"
        top.type("s")
        top.shows(f"stop {made}?")
        top.type("y")
        top.shows("0 running")
        assert stub.runs[made]["state"] == "cancelled"
        top.type("q")
        assert top.leave() == 0


def test_a_server_that_goes_away_is_waited_for(stub):
    """A deploy must not end the page that watches it; until then it says how old it is."""
    with Stub() as first:
        port = int(first.url.rpartition(":")[2])
        first.create("slow")
        top = Top(first)
        top.shows("1 running")
    with top:
        top.shows("disconnected, trying again", "1 running")
        with Stub(port):
            top.shows("0 running", "q quits")
            top.type("q")
            assert top.leave() == 0

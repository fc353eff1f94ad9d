"""The commands against a real server: what the small one of the other tests only promises."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest
from click.testing import CliRunner

from holdfast.cli import main
from holdfast.client import Client
from tests.cli.live import Server
from tests.cli.test_chat import Terminal
from tests.cli.test_top import Top

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    pytest.importorskip("holdfast.app")
    server = Server(tmp_path_factory.mktemp("demo"), "demo", "--port", "0")
    yield server
    assert server.close() == 0


@pytest.fixture
def client(demo):
    with Client(demo.url) as client:
        yield client


@pytest.fixture
def holdfast(demo):
    return lambda *args: CliRunner().invoke(main, [*args, "--url", demo.url])


def test_start_with_the_same_key_is_one_run(client):
    """A repeat after a lost answer starts nothing."""
    first = client.start("!say once", idempotency_key="k1")
    assert client.start("!say once", idempotency_key="k1")["id"] == first["id"]


def test_events_from_every_offset_are_the_missing_suffix(client):
    """P3, on the wire: whatever a reader has, it gets the rest and nothing else."""
    run = client.start("!tokens n=20 rate=400")["id"]
    whole = list(client.events(run))
    assert whole[-1]["type"] == "run.completed"
    for after in range(len(whole) + 1):
        assert list(client.events(run, after)) == whole[after:]


def test_printed_events_are_those_of_the_log(client, holdfast):
    """Followed or not, text or JSON: the same log."""
    run = client.start("!tokens n=20 rate=400")["id"]
    followed = holdfast("events", run, "--follow", "--json").stdout
    assert holdfast("events", run, "--json").stdout == followed
    assert [json.loads(line) for line in followed.splitlines()] == list(client.events(run))


def test_stop_says_that_the_model_connection_closed(client, holdfast):
    """P2: the receipt is the worker's, not a guess of ours."""
    run = client.start("!tokens n=1000 rate=50")["id"]
    for event in client.events(run):
        if event["type"] == "text.delta":
            break
    result = holdfast("stop", run)
    assert result.exit_code == 0
    assert "model connection closed after" in result.stdout
    assert holdfast("stop", run).stdout == result.stdout


def test_stuck_run_is_found_with_the_timer_that_ends_it(client, holdfast, monkeypatch):
    """F81: a stalled model shows up by itself."""
    monkeypatch.setattr("holdfast.cli.runs.STUCK_MS", 300)
    run = client.start("!stall after=1 for=30")["id"]
    fine = client.start("!say hello")["id"]
    for event in client.events(fine):
        assert event["type"] != "run.failed"
    for _ in range(100):
        found = holdfast("runs", "--stuck").stdout
        if run in found:
            break
    assert "model_idle in" in found
    assert fine not in found
    assert "model" in holdfast("inspect", run).stdout
    client.stop(run)


def test_top_shows_what_each_run_waits_on(demo, client, holdfast):
    """Side by side: one that streams, one in a tool, one whose model is silent, one that waits behind it."""
    made = {
        "streams": client.start("!tokens n=5000 rate=20", session="t1")["id"],
        "tool": client.start('!tool sleep {"seconds": 60}', session="t2")["id"],
        "silent": client.start("!stall after=3 for=999", session="t3")["id"],
        "behind": client.start("x", session="t3", on_busy="enqueue")["id"],
    }
    with Top(demo) as top:
        page = top.shows("tool sleep", "the 1 before it", *made.values())
        assert "3 running, 0 waiting, 1 queued" in page
        top.type("q")
        assert top.leave() == 0
    found = {each["id"]: each for each in json.loads(holdfast("top", "--json").stdout)["runs"]}
    assert found[made["streams"]]["inspection"]["progress_ms"] < found[made["silent"]]["inspection"]["progress_ms"]
    assert found[made["tool"]]["inspection"]["tool"] == "sleep"
    for session in ("t1", "t2", "t3", "t3"):
        client.stop_session(session)


def test_interrupt_in_a_terminal_stops_the_run(demo, client):
    """The whole way: Ctrl-C, stop, receipt, next prompt."""
    with Terminal(demo) as terminal:
        terminal.until("> ")
        terminal.type("!tokens n=2000 rate=50\n")
        terminal.until("t20 ")
        terminal.interrupt()
        terminal.until("model connection closed after")
        terminal.until("]\n> ")
        terminal.type("!say still here\n")
        terminal.until("!say still here\nstill here\n> ")
        terminal.hang_up()
        assert terminal.leave() == 0
    assert [r["state"] for r in client.runs(limit=2)["runs"]] == ["completed", "cancelled"]


def test_session_is_attached_to_while_it_runs(demo, client):
    """Close the terminal, come back: the history is there, the answer goes on."""
    client.start("!say first", session="s_back")
    list(client.events(client.runs(session="s_back")["runs"][0]["id"]))
    run = client.start("!tokens n=60 rate=40", session="s_back")["id"]
    with Terminal(demo, "--session", "s_back") as terminal:
        terminal.until("> !say first\nfirst")
        terminal.until(f"attached to run {run}")
        text = terminal.until("t60 ")
        assert text.count("t1 ") == 1


def test_reader_survives_kill_9_of_the_server(tmp_path):
    """P9: what was seen stays seen; the reader goes on over the restart, without a gap or a duplicate."""
    pytest.importorskip("holdfast.app")
    server = Server(tmp_path, "demo", "--port", "0")
    port = server.url.rpartition(":")[2]
    with Client(server.url) as client:
        run = client.start("!tokens n=100 rate=40")["id"]
    command = [sys.executable, "-m", "holdfast", "events", run, "--follow", "--json", "--url", server.url]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        seen = [json.loads(reader.stdout.readline()) for _ in range(10)]
        server.kill()
        server = Server(tmp_path, "demo", "--port", port)
        timer = threading.Timer(40, reader.kill)
        timer.start()
        rest = reader.stdout.read()  # not communicate(): it would miss what readline() has buffered
        timer.cancel()
        errors = reader.stderr.read()
    finally:
        reader.kill()
        reader.communicate()
        server.close()
    events = seen + [json.loads(line) for line in rest.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["type"] in ("run.completed", "run.failed")
    assert "interrupted" in errors
    assert reader.returncode == 0

"""P9 and P1: what a client saw survives kill -9, and the run goes on or ends; a server that is told to stop does."""

import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.system.conftest import DIVER, TICKER
from tests.system.reading import SSE, stored, ticks
from tests.system.support import TERMINAL, Process, System, check_log, ended, frames, until

Start = Callable[..., System]
LEASE_S = 10.0
RECOVERY_S = LEASE_S + 4.0
DRAIN_S = 3.0  # of profile dev
EXIT_S = DRAIN_S + 6.0
# The model falls silent behind its last token, once: the run is not over before it is killed, however slow the machine
# is, and the next attempt is answered to the end.
HELD = "!tokens n=40 rate=30\n!stall after=0 for=60 times=1"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


class Witness(threading.Thread):
    """Keeps what one connection brought, byte for byte, until it breaks or the server closes it."""

    def __init__(self, system: System, run: str, after: str = "") -> None:
        super().__init__(daemon=True)
        self.ids: list[str] = []
        self.rows: list[bytes] = []
        self.closed = False  # by the server, in the way of HTTP
        self._stream = system.http.stream(
            f"/api/runs/{run}/events", SSE, headers={"Last-Event-ID": after} if after else {}, limit_s=60
        )
        self.start()

    def run(self) -> None:
        try:
            with self._stream as response:
                for id_, _, data in frames(response):
                    assert id_ is not None, f"not in the log: {data}"
                    self.ids.append(id_)
                    self.rows.append(data.encode())
                self.closed = response.chunk_left is None  # else the connection broke
        except (ConnectionError, OSError, ValueError):
            pass  # the server was killed

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(row) for row in list(self.rows)]

    def said(self) -> str:
        return "".join(e["text"] for e in self.events() if e["type"] == "text.delta")


def kill(system: System, witness: Witness) -> None:
    """kill -9 of everything, and the witness sees its connection break."""
    system.kill()
    witness.join(10)
    assert not witness.closed


def goes_on(system: System, run: str, witness: Witness) -> list[dict[str, Any]]:
    """The whole log after a restart: it begins with what the witness has, byte for byte, and then ends."""
    later = Witness(system, run, after=witness.ids[-1])
    later.join(60)
    assert later.closed, f"the stream did not end: {later.events()[-1:]}"
    rows = witness.rows + later.rows
    log = stored(system, run)
    assert rows == [row.data for row in log], "a resumed reader has the log, byte for byte"
    assert witness.ids + later.ids == [row.id for row in log]
    events = [json.loads(row) for row in rows]
    check_log(events)
    return events


def test_kill_9_while_the_model_streams_loses_nothing_and_the_run_is_resumed(start_system: Start, figures: Any):
    """The reader has text that the next attempt takes back, and is told so; no tool runs twice."""
    system = start_system(DIVER)
    script = f'!tool echo {{"text": "once"}}\n{HELD}'
    run = system.run(script, session="s")
    witness = Witness(system, run)
    until(lambda: "t10 " in witness.said(), "text is shown")
    kill(system, witness)
    system.start()
    began = time.monotonic()
    until(lambda: any(e.get("attempt") == 2 for e in system.seen(run)), "attempt 2", RECOVERY_S)
    waited = time.monotonic() - began
    figures("kill -9 while the model streams", [f"start {system.ready_s:.1f} s, then attempt 2 after {waited:.2f} s"])
    events = goes_on(system, run, witness)
    started = [e["attempt"] for e in events if e["type"] == "run.started"]
    assert started == [1, 2]
    shown = {e["part"] for e in witness.events() if e["type"] == "text.delta"}
    at = next(i for i, e in enumerate(events) if e["type"] == "attempt.discarded")
    assert events[at - 1]["type"] == "run.started", "what is taken back is said before anything else"
    assert set(events[at]["parts"]) == shown
    assert events[at]["calls"] == []
    assert [e["what"] for e in system.journal("echo")] == ["once"], "a finished tool is not run again"
    text = "".join(f"t{i} " for i in range(1, 41))
    kept = [e for e in events if e["type"] == "text.delta" and e["part"] not in shown]
    assert "".join(e["text"] for e in kept) == text
    assert events[-1]["output"] == text
    _session_is_whole(system, [script, "!say again"])


def test_kill_9_during_a_tool_tells_the_model_that_its_outcome_is_unknown(start_system: Start):
    """It may have sent the mail: nobody may claim that it did, or did not, or send it again unasked."""
    system = start_system(DIVER)
    script = '!tool nap {"seconds": 60}\n!say went on'
    run = system.run(script, session="s")
    witness = Witness(system, run)
    until(lambda: system.journal("nap"), "the tool runs")
    until(lambda: [e for e in witness.events() if e["type"] == "tool.called"], "its call is in the log before")
    kill(system, witness)
    system.start()
    events = goes_on(system, run, witness)
    finished = [e for e in events if e["type"] == "tool.finished"]
    assert [(e["name"], e["outcome"]) for e in finished] == [("nap", "unknown")]
    assert [e["what"] for e in system.journal("nap")] == ["began"]
    assert [e["type"] for e in events].count("tool.called") == 1
    assert events[-1]["output"] == "went on"
    _session_is_whole(system, [script, "!say again"])


def test_kill_9_of_an_agent_that_cannot_resume_ends_its_run_as_worker_lost(start_system: Start):
    """A run that nobody can go on with ends by itself, with everything that was said."""
    system = start_system(TICKER, DIVER)
    run = system.run(ticks(2000, 200), session="s")
    witness = Witness(system, run)
    until(lambda: len(witness.rows) > 20, "events are shown")
    kill(system, witness)
    began = time.monotonic()
    system.start()
    events = goes_on(system, run, witness)
    assert time.monotonic() - began < RECOVERY_S
    end = events[-1]
    assert (end["type"], end["reason"], end["error"]["code"]) == ("run.failed", "worker_lost", "worker_lost")
    assert end["error"]["remedy"]
    assert end["partial"] == "".join(e["text"] for e in events if e["type"] == "text.delta")
    assert end["receipt"]["by"] == "reaper"
    assert [(t["name"], t["ended"]) for t in end["receipt"]["tools"]] == [("spool", "abandoned")]
    after = system.end(system.run(ticks(3, 0), session="s", agent="ticker"))
    assert after["state"] == "completed"


def test_kill_9_of_the_worker_alone_breaks_no_connection(start_system: Start, figures: Any):
    """Whoever reads sees text taken back and said again, on the connection it has; the spare takes over."""
    system = start_system(DIVER, HOLDFAST_SPARE="true")
    until(lambda: len(system.workers()) == 2, "worker and spare")
    run = system.run(HELD, session="s")
    witness = Witness(system, run)
    until(lambda: "t10 " in witness.said(), "text is shown")
    began = time.monotonic()
    held_by = int(system.record(run)["worker"][1:].partition("-")[0])
    next(worker for worker in system.workers() if worker.pid == held_by).kill()
    until(lambda: any(e.get("attempt") == 2 for e in witness.events()), "attempt 2", RECOVERY_S)
    figures("kill -9 of the worker", [f"attempt 2 after {time.monotonic() - began:.2f} s"])
    witness.join(30)
    assert witness.closed
    events = witness.events()
    check_log(events)
    assert events[-1]["output"] == "".join(f"t{i} " for i in range(1, 41))
    _session_is_whole(system, [HELD, "!say again"])


def test_kill_9_of_the_gateway_alone_lets_the_worker_hand_its_run_back(start_system: Start):
    """A worker whose gateway is gone works for nobody: it gives back what it holds, and ends."""
    system = start_system(DIVER)
    run = system.run(HELD, session="s")
    witness = Witness(system, run)
    until(lambda: "t10 " in witness.said(), "text is shown")
    workers = system.workers()
    system.server.signal(signal.SIGKILL)
    assert system.server.wait(10) == -signal.SIGKILL
    witness.join(10)
    until(lambda: all(map(ended, workers)), "worker and spare have ended", 6)
    until(lambda: system.model.stats()["open"] == 0, "the model is let go", 2)
    system.start()
    events = goes_on(system, run, witness)
    assert events[-1]["output"] == "".join(f"t{i} " for i in range(1, 41))


def test_queued_runs_and_stop_flags_survive_kill_9(start_system: Start):
    """What was accepted with 201 and what was stopped with 202 is so after a crash too."""
    system = start_system(DIVER)
    first = system.run('!tool deaf {"seconds": 30}', session="s")
    until(lambda: system.journal("deaf"), "the tool runs")
    second = system.run("!say second", session="s", on_busy="enqueue")
    witness = Witness(system, first)
    assert system.stop(first)["stopping"] == "stopped"
    kill(system, witness)
    system.start()
    record = system.end(first, RECOVERY_S)
    assert (record["state"], record["reason"]) == ("cancelled", "stopped")
    assert record["receipt"]["by"] == "reaper"
    assert system.end(second, RECOVERY_S)["output"] == "second"


def _session_is_whole(system: System, prompts: list[str]) -> None:
    """The next prompt works, and the session has every prompt and every answer."""
    system.prompt_works("s")
    messages = system.http.get("/api/sessions/s")["messages"]
    assert [m["text"] for m in messages if m["role"] == "user"] == prompts, messages
    requests = system.model.stats()["last_request"]["messages"]
    assert [m["content"] for m in requests if m["role"] == "user"] == prompts, "the model is given the same history"


def test_a_second_server_on_the_same_file_refuses_and_names_the_first(system: System):
    """Two workers on one file would each believe that the other is dead."""
    second = _refused(system, [*system.command(0)])
    assert f"served by process {system.server.pid}" in second
    assert "--store" in second


def test_a_busy_port_is_said_with_a_remedy(system: System):
    """The first thing that goes wrong on a fresh machine."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [*system.command(port)[:-1], f"sqlite:///{system.directory}/other.db"]
        said = _refused(system, command)
    assert f"127.0.0.1:{port}" in said
    assert "choose another --port" in said


def test_a_server_with_neither_model_nor_agent_refuses(system: System):
    """P8: it never makes an answer up."""
    said = _refused(system, ["serve", "--port", "0"])
    assert "neither an agent nor a model" in said


def _refused(system: System, arguments: list[str]) -> str:
    """What a server says that exits with 1 instead of starting."""
    process = Process(f"refused-{time.monotonic_ns()}", arguments, system.directory)
    try:
        assert process.wait(30) == 1, process.log()
    finally:
        process.end()
    said = process.log()
    assert "Traceback" not in said
    return said


def test_sigterm_lets_runs_finish_and_readers_see_their_end(start_system: Start):
    """A deployment in the middle of an answer is no reason to lose it."""
    system = start_system(DIVER)
    run = system.run("!tokens n=40 rate=25")  # 1.6 s
    witness = Witness(system, run)
    until(lambda: "t5 " in witness.said(), "text is shown")
    system.server.signal(signal.SIGTERM)
    until(lambda: system.http.ask("GET", "/readyz")[0] == 503, "it is not ready", 2)
    refused, problem = system.http.ask("POST", "/api/runs", {"input": "late"})
    assert (refused, problem["code"]) == (503, "not_ready")
    witness.join(EXIT_S)
    assert witness.closed
    assert witness.events()[-1]["type"] == "run.completed"
    assert system.server.wait(EXIT_S) == 0


def test_sigterm_hands_a_run_that_takes_longer_to_the_next_server(start_system: Start):
    """The drain is bounded; a run that can be resumed waits in the store and goes on."""
    system = start_system(DIVER, HOLDFAST_DRAIN_S="0.5")
    run = system.run(f'!tool echo {{"text": "once"}}\n{HELD}', session="s")
    witness = Witness(system, run)
    until(lambda: "t5 " in witness.said(), "text is shown")
    began = time.monotonic()
    system.server.signal(signal.SIGTERM)
    assert system.server.wait(EXIT_S) == 0
    assert time.monotonic() - began < EXIT_S
    witness.join(5)
    assert not any(e["type"] in TERMINAL for e in witness.events())
    system.start()
    events = goes_on(system, run, witness)
    assert events[-1]["output"] == "".join(f"t{i} " for i in range(1, 41))
    assert [e["what"] for e in system.journal("echo")] == ["once"]


def test_sigterm_ends_a_run_that_cannot_be_resumed_and_says_shutdown(start_system: Start):
    """Nobody could go on with it, so its readers learn now that it is over."""
    system = start_system(TICKER, HOLDFAST_DRAIN_S="0.5")
    run = system.run(ticks(2000, 60))
    witness = Witness(system, run)
    until(lambda: len(witness.rows) > 5, "events are shown")
    system.server.signal(signal.SIGTERM)
    assert system.server.wait(EXIT_S) == 0
    witness.join(5)
    assert witness.closed
    end = witness.events()[-1]
    assert (end["type"], end["reason"]) == ("run.cancelled", "shutdown")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal_ends_all_runs_now(start_system: Start, number: signal.Signals):
    """Ctrl-C twice means now: every reader sees the end of its run, and the exit is clean."""
    system = start_system(DIVER)
    runs = [system.run("!tokens n=100000 rate=50"), system.run('!tool nap {"seconds": 60}')]
    witnesses = [Witness(system, run) for run in runs]
    until(lambda: "t5 " in witnesses[0].said() and system.journal("nap"), "both work")
    began = time.monotonic()
    system.server.signal(number)
    until(lambda: "shutdown" in system.server.log(), "the first signal is taken")
    system.server.signal(number)
    assert system.server.wait(EXIT_S) == 0
    assert time.monotonic() - began < DRAIN_S, "nobody waited for the drain"
    for witness in witnesses:
        witness.join(5)
        assert witness.closed
        end = witness.events()[-1]
        assert (end["type"], end["reason"]) == ("run.cancelled", "shutdown")
    until(lambda: system.model.stats()["open"] == 0, "the model is let go", 2)

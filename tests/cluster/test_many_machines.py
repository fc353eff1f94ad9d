"""What one machine promises, several do: stop, one run at a time, resume elsewhere, no zombie writes."""

import json
import os
import signal
import threading
import time
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from tests.cluster.deployment import LEASE_S, Cluster, thaw
from tests.supervision.support import Follower, attempts
from tests.system.reading import stored
from tests.system.support import TERMINAL, Open, Watch, frames, full, percentile, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(full(900, 120))]

STOP_S = 1.0  # a generous bound: the promise is in the figures
PARTS = (("p50", 0.5), ("p99", 0.99), ("worst", 1.0))
RECOVERY_S = LEASE_S + 15.0  # the promise is lease + 1 s; this machine pauses


def test_stop_through_one_server_closes_the_upstream_of_a_run_of_the_other(cluster: Cluster, figures: Any):
    """Whoever presses Stop does not know which server started the run, and no server which worker has it."""
    first, second = cluster.through(0), cluster.through(1)
    rounds = full(200, 10)
    closed, terminal, plain = [], [], []
    for i in range(rounds):
        run = first.run("!tokens n=100000 rate=50", session=f"stop-{i}")
        watch = Watch(first, run)
        first.until_text(run, "t2 ")
        opened = Open(cluster.model)
        time.sleep(0.02)
        asked = time.monotonic()
        assert second.http.ask("GET", "/livez")[0] == 200
        plain.append((time.monotonic() - asked) * 1000)
        asked = time.monotonic()
        second.stop(run)
        events = watch.end()
        closed.append((opened.end() - asked) * 1000)
        terminal.append((watch.at - asked) * 1000)
        assert (events[-1]["type"], events[-1]["reason"]) == ("run.cancelled", "stopped")
    said = [
        f"{what}: " + ", ".join(f"{name} {percentile(values, part):.1f} ms" for name, part in PARTS)
        for what, values in (
            ("the model sees the close", closed),
            ("a reader sees the end", terminal),
            ("beside it, GET /livez", plain),
        )
    ]
    said.append(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    figures(f"stop through server 2 of runs started through server 1, {rounds} times", said)
    assert percentile(closed, 0.9) < STOP_S * 1000, closed


def test_a_list_at_one_server_follows_what_happens_at_the_other(cluster: Cluster):
    """Lists are looked at at any server, and runs begin and end anywhere."""
    first, second = cluster.through(0), cluster.through(1)
    seen: dict[str, list[dict[str, Any]]] = {}
    with second.http.stream("/api/events") as response:
        changes = frames(response)
        assert next(changes)[1] == "runs"
        for stopped in (True, False):
            run = first.run("!tokens n=100000 rate=50" if stopped else "!tokens n=5", session=f"list-{stopped}")
            while not seen.get(run) or not seen[run][-1]["ended_at"]:
                _, kind, data = next(changes)
                record = json.loads(data)
                seen.setdefault(record["id"], []).append(record)
                if stopped and record["id"] == run and record["state"] == "running" and not record["stopping"]:
                    first.stop(run)
            assert seen[run][-1]["state"] == ("cancelled" if stopped else "completed")
            assert kind == "run"


def test_prompts_at_once_on_one_session_run_one_after_the_other(cluster: Cluster, figures: Any):
    """Two servers do not know of each other's requests; the store decides, and forgets none."""
    prompts, seen = full(50, 20), [cluster.through(0), cluster.through(1)]
    made: list[str] = []

    def prompt(i: int) -> None:
        fields = {"session": "crowded", "on_busy": "enqueue"}
        made.append(seen[i % 2].run("!tokens n=2 rate=100", **fields))

    # `queued_behind` is 16: no more wait at once, whoever is over it is told to come back.
    hands = [threading.Thread(target=prompt, args=(i,), daemon=True) for i in range(prompts)]
    began = time.monotonic()
    for hand in hands:
        hand.start()
    active: list[int] = []
    while any(hand.is_alive() for hand in hands):
        running = cluster.get("/api/runs?state=running&limit=200")["runs"]
        active.append(sum(run["session"] == "crowded" for run in running))
        assert time.monotonic() - began < 60, "the prompts are not answered"
    for hand in hands:
        hand.join(60)
    assert len(set(made)) == prompts
    for run in made:
        assert cluster.end(run)["state"] == "completed"
    assert max(active) <= 1
    assert _spans_overlap(cluster, made) == 0
    figures(f"{prompts} prompts at once on one session", [f"all done in {time.monotonic() - began:.1f} s"])


def _spans_overlap(cluster: Cluster, runs: list[str]) -> int:
    """How many runs began before the one before them had ended, by their logs."""
    spans = []
    for run in runs:
        events = [msgspec.json.decode(row.data) for row in stored(cluster, run)]
        assert events[-1]["type"] in TERMINAL
        spans.append((next(e["ts"] for e in events if e["type"] == "run.started"), events[-1]["ts"]))
    spans.sort()
    return sum(later[0] < earlier[1] for earlier, later in pairwise(spans))


def test_readers_of_a_killed_server_go_on_at_the_other_without_a_gap(cluster: Cluster, figures: Any):
    """A run does not belong to the server that started it; its worker does not even notice."""
    runs = [cluster.through(0).run("!tokens n=150 rate=50", session=f"resume-{i}") for i in range(4)]
    followers = [Follower(cluster, run) for run in runs]
    until(lambda: all("t10 " in f.said() for f in followers), "all stream")
    cluster.servers[0].kill()
    killed = time.monotonic()
    for follower in followers:
        events = follower.end(60)  # contiguous, and byte for byte what is stored
        assert events[-1]["type"] == "run.completed"
        assert attempts(events) == [1], "its worker was never asked"
    waits = [follower.after(killed) or 0.0 for follower in followers]
    figures("kill -9 of a server", [f"readers go on at the other after {max(waits) * 1000:.0f} ms at most"])
    cluster.servers[0].start()
    cluster.until_up()
    assert sum(follower.breaks for follower in followers) > 0, "nobody read at the server that was killed"


def test_a_server_that_is_told_to_end_lets_streams_end_that_nobody_could_resume(cluster: Cluster):
    """A chat completion cannot be read on at another server: its end is waited for, and a cut is not taken for one."""
    leaving = cluster.add_server(HOLDFAST_DRAIN_S="3")
    cluster.until_up()
    short, long, native = [], [], []

    def chat(text: str, lines: list[str]) -> None:
        body = {"model": "crew", "stream": True, "messages": [{"role": "user", "content": text}]}
        with leaving.http.stream("/v1/chat/completions", method="POST", body=body) as response:
            lines.extend(data for _, _, data in frames(response))

    def follow() -> None:
        with leaving.http.stream("/api/runs", method="POST", body={"input": "!tokens n=1000 rate=50"}) as response:
            native.extend(data for _, _, data in frames(response))

    asking = [("!tokens n=60 rate=50", short), ("!tokens n=1000 rate=50", long)]
    clients = [threading.Thread(target=chat, args=each, daemon=True) for each in asking]
    clients.append(threading.Thread(target=follow, daemon=True))
    for client in clients:
        client.start()
    until(lambda: all("t5 " in "".join(lines) for lines in (short, long, native)), "all stream")
    leaving.process.signal(signal.SIGTERM)
    until(lambda: leaving.http.ask("GET", "/readyz")[0] == 503, "it is not ready, and says so", 2)
    status, refused = leaving.http.ask("POST", "/api/runs", {"input": "!say late"})
    assert (status, refused["code"], refused["retryable"]) == (503, "not_ready", True)
    assert leaving.process.wait(30) == 0
    for client in clients:
        client.join(10)
    assert short[-1] == "[DONE]"
    assert json.loads(short[-2])["choices"][0]["finish_reason"] == "stop"
    cut = json.loads(long[-2])
    assert "closing" in cut["error"]["message"], cut
    assert json.loads(native[-1])["type"] not in TERMINAL, "this one is read on at another server"
    cluster.servers.remove(leaving)
    leaving.close()
    run = json.loads(native[0])["run"]
    rest = Follower(cluster, run)
    until(lambda: len(rest.rows) > len(native), "the other server has it all")
    assert [row.decode() for row in rest.rows[: len(native)]] == native
    cluster.stop(run)
    rest.end()


def test_inspect_asks_the_worker_that_has_the_run_wherever_it_is(cluster: Cluster):
    """Why a run is not finished is asked where it is noticed, and known where it runs."""
    run = cluster.run('!tool nap {"seconds": 60}', session="inspected")
    until(lambda: [e for e in cluster.seen(run) if e["type"] == "tool.called"], "the tool runs")
    for server in (0, 1):
        found = cluster.through(server).inspect(run)
        assert [tool["name"] for tool in found["tools"]] == ["nap"], found
    machine = cluster.holder(run)
    (worker,) = machine.workers()
    worker.suspend()
    try:
        # Each answer is bounded, so one may come without the other machine's word.
        blocked = "its worker's loop, which is blocked"
        until(lambda: cluster.inspect(run)["waiting_on"] == blocked, "its supervisor says that it is blocked")
    finally:
        worker.resume()
    frozen = machine.freeze()
    try:
        asked = time.monotonic()
        found = cluster.inspect(run)
        assert time.monotonic() - asked < 5.0, "nobody answers, and that is bounded"
        assert found["state"] == "running"
        assert "tools" not in found
    finally:
        thaw(frozen)
    cluster.stop(run)
    assert cluster.end(run)["state"] == "cancelled"


def test_a_worker_that_wakes_after_its_lease_writes_nothing_and_its_tools_are_stopped(cluster: Cluster, figures: Any):
    """A machine that was paused believes that it still has its runs. It must learn that it has not before it acts."""
    known = len(cluster.journal("nap"))

    def nap(what: str = "") -> list[dict[str, Any]]:
        return [e for e in cluster.journal("nap")[known:] if what in e["what"]]

    lines = ['!tool nap {"seconds": 60}\n!say after', "!tokens n=3000 rate=50"]
    runs = [cluster.run(line, session=f"zombie-{i}", agent="diver") for i, line in enumerate(lines)]
    followers = [Follower(cluster, run) for run in runs]
    until(lambda: nap(), "the tool runs")
    until(lambda: "t5 " in followers[1].said(), "it streams")
    machine = cluster.holder(runs[0])
    while cluster.holder(runs[1]) is not machine:  # two runs of one worker are wanted
        cluster.stop(runs[1])
        followers[1].end()
        runs[1] = cluster.run(lines[1], session="zombie-1", agent="diver")
        followers[1] = Follower(cluster, runs[1])
        until(lambda: "t5 " in followers[1].said(), "it streams")
    frozen = machine.freeze()
    since = time.monotonic()
    try:
        until(lambda: attempts(followers[1].events)[-1] == 2, "another worker has taken over", RECOVERY_S)
        taken_s = time.monotonic() - since
        until(lambda: "unknown" in str(followers[0].events), "the tool's outcome is unknown", RECOVERY_S)
        time.sleep(0.5)
        before = [stored(cluster, run) for run in runs]
    finally:
        woken = time.monotonic()
        thaw(frozen)
    until(lambda: nap("cancelled"), "its tool is stopped", 10, 0.005)
    stopped_s = nap("cancelled")[0]["at"] - woken
    time.sleep(1.0)
    for run, rows in zip(runs, before, strict=True):
        after = stored(cluster, run)
        assert after[: len(rows)] == rows
        epochs = [int(row.id.partition("-")[2]) for row in after]
        assert epochs == sorted(epochs), "the zombie has written"
        assert all(epoch > 1 for epoch in epochs[len(rows) :]), "the zombie has written"
    cluster.stop(runs[1])
    for follower in followers:
        events = follower.end()
        assert attempts(events) == [1, 2]
    assert [e["outcome"] for e in followers[0].events if e["type"] == "tool.finished"] == ["unknown"]
    assert [e["what"] for e in nap()] == ["began", "cancelled"], "the tool was not begun again"
    figures(
        "a worker that wakes beyond its lease",
        [
            f"taken over {taken_s:.2f} s after the SIGSTOP (lease {LEASE_S:.0f} s)",
            f"tool stopped after {stopped_s:.2f} s",
        ],
    )
    assert stopped_s < 3.0, "the promise is a second; this machine is shared"

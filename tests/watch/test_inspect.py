"""Why is it not finished: asked of a real server, whose worker is another process."""

import re
import subprocess
import sys
from typing import Any

import pytest

from tests.system.support import System, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


def stack_of(found: dict[str, Any], task: str) -> str:
    """The frames of the first task whose name begins so, as one text."""
    return next(("\n".join(each["stack"]) for each in found["stacks"] if each["task"].startswith(task)), "")


def inspected(system: System, run: str, holds: Any) -> dict[str, Any]:
    return until(lambda: (found := system.inspect(run)) and holds(found) and found, "inspect says so", 20, every_s=0.05)


def test_a_tool_that_waits_is_seen_down_to_its_last_line(system: System):
    """F81: the await stack of the agent's task and of its tool's, timers with time left; names of code, no values."""
    run = system.run('!say secret\n!tool nap {"seconds": 40}', session="nap", agent="watched")
    found = inspected(system, run, lambda f: f.get("tool") == "nap" and stack_of(f, "tool nap"))
    assert (found["phase"], found["waiting_on"], found["fires"]) == ("tool", "tool nap", "tool_timeout")
    assert 60_000 < found["fires_in_ms"] <= 120_000
    assert found["elapsed_ms"] >= found["progress_ms"] == found["since_ms"] >= 0
    left = {timer["name"]: timer["left_ms"] for timer in found["timers"]}
    assert {"lease", "due", "tool_timeout"} <= set(left)
    assert left["due"] > left["tool_timeout"] > 0
    tool = stack_of(found, "tool nap")
    assert re.search(r"agents_watched\.py:\d+ nap\n.*agents_watched\.py:\d+ nap\.<locals>\.deep", tool), tool
    agent = stack_of(found, "agent")
    assert "engine/executor.py" in agent
    assert re.search(r"agents/pydantic_ai\.py:\d+ PydanticAgent\.run", agent), agent
    assert "pydantic_ai/_agent_graph.py" in stack_of(found, "agent watched")
    assert found["last_upstream_byte_ms"] is not None
    assert "secret" not in str(found), "no locals, no text"
    assert len(str(found)) < 40_000
    command = [sys.executable, "-m", "holdfast", "inspect", run, "--url", f"http://127.0.0.1:{system.http.port}"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    assert f"run {run} waits on tool nap, for " in said
    assert re.search(r"\n  task tool nap .*\n( {4}.*\n)* {4}\S*agents_watched\.py:\d+ nap\.<locals>\.deep", said), said
    system.stop(run)
    assert system.end(run)["reason"] == "stopped"


def test_a_thread_that_outlives_its_run_is_shown_where_it_is(system: System):
    """A quarantined thread, with its stack, though its run has ended: it says which line does not return."""
    run = system.run('!tool block {"seconds": 6}', session="block", agent="watched")
    found = inspected(system, run, lambda f: f.get("threads"))
    [thread] = found["threads"]
    assert (thread["quarantined"], thread["call"]) == (False, found["tools"][0]["call"])
    system.stop(run)
    assert system.end(run)["reason"] == "stopped"
    found = inspected(system, run, lambda f: f.get("threads") and f["threads"][0]["quarantined"])
    assert found["waiting_on"] == "nothing: it has ended"
    assert re.search(r"agents_watched\.py:\d+ hold_the_thread$", found["threads"][0]["stack"][-1]), found["threads"]
    until(lambda: not system.inspect(run).get("threads"), "the thread returned, and nothing is shown any more", 20)


def test_what_a_repair_changed_of_the_history_is_counted(system: System):
    """A run that was stopped in a tool left a call without a result: one was added, and that is said."""
    run = system.run('!tokens n=3\n!tool nap {"seconds": 40}', session="mended", agent="watched")
    inspected(system, run, lambda f: f.get("tool") == "nap")
    system.stop(run)
    system.end(run)
    after = system.run('!tool nap {"seconds": 40}', session="mended", agent="watched")
    history = inspected(system, after, lambda f: f.get("tool") == "nap")["history"]
    assert (history["runs"], history["kinds"], history["states"]) == (1, {"pydantic-ai": 1}, {"cancelled": 1})
    assert history["roles"] == {"user": 1, "assistant": 1, "tool": 1}
    repair = history["repair"]
    assert repair["turns"] == {"user": 2, "assistant": 2}
    assert repair["parts"] == {"user-prompt": 1, "text": 2, "tool-call": 1, "tool-return": 1}
    assert repair["mended"]["added"]["text"] == 1
    assert repair["library"] == {}, "what we hand over needs no repair"
    system.stop(after)
    system.end(after)


def test_a_model_that_stalls_is_announced_before_it_is_ended(system: System):
    """docs/testing.md: `!stall after=5 for=999` -> run.stalled notices, then model_stalled."""
    record = system.end(run := system.run("!stall after=5 for=999", session="stall", agent="watched"))
    assert (record["state"], record["reason"]) == ("failed", "model_stalled")
    events = system.events(run)
    kinds = [e["type"] for e in events]
    notice = events[kinds.index("run.stalled")]
    assert (notice["waiting_on"], notice["fires"]) == ("model", "model_idle")
    assert notice["since_ms"] >= 500
    assert 0 < notice["fires_in_ms"] <= 2_600
    assert kinds.index("text.delta") < kinds.index("run.stalled") < kinds.index("attempt.discarded")
    assert record["output"] == "t1 t2 t3 t4 t5 "
    assert record["usage"] == {"requests": 2, "unreported": 2}
    system.prompt_works("stall")


def test_who_holds_up_the_loop_is_named_while_it_does(system: System, embedded: System):
    """F79: the line has the very function, not the place where the loop was a second later; the facts have the lag."""
    for server in (system, embedded):
        record = server.end(run := server.run('!tool hog {"seconds": 2.4}\n!say ok', session="hog", agent="watched"))
        assert record["output"] == "ok"
        line = until(
            lambda s=server: re.search(rf"^loop_lag .*run={run}.*$", s.server.log(), re.MULTILINE), "it is said"
        )[0]
        assert re.search(r"agents_watched\.py:\d+ hold_the_loop", line), line
        lag = int(re.search(r"lag_ms=(\d+)", line)[1])
        assert lag >= 1_000
        assert len(re.findall(rf"^loop_lag .*run={run}", server.server.log(), re.MULTILINE)) == 1, "once for each time"
        facts = server.http.get("/api/workers")["workers"][0]["facts"]
        assert {"loop_lag_ms", "loop_tasks", "threads", "fds", "upstreams", "lingering"} <= set(facts)
        process = server.http.get("/health")["process"]
        assert process["fds"] > 0
        assert process["threads"] > 0
        assert process["connections"] >= 1


def test_a_blocked_loop_of_an_embedded_worker_is_shown_where_it_stands(embedded: System):
    """On a thread nobody can kill it; so the least is to say who holds it, and in which line."""
    run = embedded.run('!tool nap {"seconds": 20}', session="behind", agent="watched")
    inspected(embedded, run, lambda f: f.get("tool") == "nap")
    hog = embedded.run('!tool hog {"seconds": 4}', session="before", agent="watched")
    found = inspected(embedded, run, lambda f: "blocked" in f["waiting_on"])
    assert found["blocked_by"] == hog
    assert re.search(r"agents_watched\.py:\d+ hold_the_loop", found["blocked_at"]), found
    embedded.stop(run)
    assert embedded.end(run)["reason"] == "stopped"
    embedded.end(hog)

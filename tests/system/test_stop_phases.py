"""P2: Stop stops the work, in every phase that a run can be in."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from tests.system.conftest import DIVER
from tests.system.phases import PHASES, Phase, Stopped, stop_in
from tests.system.support import System, Watch, full, percentile, table, until

GRACE_S = 2.0  # the default of stop_grace_s
TERMINAL_MS = 1000.0
UPSTREAM_MS = 300.0
ROUNDS = full(30, 2)

Said = Callable[[str, list[str]], None]
_rows: list[list[str]] = [["phase", "n", "terminal p50", "p99", "upstream closed p50", "p99", "by receipt p99"]]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A server whose worker runs one run at a time."""
    with closing(System(tmp_path_factory.mktemp("narrow"), DIVER, env={"HOLDFAST_CONCURRENCY": "1"})) as system:
        yield system


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_stop_ends_the_run_closes_its_upstream_and_frees_its_session(system: System, phase: Phase, figures: Said):
    """A user who presses Stop waits for nothing, and pays a model for nothing."""
    stops = []
    for round_ in range(ROUNDS if phase.cooperates else full(30, 1)):
        session = f"{phase.name.replace(' ', '-')}-{round_}"
        stopped = stop_in(system, phase, session)
        _check(stopped, phase)
        if phase.tool:
            _check_against_the_tools_own_account(system, stopped, phase)
        assert system.record(stopped.run)["receipt"] == stopped.receipt
        system.prompt_works(session)
        stops.append(stopped)
    _say(figures, phase.name, stops)


@pytest.mark.slow
@pytest.mark.timeout(100)
def test_stop_of_a_run_queued_behind_another_ends_it_and_leaves_the_other_alone(system: System, figures: Said):
    """The wrong run must never pay for a stop."""
    stops = []
    for round_ in range(ROUNDS):
        session = f"behind-{round_}"
        first = system.run("!tokens n=100000 rate=50", session=session, agent="diver")
        system.until_text(first, "t1 ")
        second = system.run("!say never", session=session, agent="diver", on_busy="enqueue")
        assert system.record(second)["state"] == "queued"
        stops.append(_stop_queued(system, second))
        head = system.record(first)["seq"]
        assert system.record(first)["stopping"] is None
        until(lambda first=first, head=head: system.record(first)["seq"] > head, "the first run goes on")
        system.stop(first)
        assert system.end(first)["reason"] == "stopped"
        system.prompt_works(session)
    _say(figures, "queued behind a run", stops)


@pytest.mark.slow
@pytest.mark.timeout(100)
def test_stop_of_a_run_at_the_head_of_its_session_that_no_worker_has_taken(narrow: System, figures: Said):
    """A busy worker is no reason to wait for a stop."""
    stops = []
    for round_ in range(ROUNDS):
        busy = narrow.run("!tokens n=100000 rate=50", session=f"busy-{round_}")
        narrow.until_text(busy, "t1 ")
        waiting = narrow.run("!say never", session=f"head-{round_}")
        stops.append(_stop_queued(narrow, waiting))
        narrow.stop(busy)
        assert narrow.end(busy)["reason"] == "stopped"
        narrow.prompt_works(f"head-{round_}")
    _say(figures, "queued at the head", stops)


def _stop_queued(system: System, run: str) -> Stopped:
    watch = Watch(system, run)
    until(lambda: watch.events, "the reader has run.created")
    asked = time.monotonic()
    assert system.stop(run)["state"] == "cancelled", "a queued run ends in the very step that asks"
    events = watch.end()
    stopped = Stopped(run, events, (watch.at - asked) * 1000, None, asked)
    assert [e["type"] for e in events] == ["run.created", "run.cancelled"]
    assert stopped.terminal_ms < TERMINAL_MS
    assert (stopped.end["reason"], stopped.receipt["tools"]) == ("stopped", [])
    assert not stopped.receipt["abandoned"]
    return stopped


def _check(stopped: Stopped, phase: Phase) -> None:
    end, receipt = stopped.end, stopped.receipt
    assert (end["type"], end["reason"]) == ("run.cancelled", "stopped"), end
    limit_ms = TERMINAL_MS if phase.cooperates else GRACE_S * 1000 + 1000
    assert stopped.terminal_ms < limit_ms, f"terminal event after {stopped.terminal_ms:.0f} ms"
    assert receipt["by"] == "worker"
    assert receipt["elapsed_ms"] <= stopped.terminal_ms + 5
    ended = [(tool["name"], tool["ended"]) for tool in receipt["tools"]]
    assert ended == ([(phase.tool, phase.ended)] if phase.tool else []), receipt
    assert receipt["abandoned"] is (phase.ended == "abandoned"), receipt
    if phase.upstream:
        assert stopped.upstream_ms is not None
        assert stopped.upstream_ms < UPSTREAM_MS, f"the model saw the close after {stopped.upstream_ms:.0f} ms"
        assert receipt["upstream_closed_ms"] is not None
        assert receipt["upstream_closed_ms"] <= min(UPSTREAM_MS, stopped.terminal_ms + 5)
    else:
        assert receipt["upstream_closed_ms"] is None, "no model connection was open"
    said = "".join(e["text"] for e in stopped.events if e["type"] == "text.delta")
    assert end["partial"] == said


def _check_against_the_tools_own_account(system: System, stopped: Stopped, phase: Phase) -> None:
    """What the receipt says of a tool is what happened to it."""
    since = [e for e in system.journal(phase.tool) if e["at"] > stopped.asked_at]
    if phase.ended == "cancelled":
        assert [e["what"] for e in since] == ["cancelled"]
        assert (since[0]["at"] - stopped.asked_at) * 1000 < stopped.terminal_ms
    else:  # it goes on after the run has ended, for as long as it likes
        assert "returned" not in [e["what"] for e in since]
        returned = until(lambda: [e for e in system.journal(phase.tool)[-1:] if e["what"] == "returned"], "it returns")
        assert returned[0]["at"] > stopped.asked_at + stopped.terminal_ms / 1000
        assert system.seen(stopped.run) == stopped.events, "what an abandoned tool does reaches no log"


def _say(figures: Said, name: str, stops: list[Stopped]) -> None:
    terminal = [s.terminal_ms for s in stops]
    upstream = [s.upstream_ms for s in stops if s.upstream_ms is not None]
    receipts = [s.receipt["upstream_closed_ms"] for s in stops if s.receipt["upstream_closed_ms"] is not None]
    cells = [f"{percentile(terminal, p):.0f} ms" for p in (0.5, 0.99)]
    cells += [f"{percentile(upstream, p):.0f} ms" for p in (0.5, 0.99)] if upstream else ["-", "-"]
    _rows.append([name, str(len(stops)), *cells, f"{percentile(receipts, 0.99):.0f} ms" if receipts else "-"])
    figures("stop latency per phase", table(_rows))


def test_a_stop_that_comes_twice_and_after_the_end_changes_nothing(system: System):
    """Stop is idempotent: the first reason is kept and there is one terminal event."""
    run = system.run("!tokens n=100000 rate=50", agent="diver")
    system.until_text(run, "t1 ")
    for _ in range(3):
        assert system.stop(run)["id"] == run
    events = system.events(run)
    assert system.stop(run)["state"] == "cancelled"
    assert json.dumps(system.events(run)) == json.dumps(events)

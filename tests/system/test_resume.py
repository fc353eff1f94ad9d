"""P3 and P10: whoever comes back gets exactly what was missed, and whoever does not read slows nobody."""

import json
import random
import time
from collections.abc import Callable
from contextlib import ExitStack, closing

import pytest

from tests.system.reading import JSON, NDJSON, SSE, Reader, Stuck, stored, ticks
from tests.system.support import TERMINAL, System, check_log, frames, full, until

EVENTS = full(10_000, 1_500)
SECONDS = full(40, 4)
READERS = 8
BREAKS = full(50, 25)  # of each reader
STUCK = 8
STALL_S = full(30, 3)
CROWD = 32


@pytest.mark.slow
@pytest.mark.timeout(full(300, 60))
def test_readers_that_break_anywhere_get_the_log_byte_for_byte(system: System, figures: Callable[..., None]):
    """Eight readers lose their connections hundreds of times while the run goes on; none sees a gap or a repeat."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown on failure, to repeat it
    run = system.run(ticks(EVENTS, SECONDS), agent="ticker")
    forms = [SSE, SSE, SSE, SSE, NDJSON, NDJSON, JSON, JSON]
    size = EVENTS * 250
    readers = [
        Reader(system.http, run, form, BREAKS, size, random.Random(seed + i)) for i, form in enumerate(forms[:READERS])
    ]
    for reader in readers:
        reader.join(SECONDS * 3 + 30)
    log = stored(system, run)
    assert len(log) > EVENTS
    check_log([json.loads(row.data) for row in log])
    for form, reader in zip(forms, readers, strict=True):
        assert reader.rows == [row.data for row in log], f"{form} is not the log (seed {seed})"
        assert all(log[seq - 1].id == id_ for seq, id_ in reader.ids.items())
    broken = sum(reader.breaks for reader in readers)
    assert broken >= READERS * BREAKS * 0.8
    figures("resume", [f"{len(log)} events, {READERS} readers, {broken} broken connections, seed {seed}"])


@pytest.mark.slow
@pytest.mark.timeout(full(200, 60))
def test_readers_that_stop_reading_slow_no_run_and_get_everything_later(system: System, figures: Callable[..., None]):
    """The run is written for everybody; a sleeping laptop is its own problem, and finds all of it when it wakes."""
    asked = ticks(EVENTS, 0, size=8_000)
    alone = _duration_ms(system, system.run(asked, agent="ticker"))
    with ExitStack() as stack:
        run = system.run(asked, agent="ticker")
        stuck = [stack.enter_context(closing(Stuck(system.http, run))) for _ in range(STUCK)]
        watched = _duration_ms(system, run)
        log = [row.data for row in stored(system, run)]
        before = system.ps().memory_info().rss
        grown = _most_memory(system, STALL_S) - before
        said = f"run alone {alone} ms, with {STUCK} stuck readers {watched} ms; +{grown / 2**20:.1f} MiB in {STALL_S} s"
        figures("readers that do not read", [f"{len(log)} events, {sum(map(len, log)) / 2**20:.0f} MiB: {said}"])
        assert watched < alone * 3 + 2000, said
        assert grown < 16 * 2**20, said
        for reader in stuck:
            assert reader.rest() == log


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_reader_that_does_not_read_holds_less_than_its_share_of_memory(system: System, figures: Callable[..., None]):
    """A page is bounded in bytes: 500 events of 32 KiB would be 16 MiB for each of thousands of readers."""
    run = system.run(ticks(600, 0, size=16_000), agent="ticker")
    assert system.end(run)["state"] == "completed"
    before = system.ps().memory_info().rss
    with ExitStack() as stack:
        for _ in range(CROWD):
            stack.enter_context(closing(Stuck(system.http, run)))
        until(lambda: system.http.get("/health")["readers"] == CROWD, "all readers are served")
        grown = _most_memory(system, 1.0) - before
    said = f"{CROWD} readers hold {grown / 2**20:.1f} MiB"
    figures("memory of readers that do not read", [said])
    assert grown < CROWD * 2 * 2**20, said
    until(lambda: system.http.get("/health")["readers"] == 0, "closed readers are let go")


def _most_memory(system: System, seconds: float) -> int:
    """The most that the server had while we looked."""
    end, most = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        most = max(most, system.ps().memory_info().rss)
        time.sleep(0.05)
    return most


def _duration_ms(system: System, run: str) -> int:
    record = system.end(run, limit_s=120)
    assert record["state"] == "completed", record
    return record["timings"]["running_ms"]


def test_an_offset_that_the_log_never_had_is_answered_by_resync_and_everything(system: System):
    """Beyond the head, of another epoch, or no id at all: the reader is told, and starts over."""
    run = system.run("!tokens n=20 rate=200", agent="diver")
    log = system.events(run)
    for stale in (f"{len(log) + 5}-1", "3-9", "7", "nonsense"):
        with system.http.stream(f"/api/runs/{run}/events?after=2", headers={"Last-Event-ID": stale}) as response:
            found = list(frames(response))
        if stale == "7":  # a seq without an epoch is an offset like any other
            assert [json.loads(data) for _, _, data in found] == log[7:]
            continue
        (id_, kind, said), *rest = found
        notice = json.loads(said)
        assert (id_, kind) == (None, "resync"), f"{stale}: {found[0]}"
        assert notice == {"run": run, "asked": stale, "head": len(log), "epoch": 1}
        assert [json.loads(data) for _, _, data in rest] == log


def test_a_reader_that_is_ahead_of_a_live_run_is_not_left_waiting(system: System):
    """It would wait for ever for an event that others already have under another number."""
    run = system.run("!tokens n=100000 rate=50", agent="diver")
    system.until_text(run, "t1 ")
    headers = {"Last-Event-ID": "100000-1"}
    with system.http.stream(f"/api/runs/{run}/events", headers=headers, limit_s=5) as response:
        assert next(frames(response))[1] == "resync"
        assert json.loads(next(frames(response))[2])["seq"] == 1
    system.stop(run)
    assert system.end(run)["state"] == "cancelled"


def test_after_the_end_there_is_nothing_and_that_is_said(system: System):
    """204 is what makes an EventSource stop coming back."""
    run = system.run("!say over", agent="diver")
    log = system.events(run)
    last = log[-1]
    assert last["type"] in TERMINAL
    status, body = system.http.ask("GET", f"/api/runs/{run}/events?after={last['seq']}")
    assert (status, body) == (204, "")
    assert system.http.ask("GET", f"/api/runs/{run}/events", headers={"Last-Event-ID": f"{last['seq']}-1"})[0] == 204
    page = system.http.ask("GET", f"/api/runs/{run}/events?after={last['seq']}", headers={"Accept": JSON})
    assert page == (200, {"events": [], "head": last["seq"], "state": "completed"})
    until(lambda: system.http.get("/health")["readers"] == 0, "no reader is left")

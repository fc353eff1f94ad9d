"""The kit finds each way in which a log, a resume or a Stop is broken, by name."""

from __future__ import annotations

import pytest

from tests.probe import run_servers
from tests.probe.finding import failures, found

TRIED = ("run.log", "resume.offsets", "stop.mid_stream", "stop.twice")


async def test_sound_runs_pass():
    """A kit that fails everybody finds nothing: what is broken below is sound here."""
    async with run_servers.SoundRuns() as server:
        report = await found(server.url, *TRIED, seed=7, timeout_s=10.0)
    assert failures(report) == {}
    assert report.counts()["passed"] == len(TRIED)


@pytest.mark.parametrize(
    ("broken", "scenario", "words"),
    [
        ("RepeatsOnResume", "resume.offsets", "came again"),
        ("LosesOnResume", "resume.offsets", "is missing"),
        ("ChangesOnResume", "resume.offsets", "other bytes"),
        ("EndsTwice", "run.log", "2 terminal events: run.completed, run.failed"),
        ("TalksOn", "run.log", "after the terminal event come 1 more: text.delta"),
        ("NeverClosesLogs", "run.log", "after the terminal event the stream is still open"),
        ("NeverStops", "stop.mid_stream", "the terminal event: not within"),
        ("StopsWithoutReceipt", "stop.mid_stream", "the terminal event has no receipt"),
    ],
)
async def test_broken_runs_are_found_by_the_scenario_that_breaks(broken: str, scenario: str, words: str):
    """Each promise of a log has a server here that breaks it."""
    async with getattr(run_servers, broken)() as server:
        report = await found(server.url, scenario, seed=7)
    assert list(failures(report)) == [scenario]
    assert words in failures(report)[scenario]
    (result,) = report.results
    assert result.expected
    assert result.promise

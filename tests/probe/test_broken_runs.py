"""The kit finds each way in which a log, a resume or a Stop is broken, by name."""

from __future__ import annotations

import pytest

from holdfast.probe import Report
from tests.probe import run_servers
from tests.probe.finding import Case, all_found, assert_found, failures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

TRIED = ("run.log", "resume.offsets", "stop.mid_stream", "stop.twice")


BROKEN = [
    (run_servers.RepeatsOnResume, "resume.offsets", "came again"),
    (run_servers.LosesOnResume, "resume.offsets", "is missing"),
    (run_servers.ChangesOnResume, "resume.offsets", "other bytes"),
    (run_servers.EndsTwice, "run.log", "2 terminal events: run.completed, run.failed"),
    (run_servers.TalksOn, "run.log", "after the terminal event come 1 more: text.delta"),
    (run_servers.NeverClosesLogs, "run.log", "after the terminal event the stream is still open"),
    (run_servers.NeverStops, "stop.mid_stream", "the terminal event: not within"),
    (run_servers.HangsWhenAskedHowItIs, "server.health", "GET /health: no whole answer within"),
    (run_servers.RunsDieWithTheirReaders, "reader.leaves", "it ended with run.cancelled, reason client_disconnect"),
    (run_servers.StopsWithoutReceipt, "stop.mid_stream", "the terminal event has no receipt"),
]

# What a server that has logs and Stop, and nothing else, is told.
LACKS = {
    "run.forms": "answered with 200",
    "run.once": "the same request twice gave",
    "run.refusals": "POST /api/runs",
    "resume.foreign": "the answer begins with",
    "session.supersede": "the terminal event: not within",
    "session.reject": "on_busy: reject was answered with 201",
    "stop.queued": "the second run of the session is completed",
}


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    """What the kit says of each broken server."""
    cases = {broken.__name__: Case(broken, (scenario,), {"seed": 7}) for broken, scenario, _ in BROKEN}
    cases |= {scenario: Case(run_servers.SoundRuns, (scenario,)) for scenario in LACKS}
    return all_found({**cases, "sound": Case(run_servers.SoundRuns, TRIED, {"seed": 7, "timeout_s": 10.0})})


@pytest.mark.parametrize(("broken", "scenario", "words"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_broken_server_is_found_by_the_scenario_that_it_breaks(
    reports: dict[str, Report], broken: type, scenario: str, words: str
):
    """A conformance kit that cannot fail proves nothing."""
    assert_found(reports[broken.__name__], scenario, words)


def test_sound_runs_pass(reports: dict[str, Report]):
    """A kit that fails everybody finds nothing: what is broken above is sound here."""
    report = reports["sound"]
    assert failures(report) == {}
    assert report.counts()["passed"] == len(TRIED)


@pytest.mark.parametrize(("scenario", "words"), LACKS.items())
def test_what_a_server_lacks_is_found(reports: dict[str, Report], scenario: str, words: str):
    """Each scenario has a server here that fails it: none passes whatever is answered."""
    assert words in failures(reports[scenario])[scenario]

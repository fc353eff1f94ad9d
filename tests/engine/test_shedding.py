"""Retry-After is measured, bounded, and spreads those who were refused over the time in which runs end."""

from __future__ import annotations

import io

import pytest

from holdfast.engine.shedding import Shedding
from holdfast.ports.store import Cap, Shed
from holdfast.telemetry import Log
from holdfast.testing.build import new_run

MOST_S = 60


class Refused:
    """A gateway's shedding on a clock of its own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lines = io.StringIO()
        self.shedding = Shedding(Log(stream=self.lines), MOST_S, lambda: self.now)

    def retry_after(self, shed: Shed, tenant: str = "a") -> int:
        """What one more refused prompt is told."""
        error = self.shedding.refuse(shed, new_run(tenant=tenant))
        found = error.fields["retry_after_s"]
        assert isinstance(found, int)
        return found


def shed(ends: int, ends_ms: int, *, cap: Cap = Cap.RUNS_ACTIVE, found: int = 10, limit: int = 10) -> Shed:
    """A refusal at a full cap."""
    return Shed(cap, limit, found, ends, ends_ms)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (shed(60, 60_000), 1),  # one a second
        (shed(6, 60_000), 10),
        (shed(1, 50_000), 50),
        (shed(6, 60_000, found=12), 30),  # the cap was lowered: three must end before one fits
        (shed(1, 60_000, found=12), MOST_S),
        (shed(100, 0), 1),  # never less than a second
        (shed(0, 7_000), 7),  # none ended: as long again as the oldest has taken
        (shed(0, 3_600_000), MOST_S),
    ],
)
def test_retry_after_is_when_there_will_be_room(said: Shed, seconds: int) -> None:
    """The time that it takes until as many runs have ended as must, at the measured rate."""
    assert Refused().retry_after(said) == seconds


def test_those_who_were_told_before_come_first() -> None:
    """Forty refused at once come back as runs end, not all in the same second; afterwards the line is empty."""
    here = Refused()
    told = [here.retry_after(shed(30, 60_000)) for _ in range(40)]
    assert told[:5] == [2, 4, 6, 8, 10]
    assert told == sorted(told)
    assert told[-1] == MOST_S
    here.now += MOST_S + 1
    assert here.retry_after(shed(30, 60_000)) == 2


def test_each_tenant_has_a_line_of_its_own() -> None:
    """P12: a tenant that floods its cap does not make another's wait longer."""
    here = Refused()
    of_tenant = shed(30, 60_000, cap=Cap.TENANT_RUNS_ACTIVE)
    for _ in range(10):
        here.retry_after(of_tenant, "flood")
    assert here.retry_after(of_tenant, "small") == 2
    assert here.retry_after(of_tenant, "flood") > 20
    assert here.retry_after(shed(30, 60_000), "small") == 2


def test_what_is_remembered_is_bounded() -> None:
    """P7: any number of tenants and of refusals."""
    here = Refused()
    for n in range(1000):
        here.retry_after(shed(1, 1000, cap=Cap.TENANT_RUNS_QUEUED), f"t{n}")
    for _ in range(3000):
        assert 1 <= here.retry_after(shed(1, 60_000)) <= MOST_S
    lines = here.shedding._lines
    assert len(lines) <= 256
    assert max(map(len, lines.values())) <= 1024


@pytest.mark.parametrize(
    ("cap", "code", "status"),
    [
        (Cap.RUNS_ACTIVE, "overloaded", 503),
        (Cap.RUNS_QUEUED, "overloaded", 503),
        (Cap.TENANT_RUNS_ACTIVE, "rate_limited", 429),
        (Cap.TENANT_RUNS_QUEUED, "rate_limited", 429),
    ],
)
def test_a_refusal_names_its_cap(cap: Cap, code: str, status: int) -> None:
    """P8: which cap, how full it is, what to do; in the error and in the log."""
    here = Refused()
    error = here.shedding.refuse(shed(0, 1000, cap=cap, found=12), new_run(run="r_1"))
    assert (error.code, error.status, error.retryable) == (code, status, True)
    assert error.detail.startswith(f"{cap} = 10 is reached: 12 runs")
    assert f"raise {cap}" in error.remedy
    assert (error.fields["cap"], error.fields["limit"]) == (cap, 10)
    line = here.lines.getvalue()
    assert line.startswith("run_refused ")
    assert f"cap={cap} limit=10 found=12" in line

"""A worker whose loop is late takes no more runs until it keeps time again."""

from __future__ import annotations

import io

import pytest

from holdfast.engine.lag import BEAT_S, LagGate
from holdfast.telemetry import Log


class Loop:
    """A loop's beats on a clock of its own."""

    def __init__(self, bound_s: float = 1.0) -> None:
        self.now = 100.0
        self.out = io.StringIO()
        self.gate = LagGate(bound_s, Log(stream=self.out), "w1", lambda: self.now)

    def beats(self, *late_s: float) -> bool:
        """One beat after each of these; whether it is late then."""
        for late in late_s:
            self.now += BEAT_S + late
            self.gate.beat()
        return self.gate.late()

    def lines(self) -> list[str]:
        """What was said."""
        return [line.split(" at=")[0] for line in self.out.getvalue().splitlines()]


def test_a_loop_in_time_takes_work() -> None:
    """Up to the bound, and nothing is said."""
    loop = Loop()
    assert not loop.beats(0, 0.5, 1.0, 0, 0.9)
    assert loop.lines() == []


def test_a_late_beat_pauses_until_three_are_in_time() -> None:
    """One beat in time between two late ones is no recovery; it is said once, and once that it is over."""
    loop = Loop()
    assert loop.beats(1.5)
    assert loop.beats(0, 0)
    assert loop.beats(2.0)
    assert loop.beats(0, 0.6, 0, 0), "0.6 is over half the bound: the count begins anew"
    assert loop.gate.paused
    assert not loop.beats(0)
    assert not loop.gate.paused
    assert loop.lines() == ["claims_paused", "claims_resumed"]
    text = loop.out.getvalue()
    assert "worker=w1 lag_ms=1500" in text
    assert "lag_ms=2000" in text.splitlines()[1]


def test_an_overdue_beat_counts_before_it_comes() -> None:
    """The task that claims may be the first to run after a blockage."""
    loop = Loop()
    loop.beats(0)
    loop.now += BEAT_S + 1.1
    assert loop.gate.late()
    assert loop.lines() == ["claims_paused"]


@pytest.mark.parametrize("late_s", [2.0, 1000.0])
def test_a_bound_of_nothing_never_pauses(late_s: float) -> None:
    """claim_lag_s = 0 is for whoever wants late answers rather than none."""
    assert not Loop(0).beats(late_s)

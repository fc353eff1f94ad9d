"""The heartbeat's look at its loop: while the loop is late, once, with the stack; and the worst lag, once reported."""

from __future__ import annotations

import asyncio
import io
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.config import Settings
from holdfast.domain.ids import RunKey
from holdfast.engine import heartbeat
from holdfast.engine.heartbeat import Heartbeat
from holdfast.telemetry import Log


class Heart:
    """Keeps the facts that were reported."""

    def __init__(self) -> None:
        self.facts: list[dict[str, Any]] = []

    def renew(self, worker: str, held: list[Any], lease_ms: int, facts: dict[str, Any]) -> list[Any]:
        self.facts.append(facts)
        return []


class Case:
    """A heartbeat without its thread and with a clock of its own: the test says when what happens."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lines = io.StringIO()
        self.blamed: RunKey | None = None
        settings = Settings.model_validate({})
        log = Log(stream=self.lines)
        self.beats = Heartbeat(None, settings, log, "w", list, dict, lambda _: None, lambda: self.blamed)  # type: ignore[arg-type]
        self.beats._loop_thread = threading.get_ident()

    def monotonic(self) -> float:
        return self.now

    def late(self, seconds: float) -> None:
        """So long nobody beats."""
        self.now += seconds

    def look(self) -> list[str]:
        """One tick of the thread; the lines of `loop_lag` so far."""
        self.beats._watch()
        return [line for line in self.lines.getvalue().splitlines() if line.startswith("loop_lag ")]

    def reported(self) -> int:
        heart = Heart()
        self.beats._renew(heart)
        return heart.facts[0]["loop_lag_ms"]


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Case:
    made = Case()
    monkeypatch.setattr(heartbeat, "time", made)
    made.beats.beat()
    return made


def test_a_late_loop_is_looked_into_while_it_is_late_and_once(case: Case) -> None:
    """The stack of a second later would accuse the next one."""
    case.blamed = RunKey("local", "r_guilty")
    assert case.look() == []
    case.late(1.0)
    assert case.look() == [], "one beat and a second are allowed"
    case.late(1.0)
    [line] = case.look()
    assert "run=r_guilty" in line
    assert "test_a_late_loop_is_looked_into" in line
    assert "lag_ms=1750" in line
    case.late(1.0)
    assert len(case.look()) == 1, "the same blockage"


def test_lines_about_one_run_are_rare_and_another_run_is_named_at_once(case: Case) -> None:
    """A tool that blocks for a second, a thousand times, must not fill the disk."""
    for name, lines in (("r_a", 1), ("r_a", 1), ("r_b", 2), ("r_b", 2)):
        case.blamed = RunKey("local", name)
        case.beats.beat()
        case.late(3.0)
        assert len(case.look()) == lines
    case.late(20.0)
    case.beats.beat()
    case.late(3.0)
    assert "more=1" in case.look()[-1]


def test_a_lag_that_nobody_could_look_into_is_said_without_a_culprit(case: Case) -> None:
    """A call into C that kept the interpreter: the thread looks when it is over, and accuses nobody."""
    case.blamed = RunKey("local", "r_innocent")
    case.late(3.0)
    case.beats.beat()
    [line] = case.look()
    assert "r_innocent" not in line
    assert "unknown" in line
    assert len(case.look()) == 1


def test_the_worst_lag_of_a_period_is_reported_once(case: Case) -> None:
    """A gauge of the moment would miss every lag between two reports; and a lag that lasts is reported as it grows."""
    case.late(2.0)
    case.beats.beat()
    case.beats.beat()
    assert case.reported() == 1_750
    assert case.reported() == 0, "all is well again, and the time between two beats is no lag"
    case.late(4.0)
    assert case.reported() == 3_750


def test_a_lease_is_doubted_before_anybody_may_take_the_run(case: Case) -> None:
    """Nothing new begins in the last third of a lease that could not be renewed."""
    case.reported()  # which renews
    case.late(6.9)
    assert case.beats.healthy()
    case.late(0.2)
    assert not case.beats.healthy()
    case.reported()
    assert case.beats.healthy()


async def test_a_loop_that_is_blocked_for_good_is_spoken_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that went on renewing for it would keep its runs from everybody, for ever."""
    monkeypatch.setattr(heartbeat, "_TICK_S", 0.01)
    heart, looks = Heart(), []
    store = SimpleNamespace(heart=lambda: heart)
    heart.close = lambda: None  # type: ignore[attr-defined]
    settings = Settings(loop_stall_s=0.1, lease_s=1.0, renew_s=0.01)
    beats = Heartbeat(store, settings, Log(stream=io.StringIO()), "w", list, dict, lambda _: None)  # type: ignore[arg-type]
    watch = beats._watch
    monkeypatch.setattr(beats, "_watch", lambda: (watch(), looks.append(len(heart.facts)))[0])
    beats.start()
    try:
        async with asyncio.timeout(5):
            while not beats._stalled:  # nobody beats
                await asyncio.sleep(0.01)
            renewed, seen = len(heart.facts), len(looks)
            while len(looks) < seen + 5:
                await asyncio.sleep(0.01)
            assert renewed >= 1
            assert len(heart.facts) <= renewed + 1, "one may have been under way"
            beats.beat()
            while len(heart.facts) <= renewed + 1:
                await asyncio.sleep(0.01)
    finally:
        beats.stop()

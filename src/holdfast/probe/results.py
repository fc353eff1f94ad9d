"""What the probe found: a result for each scenario, and the report of all. Pure; names here are in --json and stay.

A scenario returns what it saw, or raises one of two: `Failed` says what happened and what was expected instead,
`Skipped` why it could not be tried here. What was not tried is never called passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

FORMAT: Final = 1  # of the JSON document; it grows when a name changes its meaning

Figures = Mapping[str, float]


class Outcome(StrEnum):
    """How a scenario went."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class Failed(Exception):
    """The server did something else than it should."""

    def __init__(self, happened: str, expected: str, figures: Figures | None = None) -> None:
        """Say both sides, and what was measured until then."""
        super().__init__(f"{happened}; expected: {expected}")
        self.happened = happened
        self.expected = expected
        self.figures = dict(figures or {})


class Skipped(Exception):
    """This cannot be tried here; the message is the reason."""


@dataclass(frozen=True)
class Seen:
    """What a scenario that passed has seen.

    Attributes:
        words: One line for people.
        figures: What was measured; names end in their unit.
    """

    words: str
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One scenario's result.

    Attributes:
        name: Its stable name.
        outcome: passed, failed or skipped.
        about: What it tries, in one sentence.
        promise: What a failure breaks.
        seen: What was seen; of a skipped one, why it was skipped.
        expected: What a failed one should have done.
        figures: What was measured.
        took_ms: How long it took.
    """

    name: str
    outcome: Outcome
    about: str
    promise: str
    seen: str
    expected: str = ""
    figures: Figures = field(default_factory=dict)
    took_ms: float = 0.0

    def document(self) -> dict[str, Any]:
        """As --json has it."""
        return {
            "name": self.name,
            "result": str(self.outcome),
            "about": self.about,
            "seen": self.seen,
            "expected": self.expected or None,
            "promise": self.promise,
            "figures": {name: round(value, 3) for name, value in self.figures.items()},
            "took_ms": round(self.took_ms, 1),
        }


@dataclass
class Report:
    """All that was found, while it is being found: whoever is interrupted has what there is so far.

    Attributes:
        url: What was probed.
        detected: What it is, by name of the fact.
        planned: How many scenarios were chosen.
        results: One for each that was reached.
        prompts: How many prompts were sent.
        took_ms: How long all of it took.
        cut: Why it ended before its end; empty if it did not.
    """

    url: str
    detected: dict[str, Any] = field(default_factory=dict)
    planned: int = 0
    results: list[Result] = field(default_factory=list)
    prompts: int = 0
    took_ms: float = 0.0
    cut: str = ""

    @property
    def complete(self) -> bool:
        """Whether each chosen scenario has a result, and none was left out for want of time."""
        return not self.cut and len(self.results) == self.planned

    @property
    def ok(self) -> bool:
        """Whether all that was chosen was tried or cannot apply, nothing failed, and something was proved."""
        counts = self.counts()
        return self.complete and not counts["failed"] and bool(counts["passed"])

    def counts(self) -> dict[str, int]:
        """How many of each outcome."""
        return {str(outcome): sum(r.outcome is outcome for r in self.results) for outcome in Outcome}

    def document(self) -> dict[str, Any]:
        """As --json has it."""
        return {
            "format": FORMAT,
            "url": self.url,
            "detected": self.detected,
            "ok": self.ok,
            "complete": self.complete,
            "cut": self.cut or None,
            "prompts": self.prompts,
            "took_ms": round(self.took_ms, 1),
            "counts": self.counts(),
            "results": [result.document() for result in self.results],
        }

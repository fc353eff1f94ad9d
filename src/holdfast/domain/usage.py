"""What a run has used, as its log tells it: model requests, tokens, cost.

A response that was cut in the middle, or whose provider reports nothing, has a usage that nobody knows. It is counted
as `unreported` beside the sums, and nothing is made up for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

COST: Final = "cost"
_TOKENS: Final = ("input_tokens", "output_tokens")
_COST_DIGITS: Final = 9


class Usage:
    """A tally over one log, discarded attempts included: they were paid for, too."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._sums: dict[str, int | float] = {}
        self._requested = 0
        self._responded = 0
        self._cut = 0
        self._delegated = 0  # responses to agents that tools have called
        self._silent = 0  # whole responses without a usage
        self._open = False  # a request without its response
        self._characters = 0  # of the open one
        self.model = ""  # of the last request
        self.unreported_characters = 0  # what was streamed by responses of unknown usage

    @property
    def steps(self) -> int:
        """Model calls that were asked for; a call that is repeated after a failure is one."""
        return max(self._requested, self._responded) + self._delegated

    @property
    def tokens(self) -> int:
        """Input and output, as far as they were reported."""
        return sum(int(self._sums.get(name, 0)) for name in _TOKENS)

    @property
    def cost(self) -> float:
        """In the unit of the prices, as far as there are prices."""
        return round(float(self._sums.get(COST, 0.0)), _COST_DIGITS)

    @property
    def unreported(self) -> int:
        """Requests whose usage nobody knows."""
        return self._cut + self._silent + int(self._open)

    def requested(self, model: str, attempt: int) -> None:
        """A request begins. An attempt above 1 repeats one that brought nothing, or that was taken back."""
        if self._open and (self._characters or attempt <= 1):
            self._cut_off()
        self._requested += attempt <= 1
        self._open = True
        self._characters = 0
        self.model = model

    def streamed(self, characters: int) -> None:
        """Content of the response that is open."""
        self._characters += characters

    def responded(self, usage: Mapping[str, Any] | None) -> None:
        """A response is whole."""
        given = usage or {}
        self._responded += 1
        if not reported(given):
            self._silent += 1
            self.unreported_characters += self._characters
        self._open = False
        self._characters = 0
        self._add(given)

    def delegated(self, usage: Mapping[str, Any] | None) -> None:
        """A response to an agent that a tool has called is whole."""
        given = usage or {}
        self._delegated += 1
        self._silent += not reported(given)
        self._add(given)

    def _add(self, given: Mapping[str, Any]) -> None:
        for name, value in given.items():
            if isinstance(value, bool):
                continue
            if isinstance(value, int) or (name == COST and isinstance(value, float)):
                self._sums[name] = self._sums.get(name, 0) + value

    def totals(self) -> dict[str, int | float]:
        """As records and terminal events show it: requests, the sums, and `unreported` where there are such."""
        requests = self._responded + self._delegated + self._cut + int(self._open)
        found: dict[str, int | float] = {"requests": requests} if requests else {}
        found |= self._sums
        if COST in found:
            found[COST] = self.cost
        if self.unreported:
            found["unreported"] = self.unreported
        return found

    def _cut_off(self) -> None:
        self._cut += 1
        self.unreported_characters += self._characters


def reported(usage: Mapping[str, Any]) -> bool:
    """Whether a provider said how many tokens a response took."""
    return any(usage.get(name) for name in _TOKENS)

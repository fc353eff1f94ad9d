"""What a scenario is: a name that stays, one thing that a server must do, and what it needs to be tried."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from holdfast.probe.bench import Bench
from holdfast.probe.detect import Target
from holdfast.probe.results import Seen

_NATIVE: Final = "the server has no native API of Holdfast"
_SCRIPT: Final = "the model is not the rehearsal model, which can be told to do this"


@dataclass(frozen=True)
class Scenario:
    """One scenario.

    Attributes:
        name: `group.what`, as reports and --only have it.
        about: What it tries, in one sentence.
        promise: What a failure breaks.
        prompts: How many prompts it sends at most.
        run: Tries it.
        native: It needs Holdfast's own API.
        scripted: It needs a model that follows scripts.
    """

    name: str
    about: str
    promise: str
    prompts: int
    run: Callable[[Bench], Awaitable[Seen]]
    native: bool = False
    scripted: bool = False

    @property
    def group(self) -> str:
        """The first half of its name."""
        return self.name.partition(".")[0]

    def cannot(self, target: Target) -> str:
        """Why it cannot be tried there; empty if it can."""
        if self.native and not target.holdfast:
            return _NATIVE
        if self.scripted and not target.rehearsal:
            return _SCRIPT
        return ""

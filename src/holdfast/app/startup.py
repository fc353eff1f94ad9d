"""The start in phases: each bounded and timed, each failure collected, all of them in one report with their remedies.

    settings -> store -> tools -> recovery -> ready
             -> models
             -> telemetry

A phase whose need failed is skipped, and the others still run: whoever has three mistakes hears of three. What ends a
start depends on the profile, not on the phase: staging and production exit with the report; dev goes on, is not ready,
and refuses every request with the same report. Nothing is ever simulated in the place of what is missing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, Final

import msgspec

from holdfast.aio import Owner, settle
from holdfast.app.errors import StartError
from holdfast.domain.errors import HoldfastError
from holdfast.domain.secrets import mask
from holdfast.stores.errors import StoreError, StoreTaken
from holdfast.telemetry import Log

PHASES: Final = ("settings", "store", "models", "tools", "telemetry", "recovery", "ready")
STORE_S: Final = 15.0
MODELS_S: Final = 8.0
READY_S: Final = 15.0
SHORT_S: Final = 5.0  # of every other phase
PAUSE_S: Final = 0.5  # between two tries of a phase
_CANCEL_S: Final = 1.0
_WHY_MAX: Final = 4000


class Outcome(StrEnum):
    """How a phase ended."""

    OK = "ok"
    DEGRADED = "degraded"  # an optional part is missing; runs work
    FAILED = "failed"
    SKIPPED = "skipped"  # what it needs failed


class Finding(msgspec.Struct):
    """One phase of a start."""

    phase: str
    outcome: Outcome
    why: str = ""
    duration_ms: int = 0
    tries: int = 1

    @property
    def ok(self) -> bool:
        """Whether the start may go on."""
        return self.outcome in (Outcome.OK, Outcome.DEGRADED)


class Startup:
    """Runs phases, and is the report of them.

    Attributes:
        findings: One for each phase that was reached, in order.
        taken: Another server has the store: to wait until it ends would be to stand in for it unasked.
    """

    def __init__(self, log: Log) -> None:
        """Begin now."""
        self.findings: list[Finding] = []
        self._log = log
        self.taken = False
        self._owner = Owner(lambda name, error: None)  # what a phase raises is in its finding

    @property
    def failed(self) -> list[Finding]:
        """What keeps the server from taking runs."""
        return [finding for finding in self.findings if not finding.ok]

    @property
    def broken(self) -> list[Finding]:
        """What failed by itself, and not for want of another phase."""
        return [finding for finding in self.findings if finding.outcome is Outcome.FAILED]

    @property
    def started(self) -> bool:
        """Whether every phase has ended well."""
        return not self.failed and len(self.findings) == len(PHASES)

    def ok(self, *phases: str) -> bool:
        """Whether these phases have ended well."""
        return all(any(found.phase == name and found.ok for found in self.findings) for name in phases)

    async def run(
        self,
        phase: str,
        work: Callable[[], Awaitable[str | None]],
        *,
        needs: tuple[str, ...] = (),
        limit_s: float,
        tries: int = 1,
    ) -> bool:
        """Carry out one phase; whether it ended well.

        Args:
            phase: One of `PHASES`.
            work: Does it; answers what is degraded, if anything is, and raises what fails.
            needs: Phases without which it is skipped.
            limit_s: For all tries together; work that does not end by then is cancelled, and left behind if it stays.
            tries: How often it is tried where it fails.
        """
        if missing := [need for need in needs if not self.ok(need)]:
            self._take(Finding(phase, Outcome.SKIPPED, f"needs {', '.join(missing)}", 0, 0))
            return False
        began, tried, why, degraded = time.monotonic(), 0, "", ""
        while True:
            tried += 1
            left_s = limit_s - (time.monotonic() - began)
            why, degraded = await self._try(work, phase, left_s)
            again_s = limit_s - (time.monotonic() - began)
            if not why or self.taken or tried >= tries or again_s <= PAUSE_S:
                break
            await asyncio.sleep(PAUSE_S)
        outcome = Outcome.FAILED if why else Outcome.DEGRADED if degraded else Outcome.OK
        took = round((time.monotonic() - began) * 1000)
        self._take(Finding(phase, outcome, mask(why or degraded)[:_WHY_MAX], took, tried))
        return not why

    def mend(self, phase: str) -> None:
        """What failed at the start works now."""
        for finding in self.findings:
            if finding.phase == phase:
                finding.outcome, finding.why = Outcome.OK, ""

    def document(self) -> dict[str, Any]:
        """The report, for /startupz and /readyz."""
        phases = [msgspec.to_builtins(found) | {"ok": found.ok} for found in self.findings]
        return {"started": self.started, "phases": phases}

    def summary(self) -> str:
        """What failed, in one line."""
        return "; ".join(f"{found.phase}: {_one_line(found.why)}" for found in self.broken)

    def check(self) -> None:
        """Raise StartError with the whole report unless every phase has ended well."""
        bad = self.broken
        if len(bad) == 1:
            raise StartError(f"cannot start: {bad[0].why}", self)
        if bad:
            raise StartError("\n".join([f"cannot start: {len(bad)} phases failed", *table(self)]), self)

    async def _try(self, work: Callable[[], Awaitable[str | None]], phase: str, limit_s: float) -> tuple[str, str]:
        """Why it failed, and what is degraded."""
        task = self._owner.spawn(_as_coroutine(work), f"start {phase}")
        try:
            late = await settle([task], limit_s)
        except asyncio.CancelledError:
            await _give_up(task)
            raise
        if late:
            await _give_up(task)
            return f"not done within {limit_s:.0f} s; see what it waits on, and start again", ""
        try:
            return "", task.result() or ""
        except HoldfastError as error:
            return f"{error.detail}; {error.remedy}" if error.remedy else error.detail, ""
        except (StartError, StoreError) as error:
            self.taken = self.taken or isinstance(error, StoreTaken)
            return str(error).removeprefix("cannot start: "), ""
        except Exception as error:  # noqa: BLE001 - whatever it is, it is why the server does not start
            return f"{type(error).__name__}: {error}", ""

    def _take(self, finding: Finding) -> None:
        self.findings.append(finding)
        if finding.outcome is Outcome.DEGRADED:
            self._log.write("degraded", what=finding.phase, why=_one_line(finding.why))
        elif finding.outcome is Outcome.FAILED:
            self._log.write("start_failed", phase=finding.phase, outcome=finding.outcome, why=_one_line(finding.why))


def table(startup: Startup) -> list[str]:
    """The report for people: one line a phase, longer explanations below their phase."""
    lines = []
    for found in startup.findings:
        first, *rest = found.why.splitlines() or [""]
        time_ms = f"{found.duration_ms} ms" if found.tries else ""
        lines.append(f"  {found.phase:<10} {found.outcome:<9} {time_ms:>9}  {first}".rstrip())
        lines += [f"  {'':<10} {'':<9} {'':>9}  {line}" for line in rest]
    return lines


async def _give_up(task: asyncio.Task[str | None]) -> None:
    """Cancel it; what ignores that is left behind."""
    task.cancel()
    await settle([task], _CANCEL_S)


async def _as_coroutine(work: Callable[[], Awaitable[str | None]]) -> str | None:
    return await work()


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]

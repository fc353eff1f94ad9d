"""Runs the scenarios one after the other, and never hangs itself.

Four limits hold, each inside the next: a wait (`timeout_s`), a scenario (three waits, fifteen seconds and four lone
answers), all of them (`total_s`), and whoever presses Ctrl-C, who has what was found so far in the report.

After a failure a plain prompt is sent. If that is not answered either, the server is down for good: what is left is
skipped, and says after what. So a server that hangs is found by the name of the scenario that hung it, in the time of
one wait, and not of thirty.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from holdfast.probe.bench import Bench
from holdfast.probe.catalogue import ALL
from holdfast.probe.detect import Target
from holdfast.probe.options import ANSWER_S, Options
from holdfast.probe.results import Failed, Outcome, Report, Result, Seen, Skipped
from holdfast.probe.scenario import Scenario
from holdfast.probe.wire import Broke, Silent, Unreachable, Wire

_WAITS: Final = 3
_MORE_S: Final = 15.0
_ANSWERS: Final = 4  # as long as a lone one; a model that talks for minutes is no hang

OnResult = Callable[[Result], None]


class UnknownScenario(ValueError):
    """--only names nothing that there is."""


def choose(only: Sequence[str]) -> tuple[Scenario, ...]:
    """The scenarios of these names or groups, in order; all without any.

    Raises:
        UnknownScenario: A name is neither.
    """
    known = {s.name for s in ALL} | {s.group for s in ALL}
    if unknown := [name for name in only if name not in known]:
        groups = ", ".join(dict.fromkeys(s.group for s in ALL))
        raise UnknownScenario(f"no scenario is named {unknown[0]!r}; groups are {groups}, and --list lists all")
    return tuple(s for s in ALL if not only or s.name in only or s.group in only)


def plan(target: Target, chosen: Sequence[Scenario]) -> tuple[int, int]:
    """How many of these scenarios can be tried there, and how many prompts they send at most."""
    fit = [s for s in chosen if not s.cannot(target) and target.kind != "silent"]
    return len(fit), sum(s.prompts for s in fit)


class Probe:
    """One probe of one server; the report grows while it works."""

    def __init__(self, options: Options, wire: Wire, target: Target, chosen: Sequence[Scenario]) -> None:
        self.options = options
        self.report = Report(wire.url, target.document(), len(chosen))
        self._wire = wire
        self._target = target
        self._chosen = chosen
        self._down = ""

    async def run(self, on_result: OnResult) -> None:
        """Try each scenario; `on_result` is called with each result as it is found."""
        began = time.monotonic()
        bench = Bench(self.options, self._target, self._wire)
        self.report.cut = "interrupted"  # until it is not
        limit = asyncio.timeout(self.options.total_s)
        try:
            async with limit:
                for scenario in self._chosen:
                    result = await self._try(bench, scenario)
                    self.report.results.append(result)
                    self.report.prompts = bench.sent
                    on_result(result)
                self.report.cut = ""
        except TimeoutError:
            if not limit.expired():
                raise
            self.report.cut = f"all of it may take {self.options.total_s:g} s, and that was over (--total)"
        finally:
            self.report.took_ms = (time.monotonic() - began) * 1000
            self.report.prompts = bench.sent
            await bench.aclose()

    async def _try(self, bench: Bench, scenario: Scenario) -> Result:
        began = time.monotonic()
        reason = self._down or scenario.cannot(self._target)
        if reason:
            return _result(scenario, Outcome.SKIPPED, reason, began)
        result = await self._judged(bench, scenario, began)
        await bench.tidy()
        if result.outcome is Outcome.FAILED:
            await self._look_whether_it_is_down(bench, scenario)
        return result

    async def _judged(self, bench: Bench, scenario: Scenario, began: float) -> Result:
        limit_s = _WAITS * self.options.timeout_s + _MORE_S + _ANSWERS * (bench.lone_took_s or 0.0)
        try:
            async with asyncio.timeout(limit_s):
                seen: Seen = await scenario.run(bench)
        except Skipped as skipped:
            return _result(scenario, Outcome.SKIPPED, str(skipped), began)
        except Failed as failed:
            return _result(scenario, Outcome.FAILED, failed.happened, began, failed)
        except Silent as silent:
            return _result(scenario, Outcome.FAILED, str(silent), began, Failed("", "an answer in this time"))
        except (Broke, Unreachable) as error:
            return _result(scenario, Outcome.FAILED, str(error), began, Failed("", "an answer"))
        except TimeoutError:
            happened = f"the scenario was not over within {limit_s:.0f} s, though something came all the time"
            return _result(
                scenario,
                Outcome.FAILED,
                happened,
                began,
                Failed("", "its end (for a model that talks long: --max-tokens, --prompt)"),
            )
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            # Whatever a broken server answers must not end the probe: a field that is not there is a finding.
            happened = f"an answer lacks what it should have: {type(error).__name__}: {error}"
            return _result(scenario, Outcome.FAILED, happened, began, Failed("", "the documented shape"))
        return _result(scenario, Outcome.PASSED, seen.words, began, figures=seen)

    async def _look_whether_it_is_down(self, bench: Bench, scenario: Scenario) -> None:
        """After a failure: is anything answered any more?"""
        try:
            if scenario.prompts:
                chat = await bench.chat(bench.short("are you there")).first()
                chat.stream.leave()
            elif self._target.alive:
                await self._wire.ask("GET", self._target.alive, limit_s=ANSWER_S)
            else:
                self._down = f"the server answers nothing: see {scenario.name}"
        except Skipped:
            pass  # it refuses for load, so it answers
        except (Silent, Broke, Unreachable, Failed) as error:
            why = error.happened if isinstance(error, Failed) else error
            self._down = f"after {scenario.name} a plain prompt is not answered either: {why}"[:300]
        finally:
            await bench.tidy()


def _result(
    scenario: Scenario,
    outcome: Outcome,
    seen: str,
    began: float,
    failed: Failed | None = None,
    figures: Seen | None = None,
) -> Result:
    measured = failed.figures if failed else figures.figures if figures else {}
    return Result(
        scenario.name,
        outcome,
        scenario.about,
        scenario.promise,
        seen,
        failed.expected if failed else "",
        measured,
        (time.monotonic() - began) * 1000,
    )

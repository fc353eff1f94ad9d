"""Runs the kit in this process, against servers of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

from holdfast.probe import Options, Probe, Report, Wire, choose, detect

LIMIT_S = 25.0
AT_ONCE = 6


async def found(url: str, *only: str, **options: Any) -> Report:
    """What the kit says of a server; the kit itself may take no longer than a test."""
    given = Options(url, **{"timeout_s": 2.0, "slack_s": 0.2, "leave_s": 0.3, **options})
    wire = Wire(url, None, given.timeout_s)
    try:
        async with asyncio.timeout(LIMIT_S):
            target = await detect(wire, given)
            probe = Probe(given, wire, target, choose(only))
            await probe.run(lambda result: None)
    finally:
        await wire.aclose()
    return probe.report


class Case(NamedTuple):
    """A server, and what it is asked: scenarios, all of them without any, and options."""

    kind: Callable[[], AbstractAsyncContextManager[Any]]
    only: tuple[str, ...] = ()
    options: Mapping[str, Any] = {}
    stats: bool = False  # it is its own model, and can be asked for open answers


def all_found(cases: Mapping[str, Case]) -> dict[str, Report]:
    """What the kit says in each case; several at a time, because most of a case is waiting."""

    async def one(case: Case) -> Report:
        async with few, case.kind() as server:
            stats = {"upstream_stats": server.url} if case.stats else {}
            return await found(server.url, *case.only, **stats, **case.options)

    async def every() -> list[Report]:
        return await asyncio.gather(*map(one, cases.values()))

    few = asyncio.Semaphore(AT_ONCE)
    return dict(zip(cases, asyncio.run(every()), strict=True))


def outcomes(report: Report) -> dict[str, str]:
    """Each scenario's outcome by its name."""
    return {result.name: str(result.outcome) for result in report.results}


def failures(report: Report) -> dict[str, str]:
    """What happened in each scenario that failed."""
    return {result.name: result.seen for result in report.results if result.outcome == "failed"}


def assert_found(report: Report, scenario: str, words: str) -> None:
    """The one scenario that was tried has failed, says what was seen, and what it should have been."""
    assert list(failures(report)) == [scenario]
    assert words in failures(report)[scenario]
    assert not report.ok
    (result,) = report.results
    assert result.expected
    assert result.promise

"""What a prompt is told that a cap keeps out: which cap, how full it is, and when to come again.

Retry-After is no constant. The store says with each refusal how many runs ended of late and in how long: that is how
fast there will be room. Where none ended it says how long the oldest has been there, and the guess is as long again,
shared by all that are. Whoever is refused here while others of the same cap have been told to come again is told a
time behind theirs, so that they come back one after another, about as fast as runs end, and not all at once.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from holdfast.domain.errors import HoldfastError
from holdfast.ports.store import Cap, NewRun, Shed
from holdfast.telemetry import Log

_LEAST_S: Final = 1.0
_LINES_MAX: Final = 256  # caps and tenants whose refused are remembered
_LINE_MAX: Final = 1024  # refused of one of them


class Shedding:
    """Counts, in this process, whom it told to come again and when."""

    def __init__(self, log: Log, most_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Take the longest Retry-After."""
        self._log = log
        self._most_s = most_s
        self._monotonic = monotonic
        self._lines: dict[tuple[Cap, str], deque[float]] = {}

    def refuse(self, shed: Shed, new: NewRun) -> HoldfastError:
        """The error that says it; written to the log, too."""
        tenant = new.key.tenant if shed.cap.of_tenant else ""
        retry_after_s = self._in_line(shed, tenant)
        self._log.write(
            "run_refused",
            trace=new.spec.trace,
            run=new.key.run,
            session=new.session,
            cap=shed.cap.value,
            limit=shed.limit,
            found=shed.found,
            retry_after_s=retry_after_s,
        )
        what = "queued" if shed.cap in (Cap.RUNS_QUEUED, Cap.TENANT_RUNS_QUEUED) else "unfinished"
        who = "of yours" if shed.cap.of_tenant else "of all tenants"
        return HoldfastError(
            "rate_limited" if shed.cap.of_tenant else "overloaded",
            f"{shed.cap.value} = {shed.limit} is reached: {shed.found} runs {who} are {what}",
            remedy=f"wait for Retry-After seconds, end a run of yours, or raise {shed.cap.value}",
            retry_after_s=retry_after_s,
            cap=shed.cap.value,
            limit=shed.limit,
        )

    def _in_line(self, shed: Shed, tenant: str) -> int:
        """Seconds until as many runs will have ended as stand before this one."""
        now = self._monotonic()
        line = self._line(shed.cap, tenant)
        while line and line[0] <= now:
            line.popleft()
        before = max(0, shed.found - shed.limit) + len(line)
        measured_s = max(shed.ends_ms, 1) / 1000
        each_s = measured_s / (shed.ends or max(shed.found, 1))
        wait_s = (each_s if shed.ends else measured_s) + before * each_s
        wait_s = math.ceil(min(self._most_s, max(_LEAST_S, wait_s)))
        if not line or now + wait_s >= line[-1]:  # else runs end faster than when the last one was told
            line.append(now + wait_s)
        return wait_s

    def _line(self, cap: Cap, tenant: str) -> deque[float]:
        line = self._lines.pop((cap, tenant), None)
        if line is None:
            line = deque(maxlen=_LINE_MAX)
            while len(self._lines) >= _LINES_MAX:
                del self._lines[next(iter(self._lines))]
        self._lines[(cap, tenant)] = line  # the last one used stands last
        return line

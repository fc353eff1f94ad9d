"""What a process says of itself beside what it has counted."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from holdfast.telemetry.log import Log
from holdfast.telemetry.totals import Totals

_DESCRIPTORS: Final = ("/proc/self/fd", "/dev/fd")  # Linux; macOS


def add_losses(totals: Totals, log: Log, process: str) -> None:
    """What was dropped in this process: lines of the log, and records by sink."""
    totals.add("holdfast_log_lines_dropped_total", process, by=float(log.dropped))
    for pump in log.telemetry.pumps:
        totals.add("holdfast_telemetry_dropped_total", process, pump.name, by=float(pump.dropped))
        totals.add("holdfast_telemetry_failures_total", process, pump.name, by=float(pump.failures))


def process_facts() -> dict[str, Any]:
    """Threads, open descriptors, processor time and memory of this process, from any thread, without waiting.

    `fds` and `rss_bytes` are None where the system does not show them.
    """
    return {
        "threads": threading.active_count(),
        "fds": _descriptors(),
        "cpu_s": round(sum(os.times()[:2]), 2),
        "rss_bytes": _memory(),
    }


def _descriptors() -> int | None:
    for path in _DESCRIPTORS:
        with suppress(OSError):
            return len(os.listdir(path)) - 1  # one is the listing's own
    return None


def _memory() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None

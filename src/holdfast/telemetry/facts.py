"""What a process says of itself beside what it has counted."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from holdfast.telemetry.log import Log
from holdfast.telemetry.totals import Totals


def add_losses(totals: Totals, log: Log, process: str) -> None:
    """What was dropped in this process: lines of the log, and records by sink."""
    totals.add("holdfast_log_lines_dropped_total", process, by=float(log.dropped))
    for pump in log.telemetry.pumps:
        totals.add("holdfast_telemetry_dropped_total", process, pump.name, by=float(pump.dropped))
        totals.add("holdfast_telemetry_failures_total", process, pump.name, by=float(pump.failures))


def process_facts() -> dict[str, float]:
    """Threads, descriptors and memory of this process; where the system does not say, less of them."""
    facts: dict[str, float] = {"threads": threading.active_count(), "cpu_s": round(sum(os.times()[:2]), 2)}
    try:
        facts["open_fds"] = len(os.listdir("/proc/self/fd")) - 1
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        facts["rss_bytes"] = pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return facts
    return facts

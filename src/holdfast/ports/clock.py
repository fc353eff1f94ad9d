"""Two clocks: one that durations and leases are measured on, one that people read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """A source of time; every time the store compares comes from one clock of the store's own host."""

    def now_ms(self) -> int:
        """Milliseconds that never jump while the machine is up, suspend included."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970, for people."""
        ...

    def boot_id(self) -> str:
        """Changes when `now_ms` started anew."""
        ...


class SystemClock:
    """CLOCK_BOOTTIME where the system has it (Linux), else the monotonic clock (macOS)."""

    def __init__(self) -> None:
        """Choose the clock once."""
        self._clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        try:
            self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except OSError:
            self._boot_id = f"started-{round(time.time() - time.clock_gettime(self._clock), -1):.0f}"

    def now_ms(self) -> int:
        """Milliseconds since boot."""
        return int(time.clock_gettime(self._clock) * 1000)

    def wall_ms(self) -> int:
        """Milliseconds since 1970."""
        return int(time.time() * 1000)

    def boot_id(self) -> str:
        """The kernel's boot id, or the time of boot to ten seconds."""
        return self._boot_id

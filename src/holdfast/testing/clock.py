"""A clock that a test moves by hand."""

from __future__ import annotations

_START_MS = 1_000_000
_START_WALL_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z


class ManualClock:
    """Stands still until `advance`; a `Clock` for stores whose time a test decides."""

    def __init__(self) -> None:
        """Start somewhere that is neither zero nor now."""
        self._now_ms = _START_MS
        self._wall_ms = _START_WALL_MS
        self._boots = 1

    def now_ms(self) -> int:
        """Milliseconds since this machine booted."""
        return self._now_ms

    def wall_ms(self) -> int:
        """Milliseconds since 1970."""
        return self._wall_ms

    def boot_id(self) -> str:
        """Changes with `reboot`."""
        return f"boot-{self._boots}"

    def advance(self, ms: int) -> None:
        """Let `ms` milliseconds pass."""
        self._now_ms += ms
        self._wall_ms += ms

    def reboot(self, away_ms: int = 30_000) -> None:
        """Begin a new boot: `now_ms` starts anew near zero, `away_ms` of wall time later."""
        self._boots += 1
        self._now_ms = 1_000
        self._wall_ms += away_ms

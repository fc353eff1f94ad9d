"""A disk of 20 MB: a tmpfs that the test mounts, which only root may do."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SIZE_MB = 20


@contextmanager
def small_disk(at: Path) -> Iterator[Path]:
    """Mount it at `at`; the test is skipped, and says why, where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a disk of 20 MB; run as root: sudo make test")
    at.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "holdfast-test", str(at)],
        capture_output=True,
        text=True,
        timeout=5,
        check=False,
    )
    if mounting.returncode:
        pytest.skip(f"needs to mount a disk of 20 MB, which is not allowed here: {mounting.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], timeout=5, check=True)


class Filler:
    """A file that takes what the disk has left, as somebody else's log would."""

    def __init__(self, disk: Path) -> None:
        self.path = disk / "somebody-elses.log"

    def fill(self) -> int:
        """Take everything, to the last byte; how many bytes there are."""
        with self.path.open("ab", buffering=0) as file:
            for size in (65_536, 4_096, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    continue
        return self.path.stat().st_size

    def free(self) -> None:
        self.path.unlink()

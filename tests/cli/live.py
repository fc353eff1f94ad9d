"""A real `holdfast` server in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.environment import clean

START_S = 30.0


class Server:
    """A `holdfast` server process, its log in a file, its address from its first line."""

    def __init__(self, directory: Path, *command: str, **settings: str) -> None:
        self.log = directory / "server.log"
        env = clean()
        env |= {f"HOLDFAST_{name.upper()}": value for name, value in settings.items()}
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "holdfast", *command],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env=env,
                start_new_session=True,
            )
        try:
            self.url = self._wait_for_url()
        except BaseException:  # else it would go on for ever, and slow down what comes after
            self.kill()
            raise

    def close(self) -> int:
        """Ask it to end; its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise

    def _wait_for_url(self) -> str:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            found = re.search(r"(?:serves|model at) (http://[^\s/]+)", self.log.read_text())
            if found:
                return found[1]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(f"not serving after {START_S} s: {self.log.read_text()}")

    def kill(self) -> None:
        """End it as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(5)

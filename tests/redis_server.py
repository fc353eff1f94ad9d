"""A redis-server of our own: on a free port in a temporary directory, ended with the tests."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import redis

START_S = 10.0
MISSING = "no redis-server: the store on Redis is NOT tested; scripts/system-packages redis-server installs it"


def redis_server_program() -> str:
    """Where it is; a test that needs it says so where it is not."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        if os.geteuid() == 0:
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    return found


class RedisServer:
    """Started with its own directory; may be paused, killed and started again on the same data."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self._options = options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start and wait until it answers; a port that somebody took meanwhile, or none, is a clear failure."""
        program = redis_server_program()
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""]
        with (self.directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, *arguments, *self._options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            assert self._process.poll() is None, (self.directory / "redis.log").read_text()[-2000:]
            with contextlib.suppress(redis.RedisError), self.client() as client:
                if client.ping():
                    return
            time.sleep(0.02)
        raise AssertionError(f"redis-server did not answer within {START_S} s")

    def client(self) -> redis.Redis:
        """For what the store itself does not do."""
        return redis.Redis(port=self.port, socket_timeout=5, protocol=2)

    def signal(self, number: int) -> None:
        """SIGSTOP, SIGCONT, or what ends it."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """As a crash, or the OOM killer."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self.kill()

"""Clients from npm, run by node against a live server; exact versions, as tests/npm_streams pins them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.environment import clean

PACKAGE = Path(__file__).resolve().parents[1] / "npm_streams"
LIMIT_S = 100.0
INSTALL_S = 240.0
_OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ECONNRESET", "network")


def node_program() -> str:
    """Where node is; installs what tests/npm_streams pins, once. A test that needs either says what is missing."""
    found, npm = shutil.which("node"), shutil.which("npm")
    if found is None or npm is None:
        pytest.skip("no node or no npm: the AI SDK, AG-UI and Durable Streams are NOT tested with their own clients")
    lock, done = PACKAGE / "package-lock.json", PACKAGE / "node_modules" / ".holdfast-installed"
    if not done.exists() or done.read_bytes() != lock.read_bytes():
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        made = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        if made.returncode != 0 and any(word in made.stderr for word in _OFFLINE):
            pytest.skip(f"npm ci reached no registry: nothing is tested with clients from npm\n{made.stderr[-500:]}")
        assert made.returncode == 0, made.stderr[-3000:]
        done.write_bytes(lock.read_bytes())
    return found


def node(script: str, url: str, limit_s: float = LIMIT_S, **job: Any) -> Any:
    """What a script answers to one job."""
    asked = json.dumps({**job, "url": url, "limit_ms": int(limit_s * 900)})
    done = subprocess.run(
        [node_program(), str(PACKAGE / script), asked],
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
        env={**clean(), "PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, f"{job}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout)

"""Each way in which a tracer can be broken, as settings.

    python -m tests.telemetry.modes [pytest arguments]

runs pytest once in each mode: with HOLDFAST_TRACER or HOLDFAST_OTEL_ENDPOINT, which the servers of the tests inherit
(tests/environment.py), and which tests/conftest.py gives to those that have no process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BAD = "tests.telemetry.bad:"
MODES: dict[str, dict[str, str]] = {
    "absent": {},
    "none": {"HOLDFAST_TRACER": f"{_BAD}nothing"},
    "returning none": {"HOLDFAST_TRACER": f"{_BAD}Nothing"},
    "raising": {"HOLDFAST_TRACER": f"{_BAD}Raising"},
    "hanging 30 s": {"HOLDFAST_TRACER": f"{_BAD}Hanging"},
    "exporter unreachable": {"HOLDFAST_OTEL_ENDPOINT": "http://127.0.0.1:9"},
    "exiting": {"HOLDFAST_TRACER": f"{_BAD}Exiting"},
    "spans that fail": {"HOLDFAST_TRACER": f"{_BAD}BadSpans"},
    "missing module": {"HOLDFAST_TRACER": "no_such_module:tracer"},
}
IN_CI = 6  # the first ones; the others with HOLDFAST_FULL=1, and in test_facade


def environment(mode: str) -> dict[str, str]:
    """What a process needs to be in a mode; the root of the sources, so that a worker finds the tracers."""
    return MODES[mode] | {"PYTHONPATH": str(ROOT)}


def main(arguments: list[str]) -> int:
    """Run pytest in each mode; how many of the runs failed."""
    failed = []
    for mode in MODES:
        sys.stderr.write(f"== tracer {mode}\n")
        command = [sys.executable, "-m", "pytest", "-q", *(arguments or ["tests"])]
        if subprocess.run(command, cwd=ROOT, env=os.environ | environment(mode), check=False).returncode:
            failed.append(mode)
    sys.stderr.write(f"{len(MODES) - len(failed)} of {len(MODES)} modes pass; failed: {', '.join(failed) or 'none'}\n")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

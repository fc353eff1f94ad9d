"""The environment of the processes that tests start: none of the caller's settings, but the telemetry mode's."""

from __future__ import annotations

import os

# `make telemetry-modes` runs the suite with each kind of broken tracer: these name it (tests/telemetry/modes.py).
MODE = ("HOLDFAST_TRACER", "HOLDFAST_OTEL_ENDPOINT")


def clean() -> dict[str, str]:
    """This process's environment without settings of Holdfast."""
    return {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_") or k in MODE}

"""What the process says of itself. Nothing here can raise into a run, or make it wait."""

from holdfast.telemetry.facade import NULL, Follower, Pump, Scope, Sink, Telemetry
from holdfast.telemetry.log import Log
from holdfast.telemetry.streams import ensure_descriptors, guard_prints
from holdfast.telemetry.totals import Totals, WorkersTotals

__all__ = [
    "NULL",
    "Follower",
    "Log",
    "Pump",
    "Scope",
    "Sink",
    "Telemetry",
    "Totals",
    "WorkersTotals",
    "ensure_descriptors",
    "guard_prints",
]

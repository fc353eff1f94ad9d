"""What the process says of itself. Nothing here can raise into a run, or make it wait."""

from holdfast.telemetry.log import Log

__all__ = ["Log"]

"""What agents' tools run in: a bounded pool of threads, the name of the call at hand, and its word to the reader."""

from holdfast.tools.calls import CurrentCall, current_call, in_call
from holdfast.tools.pool import ToolPool, ToolQueueTimeout
from holdfast.tools.progress import Reporter, progress, reporting

__all__ = [
    "CurrentCall",
    "Reporter",
    "ToolPool",
    "ToolQueueTimeout",
    "current_call",
    "in_call",
    "progress",
    "reporting",
]

"""What agents' tools run in: a bounded pool of threads, and the name of the call at hand."""

from holdfast.tools.calls import CurrentCall, current_call, in_call
from holdfast.tools.pool import ToolPool, ToolQueueTimeout

__all__ = ["CurrentCall", "ToolPool", "ToolQueueTimeout", "current_call", "in_call"]

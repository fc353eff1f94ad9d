"""What an isolated tool raises for pydantic-ai to read, which its own process cannot hand over as it is."""

from __future__ import annotations

from typing import Final

from pydantic_ai import ModelRetry, ToolFailed

from holdfast.tools import ToolRaised

_MEANT: Final = {f"{kind.__module__}.{kind.__name__}": kind for kind in (ModelRetry, ToolFailed)}


def as_raised(error: Exception) -> Exception:
    """`error`, or the word to the model that it was in the tool's process: ask again, or this failed."""
    kind = _MEANT.get(error.kind) if isinstance(error, ToolRaised) else None
    return error if kind is None else kind(str(error))

"""The shape of a history, and what a repair changed of it: kinds and counts, for `inspect`; no content.

A repair replaces a part that it changes, so parts are told apart by identity: a new part beside one that went, of the
same kind, is a changed one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic_ai.messages import ModelMessage, ModelRequest, repair_messages


def report(given: Sequence[ModelMessage], mended: Sequence[ModelMessage]) -> dict[str, Any]:
    """What a session left, and what was made of it: by us, then by the agent library before its first request."""
    sent = repair_messages(mended)
    return {
        "messages": len(sent),
        "turns": dict(Counter("user" if isinstance(m, ModelRequest) else "assistant" for m in sent)),
        "parts": _kinds(sent),
        "mended": changes(given, mended),
        "library": changes(mended, sent),
    }


def changes(before: Sequence[ModelMessage], after: Sequence[ModelMessage]) -> dict[str, Any]:
    """What became of `before`; {} if nothing did."""
    old, new = _by_identity(before), _by_identity(after)
    came = Counter(kind for part, kind in new.items() if part not in old)
    went = Counter(kind for part, kind in old.items() if part not in new)
    both = came & went
    found = {
        "added": dict(came - both),
        "removed": dict(went - both),
        "changed": dict(both),
        "messages": len(after) - len(before),
    }
    return {name: value for name, value in found.items() if value}


def _by_identity(messages: Iterable[ModelMessage]) -> dict[int, str]:
    return {id(part): part.part_kind for message in messages for part in message.parts}


def _kinds(messages: Iterable[ModelMessage]) -> dict[str, int]:
    return dict(Counter(part.part_kind for message in messages for part in message.parts))

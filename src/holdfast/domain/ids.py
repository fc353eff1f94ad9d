"""Ids of runs, sessions and calls, and the event id `<seq>-<epoch>` that readers resume from."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from typing import Final, NamedTuple

ID_PATTERN: Final = r"[A-Za-z0-9._:-]{1,128}"
LOCAL_TENANT: Final = "local"
# Whose runs prove that runs are taken; no key and no token names it (gateway.tokens.tenant_id), and no list shows it.
SYNTHETIC_TENANT: Final = "::synthetic"
SYNTHETIC_AGENT: Final = "<synthetic>"  # not an id, so that no agent of a user can have this name

_ID = re.compile(ID_PATTERN)
_EVENT_ID = re.compile(r"([0-9]{1,15})(?:-([0-9]{1,15}))?")
_ALPHABET: Final = string.ascii_letters + string.digits
_RANDOM_CHARACTERS: Final = 20  # 119 bits


class RunKey(NamedTuple):
    """A run as the store knows it: ids are unique per tenant only."""

    tenant: str
    run: str


class EventId(NamedTuple):
    """Where a reader is: the last `seq` it has, and the epoch that wrote it if it knows (else None)."""

    seq: int
    epoch: int | None

    def __str__(self) -> str:
        """`<seq>-<epoch>`, as SSE's `id:` carries it."""
        return str(self.seq) if self.epoch is None else f"{self.seq}-{self.epoch}"


def new_run_id() -> str:
    """A fresh run id with 119 random bits."""
    return "r_" + _random()


def new_session_id() -> str:
    """A fresh session id with 119 random bits."""
    return "s_" + _random()


def new_claim_token() -> str:
    """The random half of a fence: tells two claims apart that a failover gave the same epoch."""
    return "c_" + _random()


def is_id(text: str) -> bool:
    """Whether `text` may be an id: 1 to 128 of [A-Za-z0-9._:-]."""
    return _ID.fullmatch(text) is not None


def parse_event_id(text: str) -> EventId | None:
    """Read a seq (`7`) or an event id (`7-2`); None where it is neither."""
    match = _EVENT_ID.fullmatch(text)
    if match is None:
        return None
    return EventId(int(match[1]), None if match[2] is None else int(match[2]))


def trace_id(run: str, trace: str = "") -> str:
    """The W3C trace id of a run, 32 hex digits: the one its client sent, else one that follows from its id."""
    known = len(trace) == 32 and trace.strip("0") and not trace.strip("0123456789abcdef")
    return trace if known else hashlib.sha256(run.encode()).hexdigest()[:32]


def span_id(run: str) -> str:
    """The W3C span id of the request that made a run: known to the gateway and to the worker alike."""
    return hashlib.sha256(b"request " + run.encode()).hexdigest()[:16]


def _random() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARACTERS))

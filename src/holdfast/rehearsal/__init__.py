"""A model that is rehearsed, not asked: it answers as its script says, faults and all.

An agent that has met a stalled stream, a cut connection and a rate limit here will not meet them first in production.
It speaks OpenAI's chat completions on a real socket, and every response says what it is (`X-Holdfast-Rehearsal: 1`).
"""

from holdfast.rehearsal.app import RehearsalApp, create_app
from holdfast.rehearsal.script import DIRECTIVES, ScriptError, parse
from holdfast.rehearsal.server import CannotListen, RehearsalServer, run

__all__ = [
    "DIRECTIVES",
    "CannotListen",
    "RehearsalApp",
    "RehearsalServer",
    "ScriptError",
    "create_app",
    "parse",
    "run",
]

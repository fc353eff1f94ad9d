"""Every scenario, in the order in which they are tried: the plainest first, so that a later failure has a cause."""

from __future__ import annotations

from typing import Final

from holdfast.probe.scenario import Scenario
from holdfast.probe.scenarios import chat, chat_sessions, readers, resume, runs, server, sessions, stops

ALL: Final[tuple[Scenario, ...]] = (
    *server.FIRST,
    *chat.SCENARIOS,
    *chat_sessions.SCENARIOS,
    *server.WORKING,
    *runs.SCENARIOS,
    *resume.SCENARIOS,
    *readers.SCENARIOS,
    *sessions.SCENARIOS,
    *stops.SCENARIOS,
    *server.LAST,
)

"""The hang kit: drives any server that streams answers through the scenarios in which such servers hang, and reports.

Two kinds of servers are known: Holdfast itself, by its own API, and any server with OpenAI's chat completions. It needs
nothing of the rest of Holdfast and imports none of it, so that it says the same of any server.
"""

from __future__ import annotations

from holdfast.probe.detect import Refused, Target, detect
from holdfast.probe.options import Options, Tool
from holdfast.probe.results import Outcome, Report, Result
from holdfast.probe.running import Probe, UnknownScenario, choose, plan
from holdfast.probe.scenario import Scenario
from holdfast.probe.wire import Unreachable, Wire

__all__ = [
    "Options",
    "Outcome",
    "Probe",
    "Refused",
    "Report",
    "Result",
    "Scenario",
    "Target",
    "Tool",
    "UnknownScenario",
    "Unreachable",
    "Wire",
    "choose",
    "detect",
    "plan",
]

"""Any script, cut anywhere in any way, any number of times: the history stays valid and whole (P5)."""

import json
import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.history import anthropic
from tests.history.site import Site
from tests.history.talk import Prompt, check, check_pairs, converse, history_of

EXAMPLES = 400 if os.environ.get("HOLDFAST_FULL") else 10
PHASES = (Phase.explicit, Phase.generate)  # each example takes a while, and its failure prints the whole session
HOWS = ["told", "supersede", "resumed", "agent", "killed", "none"]

numbers = st.integers(0, 10**9)
words = st.lists(st.sampled_from(["kelp", "reef", "ünï", "tide 🌊", '"quoted"', "a\\b"]), min_size=1, max_size=3)


@st.composite
def _tools(draw: st.DrawFn) -> str:
    """A few parallel calls, some of them impossible."""
    lines = []
    for _ in range(draw(st.integers(1, 3))):
        tool = draw(st.sampled_from(["echo", "later", "block", "fail", "nobody", "raw", "bare"]))
        arguments = json.dumps({"t": draw(numbers)})
        match tool:
            case "raw":
                lines.append(f"!tool_raw echo {arguments[:-1]}")
            case "bare":
                lines.append("!tool echo")
            case name:
                lines.append(f"!tool {name} {arguments}")
    return "\n".join(lines)


@st.composite
def _scripts(draw: st.DrawFn) -> str:
    """Reasoning, text and tools in a few steps, then an answer or a fault of the model."""
    lines = []
    for step in range(draw(st.integers(0, 2))):
        if draw(st.booleans()):
            lines.append("!think n=2 rate=9999")
        if draw(st.booleans()):
            lines.append(f"!say rate=9999 step {step} {draw(numbers)} {' '.join(draw(words))}")
        lines.append(draw(_tools()))
    faults = [
        "!close after=1",
        "!truncate after=1",
        "!error_in_stream after=1",
        "!bad_json after=1",
        "!status code=400",
    ]
    end = draw(st.sampled_from(["!say rate=9999 the end", "!think n=2 rate=9999\n!say rate=9999 so be it", *faults]))
    return "\n".join([*lines, end.replace("after=1", "after=1 rate=9999")])


prompts = st.builds(Prompt, _scripts(), st.sampled_from(HOWS), st.integers(1, 30))


@pytest.mark.slow
@pytest.mark.timeout(600 if EXAMPLES > 100 else 60)
@settings(max_examples=EXAMPLES, phases=PHASES, suppress_health_check=list(HealthCheck))
@given(talk=st.lists(prompts, min_size=1, max_size=3))
def test_history_is_valid_whatever_was_cut(site: Site, talk: list[Prompt]) -> None:
    """No script and no way to end it, repeated or mixed, gives the model a conversation that a provider refuses."""
    turns = site.call(converse(site, [*talk, Prompt("!say rate=9999 all is well")]))
    assert turns[-1].record.state == "completed", turns[-1].story()
    check(site, turns)
    check_pairs(site, turns)
    entries = site.call(site.history(turns[0].record.session))
    wrong = anthropic.refused(site.call(anthropic.mapped(history_of(entries), "and now?")))
    assert not wrong, wrong

"""A run may break at any event, in any way, and the next prompt of its session still gets a valid history (P5)."""

import asyncio
import itertools
import json
import os

import pytest

from holdfast.domain.digest import Digest
from tests.history import anthropic
from tests.history.site import Site
from tests.history.talk import Prompt, Turn, check, check_pairs, converse, history_of

FULL = bool(os.environ.get("HOLDFAST_FULL"))
AT_ONCE = 16
IN_A_ROW = 3
SCRIPT = """
!think n=2 rate=9999
!say rate=9999 alpha beta
!tool echo {"t": 1}
!tool fail {"t": 2}
!tool later {"t": 3}
!tool block {"t": 4}
!say rate=9999 gamma delta
!tool echo {"t": 5}
!say rate=9999 epsilon zeta
""".strip()
OK = Prompt("!say rate=9999 all is well")


async def _together(site: Site, talks: list[list[Prompt]]) -> list[list[Turn]]:
    room = asyncio.Semaphore(AT_ONCE)

    async def one(prompts: list[Prompt]) -> list[Turn]:
        async with room:
            return await converse(site, prompts)

    return await asyncio.gather(*(one(prompts) for prompts in talks))


@pytest.fixture(scope="module")
def length(site: Site) -> int:
    """How many events the whole run has."""
    (turn,) = site.call(converse(site, [Prompt(SCRIPT)]))
    assert turn.record.state == "completed", turn.record.error
    return turn.record.seq


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("how", "every"),
    [("told", 1), ("supersede", 1), ("killed", 4), ("crashed", 5), ("resumed", 3), ("deadline", 5), ("agent", 3)],
)
def test_history_is_valid_after_an_abort_at_every_event(site: Site, length: int, how: str, every: int) -> None:
    """Wherever a run breaks, three times in a row, the model is told all that was said and done, in a valid form."""
    step = -(-(length + 1) // IN_A_ROW)
    firsts = range(1, step + 1, 1 if FULL else every)
    talks = [[*(Prompt(SCRIPT, how, first + step * n) for n in range(IN_A_ROW)), OK] for first in firsts]
    for turns in site.call(_together(site, talks), 100):
        assert turns[-1].record.state == "completed", turns[-1].story()
        check(site, turns)
        check_pairs(site, turns)
        for turn in turns[:-1] if how == "resumed" else []:
            assert len(Digest(turn.events).calls()) == SCRIPT.count("!tool"), f"a tool ran twice: {turn.story()}"
        entries = site.call(site.history(turns[0].record.session))
        wrong = anthropic.refused(site.call(anthropic.mapped(history_of(entries), "and now?")))
        assert not wrong, wrong


def test_history_grows_linearly_with_aborts(site: Site, length: int) -> None:
    """A session that is stopped again and again does not send its past twice, nor lose it."""
    at = length * 2 // 3
    turns = site.call(converse(site, [*[Prompt(SCRIPT, "told", at)] * 6, OK]))
    check(site, turns)
    sizes = [len(json.dumps(site.requests(turn.mark)[0])) for turn in turns]
    grown = [after - before for before, after in itertools.pairwise(sizes)]
    assert max(grown[:-1]) < 1.5 * min(grown[:-1]), sizes


def test_session_that_was_never_answered_is_valid(site: Site) -> None:
    """Prompts that were stopped while they waited are all told, each once and in order."""

    async def impatient() -> list[Turn]:
        session = site.name()
        texts = [f"Find kelp #{session}.{n}#\n!tokens n=500 rate=5" for n in range(4)]
        runs = [await site.start(session, text, on_busy="enqueue") for text in texts[:3]]
        for run in reversed(runs):
            await site.stop(run)
        texts[3] = texts[3].replace("n=500 rate=5", "n=2")
        runs.append(await site.start(session, texts[3]))
        return [
            Turn(f"#{session}.{n}#", text, await site.end(run), await site.log_of(run), Prompt(""))
            for n, (text, run) in enumerate(zip(texts, runs, strict=True))
        ]

    turns = site.call(impatient())
    assert turns[-1].record.state == "completed"
    assert len(site.requests(turns[-1].mark)) == 1
    check(site, [*(t._replace(prompt=Prompt("", "told")) for t in turns[:3]), turns[3]])

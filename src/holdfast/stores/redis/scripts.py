"""The Lua scripts: one verb a file in scripts/, put together here when the package is loaded.

A verb's first line is its shebang, with the flags that say what Redis may do with it at its memory limit. A line
`-- with: rows log` names the files of scripts/lib that it stands on, in this order; base.lua is always the first. What
is sent to Redis is the shebang, the lifecycle (written from `domain.runs.TABLE`, so that there is one
table only), those files and the verb, as one text: Redis knows no modules, and helpers are not copied by hand.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

from holdfast.domain.runs import TABLE, Move, Refusal, State

LAYOUT: Final = 1  # of the keys; the first one. See opening.py for what a second one needs
_SCRIPTS: Final = resources.files("holdfast.stores.redis") / "scripts"
CLOCK: Final = "call('TIME')"  # as base.lua has it
_WITH: Final = re.compile(r"^-- with: ([a-z ]+)$", re.MULTILINE)
_ANSWERS: Final = {  # the status that a refusal is answered with
    Refusal.FENCED: "fenced",
    Refusal.STOP: "stop",
    Refusal.ENDED: "ended",
    Refusal.NOT_DUE: "ended",
}


class Script(NamedTuple):
    """One verb as Redis gets it."""

    name: str
    source: bytes
    sha: str


@cache
def scripts(clock: str = CLOCK) -> dict[str, Script]:
    """Every verb by its name. `clock` is what tells the time in them; replaced by tests."""
    found = {}
    for entry in _SCRIPTS.iterdir():
        name, _, ending = entry.name.partition(".")
        if ending == "lua":
            source = compose(entry.read_text(encoding="utf-8"), clock).encode()
            found[name] = Script(name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest())
    return found


def compose(verb: str, clock: str = CLOCK) -> str:
    """The whole text of a verb."""
    shebang, body = verb.split("\n", 1)
    named = _WITH.search(body)
    texts = [_library(name) for name in ("base", *(named[1].split() if named else ()))]
    return "\n".join(
        [shebang, f"local LAYOUT = '{LAYOUT}'", lifecycle(), texts[0].replace(CLOCK, clock), *texts[1:], body]
    )


@cache
def _library(name: str) -> str:
    return (_SCRIPTS / "lib" / f"{name}.lua").read_text(encoding="utf-8")


@cache
def lifecycle() -> str:
    """`domain.runs.TABLE` in Lua, as lines `phase.trigger=>phase` or, for a refusal, `=status`.

    A text and no table of tables: a table would be built anew in every call, a text is a constant.
    """
    cells = (
        f"{phase}.{trigger}={'>' + move.to if isinstance(move, Move) else _ANSWERS[move]}"
        for phase, triggers in TABLE.items()
        for trigger, move in triggers.items()
    )
    ended = ", ".join(f"{state} = true" for state in State if state.terminal)
    return "\n".join(["local LIFE = [[", "", *cells, "]]", f"local TERMINAL = {{{ended}}}"])

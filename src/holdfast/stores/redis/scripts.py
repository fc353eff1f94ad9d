"""The Lua scripts: one verb a file in scripts/, put together here when the package is loaded.

A verb's first line is its shebang, with the flags that say what Redis may do with it at its memory limit. A line
`-- with: rows log` names the files of scripts/lib that it stands on, in this order; base.lua is always the first. What
is sent to Redis is the shebang, the lifecycle as two Lua tables (written from `domain.runs.TABLE`, so that there is one
table only), those files and the verb, as one text: Redis knows no modules, and helpers are not copied by hand.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

from holdfast.domain.runs import TABLE, Move, Refusal, State

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
def scripts() -> dict[str, Script]:
    """Every verb by its name."""
    directory = resources.files("holdfast.stores.redis") / "scripts"
    found = {}
    for entry in directory.iterdir():
        name, _, ending = entry.name.partition(".")
        if ending == "lua":
            source = compose(entry.read_text(encoding="utf-8")).encode()
            found[name] = Script(name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest())
    return found


def compose(verb: str) -> str:
    """The whole text of a verb."""
    shebang, body = verb.split("\n", 1)
    library = resources.files("holdfast.stores.redis") / "scripts" / "lib"
    named = _WITH.search(body)
    names = ["base", *(named[1].split() if named else ())]
    return "\n".join([shebang, lifecycle(), *(_library(str(library / f"{name}.lua")) for name in names), body])


@cache
def _library(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


@cache
def lifecycle() -> str:
    """`domain.runs.TABLE` in Lua: a move as `>phase`, a refusal as the status that is answered."""
    rows = []
    for phase, triggers in TABLE.items():
        cells = ", ".join(
            f"{trigger} = '{'>' + move.to if isinstance(move, Move) else _ANSWERS[move]}'"
            for trigger, move in triggers.items()
        )
        rows.append(f"  {phase} = {{{cells}}},")
    ended = ", ".join(f"{state} = true" for state in State if state.terminal)
    return "\n".join(["local LIFE = {", *rows, "}", f"local TERMINAL = {{{ended}}}"])

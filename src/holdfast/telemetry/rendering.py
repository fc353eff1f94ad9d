"""How the facts of one log line are written: logfmt, or JSON.

Our own, because it is two functions, and the library that has them takes 50 ms of each process's start to import.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def logfmt(facts: Mapping[str, Any]) -> str:
    """`name=value` each, in order: one line, from which every value can be read back.

    Raises:
        ValueError: A name has a space or a character below it.
    """
    return " ".join(f"{_name(name)}={_value(value)}" for name, value in facts.items())


def json_line(facts: Mapping[str, Any]) -> str:
    """The facts as one JSON object; what JSON does not know is written as its `repr`."""
    return json.dumps(facts, default=repr)


def _name(name: str) -> str:
    if any(character <= " " for character in name):
        raise ValueError(f"{name!r} cannot be the name of a fact: it has a space")
    return name


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    quoted = any(character in text for character in ' ="')
    if quoted:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    text = text.replace("\n", "\\n")
    return f'"{text}"' if quoted else text

"""Code blocks of a page that are marked, as in `<!-- run: sh -->` above a fence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_MARKED = re.compile(r"<!-- (run|file): (\S+) -->\n```(\w+)\n(.*?)```", re.DOTALL)


class Block(NamedTuple):
    """A marked block."""

    page: str
    mark: str
    what: str
    code: str


def blocks(mark: str, what: str) -> list[Block]:
    """The blocks with this mark on all pages, in order."""
    found = []
    for page in PAGES:
        for marked, name, _, code in _MARKED.findall(page.read_text(encoding="utf-8")):
            found.append(Block(page.name, marked, name, code))
    return [block for block in found if (block.mark, block.what) == (mark, what)]

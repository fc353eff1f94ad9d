"""Writes the generated parts of these pages from the code; `--check` only says which pages differ.

A part stands between `<!-- generated: name -->` and `<!-- end -->`. tests/docs runs the same functions and compares.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from holdfast.domain.errors import CATALOGUE
from holdfast.domain.runs import REASONS, TABLE, Move, Phase, Trigger
from holdfast.probe import choose

DOCS = Path(__file__).parent
PAGES = ("lifecycle.md", "probe.md", "protocol.md")
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def diagram() -> str:
    """The lifecycle as a mermaid state diagram: one arrow for each pair of phases, with all its triggers."""
    arrows: dict[tuple[Phase, Phase], list[str]] = {}
    for phase, row in TABLE.items():
        for trigger, decision in row.items():
            if isinstance(decision, Move) and decision.to is not phase:
                arrows.setdefault((phase, decision.to), []).append(trigger.replace("_", " "))
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> queued: create"]
    lines += [f"    {source} --> {target}: {', '.join(words)}" for (source, target), words in arrows.items()]
    lines += [f"    {phase} --> [*]" for phase in Phase if phase.state.terminal]
    return "\n".join([*lines, "```"])


def reasons() -> str:
    """Which reasons belong to which state."""
    rows = [(state.value, ", ".join(sorted(found))) for state, found in REASONS.items()]
    return _table(("state", "reasons"), rows)


def decisions() -> str:
    """The whole table, triggers down and phases across; the three terminal phases share one column."""
    phases = [phase for phase in Phase if not phase.state.terminal]
    rows = [
        (trigger.replace("_", " "), *(_decision(phase, trigger) for phase in (*phases, Phase.COMPLETED)))
        for trigger in Trigger
    ]
    return _table(("trigger", *phases, "ended"), rows)


def errors() -> str:
    """The catalogue of error codes."""
    rows = [
        (f"`{code}`", entry.status, "yes" if entry.retryable else "no", entry.remedy)
        for code, entry in CATALOGUE.items()
    ]
    return _table(("code", "status", "retryable", "what to do"), rows)


def scenarios() -> str:
    """Every scenario of `holdfast probe`."""
    rows = [
        (
            f"`{scenario.name}`",
            scenario.about,
            scenario.prompts,
            ", ".join(["Holdfast"] * scenario.native + ["script"] * scenario.scripted),
            scenario.promise,
        )
        for scenario in choose([])
    ]
    return _table(("scenario", "what is tried", "prompts", "needs", "a failure breaks"), rows)


GENERATED: dict[str, Callable[[], str]] = {
    "diagram": diagram,
    "reasons": reasons,
    "decisions": decisions,
    "errors": errors,
    "scenarios": scenarios,
}


def renew(page: str) -> str:
    """The page with its generated parts as the code has them now."""
    return _PART.sub(lambda part: f"{part[1]}{GENERATED[part[2]]()}\n{part[3]}", page)


def _decision(phase: Phase, trigger: Trigger) -> str:
    decision = TABLE[phase][trigger]
    if not isinstance(decision, Move):
        return f"({decision})"
    return "=" if decision.to is phase else decision.to.value


def _table(headings: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    head = list(headings)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def main(arguments: list[str]) -> int:
    """Rewrite the pages, or with --check name those that differ."""
    stale = 0
    for name in PAGES:
        path = DOCS / name
        before = path.read_text(encoding="utf-8")
        after = renew(before)
        if after == before:
            continue
        stale += 1
        sys.stdout.write(f"{name} differs from the code\n")
        if "--check" not in arguments:
            path.write_text(after, encoding="utf-8")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Many live runs with tools under faults, a reader for each, and what must be true of all of them afterwards."""

import random
from collections import Counter
from typing import Any

from tests.supervision.support import Follower
from tests.system.support import System

SCRIPTS = (
    '!tool once {{"mark": "{m}-a"}}\n!tokens n=30 rate=40\n!say done',
    '!tokens n=20 rate=40\n!tool once_in_thread {{"mark": "{m}-a", "seconds": 0.3}}\n!say done',
    '!tool once {{"mark": "{m}-a", "seconds": 0.5}}\n!say between\n!tool once {{"mark": "{m}-b"}}\n!say done',
    "!tokens n=100 rate=40",
)


class Field:
    """Keeps so many runs alive, a new one for each that ends, and every reader's bytes."""

    def __init__(self, system: System, chance: random.Random, runs: int, name: str = "") -> None:
        """`name` tells the sessions of several fields on one store apart."""
        self.system = system
        self.followers: list[Follower] = []
        self.prompts: dict[str, list[str]] = {}
        self._chance = chance
        self._runs = runs
        self._name = name

    def fill(self) -> None:
        """Prompts go to free sessions, so that none supersedes another."""
        live = {f.session for f in self.followers if not f.closed}
        for i in range(self._runs):
            if (session := f"{self._name}s{i}") not in live:
                self._prompt(session)

    def _prompt(self, session: str) -> None:
        mark = f"{self._name}m{len(self.followers)}"
        text = self._chance.choice(SCRIPTS).format(m=mark)
        follower = Follower(self.system, self.system.run(text, session=session))
        follower.session = session
        self.followers.append(follower)
        self.prompts.setdefault(session, []).append(text)

    def judge(self, attempts: int, seed: int, limit_s: float = 60.0) -> list[str]:
        """Wait for every end; nothing that anybody saw is missing, nothing was done twice in silence. What happened."""
        logs = [follower.end(limit_s) for follower in self.followers]  # byte for byte, contiguous, one terminal event
        calls: dict[str, int] = Counter(e["what"] for e in self.system.journal("once"))
        ends: Counter[str] = Counter()
        unknown = resumed = 0
        for events in logs:
            ends[f"{events[-1]['type']} {events[-1].get('reason', '')}".strip()] += 1
            resumed += sum(e["type"] == "run.started" for e in events) > 1
            unknown += no_tool_twice(events, calls, seed)
        for session, prompts in self.prompts.items():
            messages = self.system.get(f"/api/sessions/{session}")["messages"]
            found = [m["text"] for m in messages if m["role"] == "user"]
            assert found == prompts, f"seed {seed}: {session} has lost a prompt"
        assert set(ends) <= {"run.completed", "run.failed worker_lost"}, f"seed {seed}: {ends}, {_strange(logs)}"
        for events in logs:  # a run that needs longer than the pause between two kills may spend them all
            if events[-1].get("reason") == "worker_lost":
                assert max(e["attempt"] for e in events if e["type"] == "run.started") == attempts, events[-1]
        return [
            f"{len(logs)} runs, {resumed} resumed, {unknown} tools of unknown outcome",
            f"{dict(ends)}, readers broken {sum(f.breaks for f in self.followers)} times",
        ]


def _strange(logs: list[list[dict[str, Any]]]) -> list[Any]:
    """The ends that nobody expects, with what came before."""
    expected = ("finished", "worker_lost")
    return [[e["type"], *log[-4:]] for log in logs for e in log[-1:] if e.get("reason", "finished") not in expected]


def no_tool_twice(events: list[dict[str, Any]], calls: dict[str, int], seed: int) -> int:
    """Each mark belongs to one call: it was made at most once, and where nobody knows, that is said."""
    called = {e["call"]: e["args"]["mark"] for e in events if e["type"] == "tool.called"}
    finished = {e["call"]: e["outcome"] for e in events if e["type"] == "tool.finished"}
    for call, mark in called.items():
        if finished.get(call) == "success":
            assert calls[mark] == 1, f"seed {seed}: {mark} ran {calls[mark]} times"
    for mark, times in calls.items():
        if mark in called.values() and times > 1:
            outcomes = [finished.get(call) for call, m in called.items() if m == mark]
            assert outcomes.count("unknown") >= times - 1, f"seed {seed}: {mark} ran {times} times: {outcomes}"
    return list(finished.values()).count("unknown")

"""Whether a run would be taken now, with a reason per part. Asks; decides nothing.

The parts are asked at the same time, each for at most `PART_S`, so that one that hangs is named and hides no other.

The worker's part shows the breakers of its models' upstreams and its threads in quarantine, and an open breaker does
not make it unready: other agents may have other models, and without requests no probe would ever find the upstream
again. The model's part asks itself, at most once a minute while it is well; then sooner, with growing pauses. While
requests of runs to that server fail, by the worker's report, what it was told a moment ago is not relied on.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from holdfast.aio import Owner
from holdfast.app.upstream import probe_model
from holdfast.config import Settings, upstream_url
from holdfast.gateway.checks import Check, ask_all
from holdfast.ports.store import RunStore, WorkerRecord
from holdfast.telemetry.totals import without_metrics

PART_S: Final = 0.6  # less than a request for all of them is waited for
_MODEL_GOOD_S: Final = 60.0
_MODEL_BAD_S: Final = (2.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)

Part = dict[str, Any]
Named = tuple[str, str]


class Readiness:
    """The parts of /readyz."""

    def __init__(
        self,
        store: RunStore,
        settings: Settings,
        workers: Callable[[], Sequence[Named]],
        refuses: Callable[[], str],
        access: Callable[[], str],
        proof: Callable[[], Part | None],
        owner: Owner,
    ) -> None:
        """Take what is asked.

        Args:
            store: Asked for its health, and for what workers reported.
            settings: The lease bounds how old a report may be.
            workers: Answers the name of each worker that should work, and why it does not or "".
            refuses: Why this process takes no run whatever its parts do, or "": it drains, or its start is not over.
            access: What of the door does not work, or "".
            proof: How the last synthetic run went; None where there are none.
            owner: Of the questions that are still open.
        """
        self._access = access
        self._refuses = refuses
        self._store = store
        self._settings = settings
        self._workers = workers
        self._proof = proof
        self._owner = owner
        self._parts = {"store": self._check("store", self._store_part), "worker": self._check("worker", self._work)}
        self._model: ModelPart | None = None
        if upstream := upstream_url(settings):
            self._model = ModelPart(upstream)
            self._parts["model"] = self._check("model", self._model)

    async def __call__(self) -> dict[str, Any]:
        """`{"ready", "parts": {store, worker, model?, run?, access?}}`; every part with `ok` and, if not, `why`."""
        answers = await ask_all(self._owner, *self._parts.values())
        parts = {
            name: {"ok": False, "why": why} if found is None else found
            for name, (found, why) in zip(self._parts, answers, strict=True)
        }
        if (proof := self._proof()) is not None:
            parts["run"] = proof
        if problem := self._access():  # whoever could enter still can, so that runs are taken
            parts["access"] = {"ok": True, "why": problem}
        if why := self._refuses():
            parts["server"] = {"ok": False, "why": why}
        return {"ready": all(part["ok"] for part in parts.values()), "parts": parts}

    def _check(self, name: str, ask: Callable[[], Awaitable[Part]]) -> Check:
        return Check(self._owner, name, ask, PART_S)

    async def _store_part(self) -> Part:
        facts = await self._store.health()
        if "error" in facts:
            return {"ok": False, "why": facts["error"]}
        return {"ok": True, "kind": facts["kind"], "ready_runs": facts["ready"]}

    async def _work(self) -> Part:
        """Well where every worker is; of several, each with its name."""
        named = self._workers()
        asked = any(not why for _, why in named)
        seen = {each.worker: each for each in await self._store.workers()} if asked else {}
        if self._model is not None:
            mine = [seen[name].facts for name, _ in named if name in seen]
            self._model.hear(breaker for facts in mine for breaker in facts.get("breakers", ()))
        found = {name: {"ok": False, "why": why} if why else self._report(name, seen.get(name)) for name, why in named}
        if len(found) == 1:
            return next(iter(found.values()))
        part: Part = {"ok": all(each["ok"] for each in found.values()), "workers": found}
        if missing := [f"{name}: {each['why']}" for name, each in found.items() if not each["ok"]]:
            part["why"] = "; ".join(missing)
        return part

    def _report(self, name: str, mine: WorkerRecord | None) -> Part:
        if mine is None:
            return {"ok": False, "why": "the worker has not reported yet", "age_s": None}
        age_s = time.time() - mine.seen_at / 1000
        if age_s > self._settings.lease_s:
            return {"ok": False, "why": f"worker {name} last reported {age_s:.0f} s ago", "age_s": round(age_s, 1)}
        return {"ok": True, "age_s": round(age_s, 1), **without_metrics(mine.facts)}


class ModelPart:
    """GET {url}/models, with the age of its answer."""

    def __init__(self, url: str) -> None:
        """Ask nothing yet."""
        self._url = url
        self._due = 0.0
        self._asked_at = 0.0
        self._failures = 0
        self._failed = 0
        self._part: Part = {}

    async def __call__(self) -> Part:
        """The last answer, or a new one where that is due."""
        if time.monotonic() >= self._due:
            await self._ask()
        return {**self._part, "age_s": round(time.monotonic() - self._asked_at, 1)}

    def hear(self, breakers: Iterable[Part]) -> None:
        """Of the workers' breakers: where more requests to this very server failed, ask it soon."""
        where = urlsplit(self._url).netloc.rpartition("@")[2].lower()
        failed = sum(each["failures"] for each in breakers if each["upstream"].lower().startswith(f"{where} "))
        if failed > self._failed:
            self._due = min(self._due, self._asked_at + _MODEL_BAD_S[0])
        self._failed = failed

    async def _ask(self) -> None:
        reached = await probe_model(self._url)
        why = reached.problem(self._url)
        self._part = {"ok": not why, "detail": reached.detail, "rehearsal": reached.rehearsal}
        if why:
            self._part["why"] = why
        pause_s = _MODEL_BAD_S[min(self._failures, len(_MODEL_BAD_S) - 1)] if why else _MODEL_GOOD_S
        self._failures = self._failures + 1 if why else 0
        self._asked_at = time.monotonic()
        self._due = self._asked_at + pause_s


def full(workers: list[WorkerRecord]) -> str:
    """Why a run that is in the queue has to wait, where every worker has as many as it takes; else ""."""
    accepting = [worker.facts for worker in workers if worker.facts.get("accepting")]
    if not accepting or any(facts.get("runs", 0) < facts.get("concurrency", 0) for facts in accepting):
        return ""
    return f"all of {len(accepting)} workers have as many runs as they take (concurrency)"

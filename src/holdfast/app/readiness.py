"""Whether a run would be taken now, with a reason per part. Asks; decides nothing.

The worker's part shows the breakers of its models' upstreams, and an open one does not make it unready: other agents
may have other models, and without requests no probe would ever find the upstream again. The model's part asks itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from holdfast.app.upstream import probe_model
from holdfast.config import Settings, upstream_url
from holdfast.ports.store import RunStore
from holdfast.telemetry.totals import without_metrics

_GOOD_FOR_S: Final = 60.0
_BAD_FOR_S: Final = 2.0


class Readiness:
    """The parts of /readyz."""

    def __init__(
        self,
        store: RunStore,
        settings: Settings,
        worker: Callable[[], tuple[str, str]],
        draining: Callable[[], bool],
        access: Callable[[], str],
    ) -> None:
        """Take what is asked; `worker` answers its name, and why it does not work or ""; `access` the latter alone."""
        self._access = access
        self._draining = draining
        self._store = store
        self._settings = settings
        self._upstream = upstream_url(settings)
        self._worker = worker
        self._model: tuple[float, dict[str, Any]] | None = None

    async def __call__(self) -> dict[str, Any]:
        """`{"ready", "parts": {store, worker, model?, access?}}`; every part with `ok` and, if not, `why`."""
        parts = {"store": await self._store_part(), "worker": await self._worker_part()}
        if self._upstream:
            parts["model"] = await self._model_part()
        if problem := self._access():  # whoever could enter still can, so that runs are taken
            parts["access"] = {"ok": True, "why": problem}
        if self._draining():
            parts["server"] = {"ok": False, "why": "draining"}
        return {"ready": all(part["ok"] for part in parts.values()), "parts": parts}

    async def _store_part(self) -> dict[str, Any]:
        facts = await self._store.health()
        if "error" in facts:
            return {"ok": False, "why": facts["error"]}
        return {"ok": True, "kind": facts["kind"], "ready_runs": facts["ready"]}

    async def _worker_part(self) -> dict[str, Any]:
        name, why = self._worker()
        if why:
            return {"ok": False, "why": why}
        seen = {w.worker: w for w in await self._store.workers()}
        mine = seen.get(name)
        age_s = None if mine is None else time.time() - mine.seen_at / 1000
        if mine is None or age_s is None or age_s > self._settings.lease_s:
            return {"ok": False, "why": "the worker has not reported yet", "age_s": age_s}
        return {"ok": True, "age_s": round(age_s, 1), **without_metrics(mine.facts)}

    async def _model_part(self) -> dict[str, Any]:
        now = time.monotonic()
        if self._model is None or now >= self._model[0]:
            reached = await probe_model(self._upstream)
            why = reached.problem(self._upstream)
            part: dict[str, Any] = {"ok": not why, "detail": reached.detail, "rehearsal": reached.rehearsal}
            if why:
                part["why"] = why
            self._model = (now + (_BAD_FOR_S if why else _GOOD_FOR_S), {**part, "at": time.time()})
        part = self._model[1]
        return {**{k: v for k, v in part.items() if k != "at"}, "age_s": round(time.time() - part["at"], 1)}

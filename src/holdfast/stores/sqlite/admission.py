"""Caps: how many runs there may be, judged within the step that would make one more."""

from __future__ import annotations

from holdfast.domain.ids import SYNTHETIC_TENANT
from holdfast.ports.store import Cap, NewRun, Shed
from holdfast.stores.composing import DRAIN_MS, DRAIN_RUNS
from holdfast.stores.sqlite.tx import Tx

# As the partial index `live` has it: else SQLite does not see that the index answers the question.
_LIVE = "state IN ('queued', 'running', 'waiting')"


def shed(tx: Tx, new: NewRun) -> Shed | None:
    """The first cap that has no room for one run more, or None."""
    limits, tenant = new.limits, new.key.tenant
    for cap, limit in (
        (Cap.TENANT_RUNS_ACTIVE, limits.tenant_active_max),
        (Cap.TENANT_RUNS_QUEUED, limits.tenant_queued_max),
        (Cap.RUNS_ACTIVE, limits.runs_active_max),
        (Cap.RUNS_QUEUED, limits.runs_queued_max),
    ):
        if not limit:
            continue
        counts = _counts(tx, tenant if cap.of_tenant else None)
        found = counts.get("queued", 0) if cap in (Cap.RUNS_QUEUED, Cap.TENANT_RUNS_QUEUED) else sum(counts.values())
        if found >= limit:
            return Shed(cap, limit, found, *_drain(tx, tenant if cap.of_tenant else None))
    return None


def running(tx: Tx, tenant: str | None = None) -> int:
    """How many runs workers hold, of one tenant or of all."""
    return _counts(tx, tenant).get("running", 0)


def _counts(tx: Tx, tenant: str | None) -> dict[str, int]:
    if tenant is None:
        rows = tx.all(
            f"SELECT state, count(*) AS c FROM runs WHERE {_LIVE} AND tenant <> ? GROUP BY state",  # noqa: S608 - fixed  # nosec B608
            SYNTHETIC_TENANT,  # takes nobody's place
        )
    else:
        rows = tx.all(
            f"SELECT state, count(*) AS c FROM runs WHERE {_LIVE} AND tenant = ? GROUP BY state",  # noqa: S608 - fixed  # nosec B608
            tenant,
        )
    return {row["state"]: row["c"] for row in rows}


def _drain(tx: Tx, tenant: str | None) -> tuple[int, int]:
    """How many of the runs that ended last were the tenant's, and how long ago the first of those ended; see Shed."""
    rows = tx.all(
        "SELECT tenant, ended_at FROM runs WHERE ended_at > ? ORDER BY ended_at DESC LIMIT ?",
        tx.wall - DRAIN_MS,
        DRAIN_RUNS if tenant is None else 4 * DRAIN_RUNS,
    )
    ended = [row["ended_at"] for row in rows if tenant is None or row["tenant"] == tenant]
    if ended:
        return len(ended), max(0, tx.wall - ended[-1])
    of = "" if tenant is None else " AND tenant = ?"
    oldest = tx.one(
        f"SELECT created_at FROM runs WHERE n = (SELECT min(n) FROM runs WHERE {_LIVE}{of})",  # noqa: S608 - fixed  # nosec B608
        *([] if tenant is None else [tenant]),
    )
    return 0, max(0, tx.wall - oldest["created_at"]) if oldest is not None else DRAIN_MS

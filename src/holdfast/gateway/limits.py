"""How much one tenant may ask of one gateway: requests at once, and requests a second.

Both are counted in this process, so that no store can fail while they are: they can neither fail open nor closed. With
N gateways a tenant may have N times as much.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from holdfast.domain.errors import HoldfastError

_FORGET_AT: Final = 1024  # tenants known, before those that ask nothing are forgotten


class _Tenant:
    """A token bucket, and what is under way."""

    __slots__ = ("at", "left", "under_way")

    def __init__(self, burst: float, now: float) -> None:
        self.left = burst
        self.at = now
        self.under_way = 0


class TenantLimits:
    """Counts for every tenant; 0 means no limit."""

    def __init__(self, requests: int, rate_per_s: float, burst: int) -> None:
        """Take the settings `tenant_requests`, `tenant_rate_per_s` and `tenant_burst`."""
        self._requests = requests
        self._rate = rate_per_s
        self._burst = float(max(burst, 1))
        self._tenants: dict[str, _Tenant] = {}
        self._forget_at = _FORGET_AT

    def take(self, tenant: str) -> None:
        """Count one request, or one operation on a socket.

        Raises:
            HoldfastError: rate_limited, with the seconds until there is room for one.
        """
        if not self._rate:
            return
        found = self._filled(tenant)
        if found.left < 1:
            raise HoldfastError(
                "rate_limited",
                f"tenant_rate_per_s = {self._rate:g} with bursts of {self._burst:g}",
                retry_after_s=max(1, math.ceil((1 - found.left) / self._rate)),
            )
        found.left -= 1

    @contextmanager
    def under_way(self, tenant: str) -> Iterator[None]:
        """Count a request or a socket as long as it lasts.

        Raises:
            HoldfastError: rate_limited, where as many as may be are under way.
        """
        if not self._requests:
            yield
            return
        found = self._filled(tenant)
        if found.under_way >= self._requests:
            raise HoldfastError(
                "rate_limited",
                f"tenant_requests = {self._requests} requests, streams and sockets are open",
                remedy="end one of them, then repeat",
                retry_after_s=1,
            )
        found.under_way += 1
        try:
            yield
        finally:
            found.under_way -= 1

    def _filled(self, tenant: str) -> _Tenant:
        now = time.monotonic()
        found = self._tenants.get(tenant)
        if found is None:
            self._forget(now)
            found = self._tenants[tenant] = _Tenant(self._burst, now)
        found.left = min(self._burst, found.left + (now - found.at) * self._rate)
        found.at = now
        return found

    def _forget(self, now: float) -> None:
        """Drop who has nothing under way and a full bucket: nothing is remembered of them that matters."""
        if len(self._tenants) < self._forget_at:
            return
        self._tenants = {
            name: each
            for name, each in self._tenants.items()
            if each.under_way or each.left + (now - each.at) * self._rate < self._burst
        }
        self._forget_at = max(_FORGET_AT, 2 * len(self._tenants))

"""What a store author provides, and the base of every conformance class."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol, runtime_checkable

import pytest
import pytest_asyncio

from holdfast.ports.store import RunStore
from holdfast.testing.rig import Rig


class StoreHarness(Protocol):
    """One store under test; made anew for each test."""

    durable: bool
    """Whether what was stored is still there when every handle was closed."""

    async def open(self) -> RunStore:
        """A first handle on a fresh, empty store."""
        ...

    async def another(self) -> RunStore:
        """A handle on the same data beside the ones there are, as another process would have it.

        A store that exists in one handle only gives that handle again.
        """
        ...

    async def reopen(self) -> RunStore:
        """Close every handle, then a new one on the same data. Called where `durable` is true."""
        ...

    async def advance(self, ms: int) -> None:
        """Let `ms` milliseconds pass for the store, at once: move its clock, or shift the times it holds."""
        ...

    async def close(self) -> None:
        """Close every handle and remove the data."""
        ...


@runtime_checkable
class LosesWakes(Protocol):
    """A harness that can also lose wakes; where it cannot, the tests that need it are skipped."""

    def lose_wakes(self) -> None:
        """From now on no wake arrives at any handle."""
        ...


class StoreCase:
    """Fixtures of every conformance class; `harness` is the one to override."""

    pytestmark = pytest.mark.asyncio

    @pytest.fixture
    def harness(self) -> StoreHarness:
        """A `StoreHarness` of the store under test."""
        raise NotImplementedError("override the fixture `harness` and return a StoreHarness")

    @pytest_asyncio.fixture
    async def rig(self, harness: StoreHarness) -> AsyncIterator[Rig]:
        """A fresh store with its harness and helpers."""
        rig = Rig(await harness.open(), advance=harness.advance)
        try:
            yield rig
            await rig.close()
        finally:
            await harness.close()

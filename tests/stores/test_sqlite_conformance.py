"""The conformance suite on a file and in memory."""

from pathlib import Path

import pytest

from holdfast.testing import StoreConformance, StoreHarness
from holdfast.testing.rig import Rig
from tests.stores.sqlite_harness import MemoryHarness, SqliteHarness


class TestFile(StoreConformance):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> StoreHarness:
        return SqliteHarness(tmp_path)

    async def test_wakes_reach_other_handles(self, rig: Rig, harness: StoreHarness) -> None:
        await super().test_wakes_reach_other_handles(rig, harness)


class TestMemory(StoreConformance):
    @pytest.fixture
    def harness(self) -> StoreHarness:
        return MemoryHarness()

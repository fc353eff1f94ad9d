"""The gateway under test, as in tests/gateway."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.support import Site, site


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path) as made:
        yield made

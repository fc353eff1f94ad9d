"""What the tests of a full disk stand on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disk.small_disk import small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 20 MB of this test's own."""
    with small_disk(tmp_path / "disk") as disk:
        yield disk

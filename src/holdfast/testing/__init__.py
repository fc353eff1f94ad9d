"""Tests that come with Holdfast, for those who write stores of their own.

`StoreConformance` is the whole contract of `RunStore` as pytest classes: subclass it, override its fixture
`harness`. It needs pytest and pytest-asyncio, which Holdfast itself does not.
"""

import pytest

# Before the modules with asserts are imported, so that a failure shows the two values that disagree.
pytest.register_assert_rewrite("holdfast.testing.rig", "holdfast.testing.stores")

from holdfast.testing.clock import ManualClock  # noqa: E402
from holdfast.testing.harness import LosesWakes, StoreHarness  # noqa: E402
from holdfast.testing.stores import StoreConformance  # noqa: E402

__all__ = ["LosesWakes", "ManualClock", "StoreConformance", "StoreHarness"]

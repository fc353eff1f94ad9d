"""The conformance suite of `RunStore`: one class, made of one class per concern."""

from __future__ import annotations

from holdfast.testing.stores.admission import Admission
from holdfast.testing.stores.claiming import Claiming
from holdfast.testing.stores.creation import Creation
from holdfast.testing.stores.ending import EndingRuns
from holdfast.testing.stores.listening import Listening
from holdfast.testing.stores.listing import Listing
from holdfast.testing.stores.parking import Parking
from holdfast.testing.stores.races import Races
from holdfast.testing.stores.reading import Reading, Waking
from holdfast.testing.stores.reaping import Reaping
from holdfast.testing.stores.reopening import Reopening
from holdfast.testing.stores.retention import Retention
from holdfast.testing.stores.sessions import Forgetting, ForgettingRuns, Histories, SessionLists
from holdfast.testing.stores.steering import Steering
from holdfast.testing.stores.stopping import Stopping
from holdfast.testing.stores.superseding import Superseding
from holdfast.testing.stores.tailing import Tailing
from holdfast.testing.stores.telling import Telling
from holdfast.testing.stores.tenants import Tenants
from holdfast.testing.stores.timing import Timing
from holdfast.testing.stores.walk import Walking
from holdfast.testing.stores.writing import Writing

__all__ = [
    "Admission",
    "Claiming",
    "Creation",
    "EndingRuns",
    "Forgetting",
    "ForgettingRuns",
    "Histories",
    "Listening",
    "Listing",
    "Parking",
    "Races",
    "Reading",
    "Reaping",
    "Reopening",
    "Retention",
    "SessionLists",
    "Steering",
    "Stopping",
    "StoreConformance",
    "Superseding",
    "Tailing",
    "Telling",
    "Tenants",
    "Timing",
    "Waking",
    "Walking",
    "Writing",
]


class StoreConformance(
    Creation,
    Superseding,
    Steering,
    Admission,
    Claiming,
    Writing,
    EndingRuns,
    Parking,
    Stopping,
    Telling,
    Listening,
    Reaping,
    Timing,
    Reading,
    Waking,
    Tailing,
    Listing,
    Tenants,
    SessionLists,
    Forgetting,
    ForgettingRuns,
    Histories,
    Retention,
    Reopening,
    Races,
    Walking,
):
    """What every store guarantees. Subclass it, override the fixture `harness`, run pytest.

        class TestMyStore(StoreConformance):
            @pytest.fixture
            def harness(self, tmp_path):
                return MyHarness(tmp_path)

    It needs pytest and pytest-asyncio. Each test takes seconds at most; the random walk prints its seed.
    """

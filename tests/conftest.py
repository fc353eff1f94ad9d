"""What every test stands on."""

import asyncio

from hypothesis import HealthCheck, settings

# A property's time depends on the machine, and pytest-timeout limits each test. A failure prints the blob
# that repeats it.
settings.register_profile(
    "holdfast", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("holdfast")

# Otherwise pytest-asyncio's first look at the current loop makes one that nobody closes; its ResourceWarning fails
# whichever test the garbage collector meets it in.
asyncio.set_event_loop(None)

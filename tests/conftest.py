"""What every test stands on."""

from hypothesis import settings

# A property's time depends on the machine, and pytest-timeout limits each test. A failure prints the blob
# that repeats it.
settings.register_profile("holdfast", deadline=None, print_blob=True)
settings.load_profile("holdfast")

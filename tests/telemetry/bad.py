"""Tracers as bad as they come, for the setting `tracer`. Imported by workers: nothing else of the tests is."""

import time

HANG_S = 30.0


class Nothing:
    """Answers None to everything, like a tracer whose service was not configured."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


class Raising:
    """Raises from every call."""

    def __getattr__(self, name):
        def call(*args, **kwargs):
            raise RuntimeError(f"tracer failed in {name}")

        return call


class Exiting:
    """Ends the process, if it is let."""

    def start_span(self, *args, **kwargs):
        raise SystemExit(3)


class Hanging:
    """Takes half a minute for every call."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: time.sleep(HANG_S)


class BadSpan:
    """A span whose every method raises, but which begins well."""

    def __getattr__(self, name):
        raise AttributeError(f"'NoneType' object has no attribute {name!r}")


class BadSpans:
    """Starts spans that fail at their end: the failure of document 0."""

    def start_span(self, *args, **kwargs):
        return BadSpan()


nothing = None

"""What every test stands on."""

import asyncio
import os
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, settings

from tests.environment import MODE

# A property's time depends on the machine, and pytest-timeout limits each test. A failure prints the blob
# that repeats it.
settings.register_profile(
    "holdfast", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("holdfast")

FIGURES = pytest.StashKey()
TEMPORARY = pytest.StashKey()

# Otherwise pytest-asyncio's first look at the current loop makes one that nobody closes; its ResourceWarning fails
# whichever test the garbage collector meets it in.
asyncio.set_event_loop(None)


def pytest_configure(config):
    """In a broken mode an exporter of this process retries with random pauses while Hypothesis draws."""
    if any(os.environ.get(name) for name in MODE):
        config.addinivalue_line("filterwarnings", "ignore:Do not use the .random. module inside strategies")
    if not hasattr(config, "workerinput"):  # processes of `-n` have it from the one that starts them
        have_temporary_directory(config)


def have_temporary_directory(config):
    """What tests and their processes leave there (who is killed tidies nothing, browsers little) ends with the session.

    The directories of `tmp_path` stay where pytest keeps those of the last three sessions.
    """
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    before = os.environ.get("TMPDIR")
    made = tempfile.mkdtemp(prefix="hf-")  # short: a socket's path ends at 107 bytes
    os.environ["TMPDIR"], tempfile.tempdir = made, None
    config.stash[TEMPORARY] = (made, before)


def pytest_unconfigure(config):
    """The last step of a session; of the one that made the directory only."""
    if TEMPORARY not in config.stash:
        return
    made, before = config.stash[TEMPORARY]
    tempfile.tempdir = None
    if before is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = before
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session", autouse=any(os.environ.get(name) for name in MODE))
def broken_telemetry():
    """In `make telemetry-modes` only: engines and runtimes in this process have the mode's tracer, too.

    A test that gives a tracer or an endpoint of its own keeps it.
    """
    from holdfast.app import observing, runtime
    from holdfast.config import Settings
    from holdfast.telemetry import Log

    mode = {name.removeprefix("HOLDFAST_").lower(): os.environ.get(name, "") for name in MODE}
    observe, log = observing.observe, Log()

    def with_mode(settings, log, **more):
        missing = {name: value for name, value in mode.items() if not getattr(settings, name)}
        return observe(settings.model_copy(update=missing), log, **more)

    runtime.observe = with_mode
    Log.telemetry = observe(Settings.model_validate(mode), log)
    yield
    runtime.observe = observe


@pytest.fixture(scope="session")
def figures(request):
    """Take a title and lines of measured figures, printed at the end, of tests that pass too."""
    return request.config.stash.setdefault(FIGURES, {}).__setitem__


def told(config):
    """Titles and lines for the summary: what was measured, and in a broken telemetry mode what its tracer lost."""
    from holdfast.telemetry import Log

    pumps = [f"{pump.name}: {pump.failures} failures, {pump.dropped} dropped" for pump in Log.telemetry.pumps]
    return {**config.stash.get(FIGURES, {}), **({"telemetry of the tests' own process": pumps} if pumps else {})}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """What was captured goes from process to process as UTF-8, and some tests are about what that cannot say."""
    report = yield
    report.sections = [(name, text.encode(errors="replace").decode()) for name, text in report.sections]
    return report


def pytest_sessionfinish(session):
    """A process of `-n` hands what it has to tell to the one that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["told"] = told(session.config)


@pytest.hookimpl(optionalhook=True)  # pytest has it only where xdist is in use
def pytest_testnodedown(node):
    """The one that prints takes it."""
    for title, lines in getattr(node, "workeroutput", {}).get("told", {}).items():
        node.config.stash.setdefault(FIGURES, {}).setdefault(title, []).extend(lines)


def pytest_terminal_summary(terminalreporter):
    """Prints all that."""
    for title, lines in told(terminalreporter.config).items():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)

"""What the pages list is what the code has: settings, paths, events, reasons, errors, directives."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from holdfast.config import Settings
from holdfast.config import settings as settings_module
from holdfast.domain.events import EventType
from holdfast.domain.runs import Policy, Reason, State
from tests.docs.blocks import PAGES, ROOT, blocks


def load_generator():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    section = text.split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)[0]
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize("name", load_generator().PAGES)
def test_generated_parts_are_up_to_date(name):
    """The diagram, the decisions and the errors are those that run; `python docs/generate.py` renews them."""
    text = page(name)
    assert "<!-- generated:" in text
    assert load_generator().renew(text) == text


def test_every_setting_is_explained_with_its_default():
    """Whoever reads the page knows every limit, and by which name to change it."""
    listed = {}
    for name, default, _ in re.findall(r"^\| (\w+) \| ([^|]*)\| ([^|]*)\|$", page("settings.md"), re.MULTILINE):
        if name.islower() and name not in ("setting", "name"):
            listed[name] = default.strip()
    expected = {name: field.default for name, field in Settings.model_fields.items()}
    assert listed == {name: _shown(default) for name, default in expected.items()}


def test_every_other_variable_is_explained():
    """A HOLDFAST_ name that is no setting is not a mistake, and the page says what it is."""
    text = page("settings.md")
    assert [name for name in settings_module._ENV_OTHERS - {"HOLDFAST_FULL"} if name not in text] == []


def test_every_path_is_listed_and_no_other():
    """The tables of the API are those of the router."""
    gateway = pytest.importorskip("holdfast.gateway.app")
    text = page("protocol.md")
    listed = {row[0] for heading in ("## Native API", "## OpenAI", "## Other protocols") for row in rows(text, heading)}
    served = {f"{operation.method} {operation.path}" for operation in gateway.OPERATIONS}
    assert listed - served <= {"GET /openapi.json", "GET /docs", "GET /"}
    assert served - listed == set()


def test_every_event_is_listed():
    """A reader finds each type that it can meet."""
    listed = {name.strip() for row in rows(page("protocol.md"), "## Events") for name in row[0].split(",")}
    assert listed == set(EventType)


def test_every_reason_state_and_policy_is_explained():
    """No word of a record is left to guessing."""
    text = page("lifecycle.md")
    explained = re.findall(r"^\| (\w+)", text, re.MULTILINE)
    assert [word for word in (*Reason, *State, *Policy) if word not in explained] == []


def test_every_directive_is_listed():
    """What the rehearsal model can do is on the page."""
    rehearsal = pytest.importorskip("holdfast.rehearsal")
    listed = re.findall(r"^\| `!(\w+)", page("protocol.md"), re.MULTILINE)
    assert sorted(listed) == sorted(rehearsal.DIRECTIVES)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path):
    """A page that leads nowhere is worse than none."""
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


def test_every_package_has_its_place_on_the_page_of_the_parts():
    """Who comes to change something finds where it stands."""
    packages = {path.parent.name for path in (ROOT / "src" / "holdfast").glob("*/__init__.py")}
    table = rows(page("parts.md"), "## Which package knows which")
    assert {name for row in table for name in row[0].split(", ")} == packages
    for module in re.findall(r"`([a-z_]+/[a-z_]+\.py)`", page("parts.md")):
        assert (ROOT / "src" / "holdfast" / module).is_file(), module


def test_readme_shows_the_example_as_it_is():
    """The six lines that people copy are the six lines that are tested."""
    (block,) = blocks("file", "app.py")
    assert block.code == (ROOT / "examples" / "app.py").read_text(encoding="utf-8")
    assert len(block.code.split("\n")) - block.code.split("\n").count("") == 6


def test_isolation_page_shows_the_examples_as_they_are():
    """What people copy there is what is served in a test."""
    for name in ("heavy.py", "workshop.py"):
        (block,) = blocks("file", name)
        assert block.code == (ROOT / "examples" / name).read_text(encoding="utf-8")


def test_make_targets_on_the_pages_exist():
    """The first command that a visitor types works."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {t for path in PAGES for t in re.findall(r"(?:    |`)make ([a-z-]+)\b", path.read_text())}
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named - targets == set()


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)

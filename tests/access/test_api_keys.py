"""API keys: what is let in, what is refused at the start, and how they change under a running server."""

import io
import os
from pathlib import Path

import pytest

from holdfast.gateway import api_keys
from holdfast.gateway.api_keys import ApiKey, ApiKeys, BadKeys, digest_of, line_of, new_key
from holdfast.telemetry import Log

BOTH = frozenset({"read", "run"})


def keys(listed: str = "", file: Path | None = None, lines: io.StringIO | None = None) -> ApiKeys:
    return ApiKeys(listed, str(file or ""), Log(stream=lines or io.StringIO()))


def test_a_list_of_names_and_keys() -> None:
    """As HOLDFAST_API_KEYS has it: a key may hold a colon, blanks around an entry mean nothing."""
    found = keys("alice:one, bob:two:three ,carol:four tenant=team scopes=read,")
    assert found.find("one") == ApiKey("alice", "alice", BOTH, digest_of("one"))
    assert found.find("two:three") == ApiKey("bob", "bob", BOTH, digest_of("two:three"))
    assert found.find("four") == ApiKey("carol", "team", frozenset({"read"}), digest_of("four"))
    assert [found.find(text) for text in ("", "alice", "One", "alice:one", "two", " one")] == [None] * 6


def test_a_file_has_digests(tmp_path: Path) -> None:
    """What lies on the disk lets nobody in: `holdfast key` writes the line, the key is shown once."""
    secret = new_key()
    path = tmp_path / "keys"
    path.write_text(f"# made today\n\n{line_of('alice', secret, 'team', ['read'])}\nbob:plain\n")
    found = keys(file=path)
    assert found.find(secret) == ApiKey("alice", "team", frozenset({"read"}), digest_of(secret))
    assert found.find("plain") is not None
    assert found.find(f"sha256:{digest_of(secret).hex()}") is None
    assert secret not in path.read_text()


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        ("alice", "api_keys, entry 1 is not name:key"),
        ("alice:k3y,:two", "api_keys, entry 2: the name is not"),
        ("al/ice:one", "the name is not 1 to 64"),
        ("alice:", "is not name:key"),
        ("alice:sha256:abc", "not followed by 64 hex digits; `holdfast key alice` prints a line"),
        ("alice:k3y admin=yes", "'admin' is neither tenant= nor scopes="),
        ("alice:k3y tenant=a:b", "the tenant is not 1 to 64"),
        ("alice:k3y scopes=write", "scopes are read, run, or read+run"),
        ("alice:k3y,alice:two", "two API keys are named 'alice'"),
        ("alice:k3y,bob:k3y", "API keys 'alice' and 'bob' are the same"),
    ],
)
def test_a_malformed_list_is_refused_without_telling_a_key(listed: str, says: str) -> None:
    """At the start, with its place and what to do: a key that is silently not there is found out by its user."""
    with pytest.raises(BadKeys) as caught:
        keys(listed)
    assert says in str(caught.value)
    assert "k3y" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A path that is mistyped must not leave a server that lets nobody in."""
    with pytest.raises(BadKeys, match="cannot be read"):
        keys(file=tmp_path / "none")
    (tmp_path / "large").write_bytes(b"#" * 5_000_000)
    with pytest.raises(BadKeys, match="larger than"):
        keys(file=tmp_path / "large")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(BadKeys, match="cannot be read"):
        keys(file=tmp_path / "binary")


def test_keys_change_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Added, withdrawn and, where the new content is wrong, left as they were and said once."""
    monkeypatch.setattr(api_keys, "_LOOK_S", 0.0)
    path, lines = tmp_path / "keys", io.StringIO()
    path.write_text("alice:one\n")
    found = keys("fixed:zero", path, lines)
    alice = found.find("one")
    assert alice is not None
    assert found.holds(alice)
    path.write_text("alice:one\nbob:two\n")
    assert found.find("two") is not None
    path.write_text("alice:one\nbob\n")
    for _ in range(3):
        assert found.find("two") is not None, "what was valid stays valid while the file is wrong"
    assert lines.getvalue().count("api_keys_not_read") == 1
    assert "line 2 is not name:key" in found.why
    path.write_text("bob:two\n")
    assert found.find("one") is None
    assert not found.holds(alice)
    assert found.why == ""
    path.unlink()
    assert found.find("two") is not None
    assert "cannot be read" in found.why
    (tmp_path / "next").write_text("carol:three tenant=bob\n")
    os.replace(tmp_path / "next", path)
    assert [found.find(text) is not None for text in ("zero", "two", "three")] == [True, False, True]


def test_a_key_whose_tenant_changed_is_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that was opened with it must not go on with what it might see before."""
    monkeypatch.setattr(api_keys, "_LOOK_S", 0.0)
    path = tmp_path / "keys"
    path.write_text("alice:one\n")
    found = keys(file=path)
    before = found.find("one")
    path.write_text("alice:one scopes=read\n")
    assert before is not None
    assert not found.holds(before)

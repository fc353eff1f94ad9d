"""Limits that depend on each other are judged together, before anything is served."""

import pytest

from holdfast.config import Settings
from holdfast.config.settings import SettingsError, load


def test_a_lease_outlives_two_renewals() -> None:
    """Else every healthy run would end with worker_lost, and nobody would think of a setting."""
    with pytest.raises(SettingsError) as refused:
        load({}, environ={"HOLDFAST_LEASE_S": "2"})
    assert str(refused.value) == (
        "lease_s is 2 and renew_s 2.5: a lease must outlive two renewals; set renew_s to 0.5, or raise lease_s"
    )
    assert load({"lease_s": 2, "renew_s": 0.5}, environ={}).lease_s == 2


def test_by_default_what_is_inside_is_shorter_than_what_is_around_it() -> None:
    """F62: connect within first content within request within run; each inner limit can fire, and says its own name."""
    default = Settings()
    assert default.model_connect_s < default.model_first_content_s < default.model_request_s < default.run_deadline_s
    assert default.model_idle_s < default.model_request_s
    assert default.tool_queue_s < default.tool_timeout_s < default.run_deadline_s
    assert default.stop_grace_s < default.loop_stall_s < default.lease_s
    assert default.queue_timeout_s < default.session_wait_s
    assert 2 * default.stop_grace_s < default.drain_s


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"HOLDFAST_STOP_GRACE": "1"}, "HOLDFAST_STOP_GRACE (environment); write HOLDFAST_STOP_GRACE_S if"),
        ({"HOLDFAST_QQQ": "1"}, "HOLDFAST_QQQ (environment); remove it, or see docs/settings.md"),
    ],
    ids=["near", "far"],
)
def test_a_misspelled_setting_is_refused_with_the_name_that_was_meant(tmp_path, environ, said) -> None:
    """A typing mistake must not leave a default in force, and should cost its author seconds."""
    with pytest.raises(SettingsError) as refused:
        load({}, directory=tmp_path, environ=environ)
    assert said in str(refused.value)

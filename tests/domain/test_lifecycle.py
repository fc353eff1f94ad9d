"""The lifecycle table: total, closed, and never out of an end."""

import itertools

import pytest

from holdfast.domain.runs import (
    REASONS,
    TABLE,
    Move,
    Phase,
    Reason,
    Refusal,
    State,
    Trigger,
    decide,
    phase_of,
)

PAIRS = list(itertools.product(Phase, Trigger))
TERMINAL = [phase for phase in Phase if phase.state.terminal]
LIVE = [phase for phase in Phase if not phase.state.terminal]
# The diagram of DESIGN, section 3, with the stop flag told apart.
ARROWS = {
    Phase.QUEUED: {Phase.RUNNING, Phase.FAILED, Phase.CANCELLED},
    Phase.RUNNING: {
        Phase.RUNNING,
        Phase.STOPPING,
        Phase.WAITING,
        Phase.QUEUED,
        Phase.COMPLETED,
        Phase.FAILED,
        Phase.CANCELLED,
    },
    Phase.STOPPING: {Phase.STOPPING, Phase.CANCELLED},
    Phase.WAITING: {Phase.QUEUED, Phase.FAILED, Phase.CANCELLED},
}
HOLDERS_ONLY = [
    Trigger.APPEND,
    Trigger.PARK,
    Trigger.RELEASE,
    Trigger.COMPLETE,
    Trigger.FAIL,
    Trigger.CANCEL,
]


@pytest.mark.parametrize(("phase", "trigger"), PAIRS)
def test_every_pair_is_decided(phase: Phase, trigger: Trigger) -> None:
    """Nothing that can happen to a run is left to whoever writes the store."""
    assert isinstance(decide(phase, trigger), Move | Refusal)


def test_the_table_has_no_other_rows_or_columns() -> None:
    """A phase or trigger that nobody decides, or that nobody names, is a mistake."""
    assert list(TABLE) == list(Phase)
    assert all(list(row) == list(Trigger) for row in TABLE.values())


@pytest.mark.parametrize("phase", TERMINAL)
def test_an_end_is_final(phase: Phase) -> None:
    """P1: exactly one terminal event; no trigger moves a run that has one."""
    assert not [t for t in Trigger if isinstance(decide(phase, t), Move)]


@pytest.mark.parametrize(("phase", "trigger"), [p for p in PAIRS if p[0] in LIVE])
def test_no_move_leaves_the_diagram(phase: Phase, trigger: Trigger) -> None:
    """Triggers move along the arrows of the diagram only."""
    decision = decide(phase, trigger)
    if isinstance(decision, Move):
        assert decision.to in ARROWS[phase]


def test_every_arrow_of_the_diagram_has_a_trigger() -> None:
    """The diagram promises nothing that cannot happen."""
    moves = {(phase, d.to) for phase, t in PAIRS if isinstance(d := decide(phase, t), Move)}
    assert moves == {(phase, to) for phase, all_to in ARROWS.items() for to in all_to}


def test_every_phase_is_reachable_and_every_live_one_can_end() -> None:
    """No run is stuck by construction."""
    onwards = {phase: {d.to for t in Trigger if isinstance(d := decide(phase, t), Move)} for phase in Phase}
    assert _reach(Phase.QUEUED, onwards) == set(Phase)
    for phase in LIVE:
        assert _reach(phase, onwards) & set(TERMINAL)


@pytest.mark.parametrize("phase", LIVE)
def test_a_stop_moves_every_live_run_towards_its_end(phase: Phase) -> None:
    """Stop works at any time: queued and waiting runs end in that step, a running one is flagged."""
    decision = decide(phase, Trigger.STOP)
    assert isinstance(decision, Move)
    flagged = phase in (Phase.RUNNING, Phase.STOPPING)
    assert decision.to is (Phase.STOPPING if flagged else Phase.CANCELLED)


def test_a_run_that_was_told_to_stop_never_works_again() -> None:
    """[MC] no trigger requeues, parks or completes it: it ends cancelled."""
    for trigger in Trigger:
        decision = decide(Phase.STOPPING, trigger)
        if isinstance(decision, Move):
            assert decision.to in (Phase.STOPPING, Phase.CANCELLED)
    assert decide(Phase.STOPPING, Trigger.COMPLETE) is Refusal.STOP
    assert decide(Phase.STOPPING, Trigger.FAIL) is Refusal.STOP
    assert decide(Phase.STOPPING, Trigger.PARK) is Refusal.STOP


@pytest.mark.parametrize("trigger", HOLDERS_ONLY)
def test_only_running_runs_have_a_writer(trigger: Trigger) -> None:
    """[MC] the fence checks the state: everywhere else the holder's verbs are FENCED."""
    for phase in Phase:
        if phase not in (Phase.RUNNING, Phase.STOPPING):
            assert decide(phase, trigger) is Refusal.FENCED


def test_a_time_that_is_up_ends_a_run_of_any_phase() -> None:
    """Every wait has a limit: no live phase answers NOT_DUE to its timer."""
    for phase in LIVE:
        decision = decide(phase, Trigger.TIME_UP)
        assert isinstance(decision, Move)
        assert decision.to.state.terminal


def test_every_reason_belongs_to_one_state() -> None:
    """The record's reason says its state: a reason in two states, or in none, would not."""
    named = [reason for reasons in REASONS.values() for reason in reasons]
    assert sorted(named) == sorted(Reason)
    assert set(REASONS) == {state for state in State if state.terminal}


@pytest.mark.parametrize(("state", "stopping"), list(itertools.product(State, [False, True])))
def test_a_phase_shows_its_state(state: State, stopping: bool) -> None:
    """`stopping` is running with a flag, and no state of its own."""
    phase = phase_of(state, stopping=stopping)
    assert phase.state is state
    assert (phase is Phase.STOPPING) == (stopping and state is State.RUNNING)


def _reach(start: Phase, onwards: dict[Phase, set[Phase]]) -> set[Phase]:
    seen, rest = {start}, [start]
    while rest:
        new = onwards[rest.pop()] - seen
        seen |= new
        rest += new
    return seen

"""When a dead plugin is started again, and which states may follow each other. No processes here."""

import pytest

from host.runtime.handle import PluginState
from host.runtime.states import TRANSITIONS, StateMachine
from host.runtime.supervise import CrashPolicy, GiveUp, Restart
from host.runtime.timings import ProcessTimings


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


def policy(clock, dice=lambda low, high: high):
    return CrashPolicy(ProcessTimings(), clock=clock, dice=dice)


def test_a_process_that_was_ready_for_a_second_is_restarted_at_once_however_often_it_dies():
    decide = policy(Clock())
    assert [decide.after_death(ready_for_s=1.0) for _ in range(20)] == [Restart(0.0)] * 20


def test_early_deaths_back_off_from_half_a_second_doubling_the_range_of_the_dice():
    ranges = []
    clock = Clock()
    decide = policy(clock, lambda low, high: ranges.append((low, high)) or low)
    for _ in range(12):
        clock.now_s += 301  # so that they never add up
        decide.after_death(ready_for_s=0.0)
    assert ranges[:4] == [(0.5, 1.0), (0.5, 2.0), (0.5, 4.0), (0.5, 8.0)]
    assert ranges[-1] == (0.5, 30.0)


def test_the_fifth_early_death_within_five_minutes_gives_up():
    clock = Clock()
    decide = policy(clock)
    outcomes = []
    for _ in range(5):
        clock.now_s += 60
        outcomes.append(decide.after_death(ready_for_s=0.9))
    assert all(isinstance(outcome, Restart) for outcome in outcomes[:4])
    assert isinstance(outcomes[4], GiveUp)
    assert "died 5 times within 300 s" in outcomes[4].reason


def test_early_deaths_that_are_further_apart_do_not_add_up():
    clock = Clock()
    decide = policy(clock)
    for _ in range(20):
        clock.now_s += 76  # at most four within 300 s
        assert isinstance(decide.after_death(ready_for_s=0.0), Restart)


def test_a_good_life_starts_the_backoff_from_its_beginning_but_keeps_the_count():
    clock = Clock()
    decide = policy(clock)
    for _ in range(4):
        decide.after_death(ready_for_s=0.0)
    assert decide.after_death(ready_for_s=60.0) == Restart(0.0)
    assert isinstance(decide.after_death(ready_for_s=0.0), GiveUp)


def test_a_process_that_never_was_ready_backs_off_even_when_any_life_counts_as_a_good_one():
    decide = CrashPolicy(ProcessTimings(stable_s=0.0), clock=Clock(), dice=lambda low, high: high)
    assert decide.after_death(ready_for_s=0.0) == Restart(0.0)
    assert decide.after_death(ready_for_s=None) == Restart(1.0)


def test_a_reset_forgets_all_deaths():
    decide = policy(Clock())
    for _ in range(5):
        last = decide.after_death(ready_for_s=0.0)
    assert isinstance(last, GiveUp)
    decide.forget()
    assert decide.after_death(ready_for_s=0.0) == Restart(1.0)


def test_every_transition_of_the_table_is_taken_and_told_with_its_reason():
    for old, followers in TRANSITIONS.items():
        for new in followers:
            told = []
            machine = StateMachine("p", generation=1, listener=lambda *change, told=told: told.append(change))
            machine.state = old
            machine.move(new, "because")
            assert (machine.state, machine.reason, told) == (new, "because", [(old, new, "because")])


def test_a_transition_that_is_not_in_the_table_is_a_bug_of_the_host():
    machine = StateMachine("p", generation=1)
    with pytest.raises(RuntimeError, match="no transition from stopped to ready"):
        machine.move(PluginState.READY, "never started")


def test_staying_in_a_state_is_told_to_nobody():
    told = []
    machine = StateMachine("p", generation=1, listener=lambda *change: told.append(change))
    machine.move(PluginState.STOPPED, "again")
    assert told == []


def test_every_state_of_a_process_is_in_the_table():
    assert set(TRANSITIONS) == set(PluginState) - {PluginState.DISCOVERED}

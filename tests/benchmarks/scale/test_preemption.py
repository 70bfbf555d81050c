"""What counts as a good trial; the trials themselves take minutes."""

from benchmarks.scale import preemption
from jaxanom.training import preemption as stopping

GOOD = {"status": stopping.EXIT_CODE, "saved": True, "seconds": 1.0}
TRIALS = [
    {**GOOD, "resumed_from": 0, "step": 2},
    {**GOOD, "resumed_from": 2, "step": 5},
    {**GOOD, "resumed_from": 5, "step": 6},
]
LAST_START = 6


def changed(place, **values):
    trials = [dict(trial) for trial in TRIALS]
    trials[place] |= values
    return preemption.good(trials, LAST_START)


def test_trials_that_save_in_time_and_lose_no_step_are_good():
    assert preemption.good(TRIALS, LAST_START) == [True] * 3


def test_each_way_to_fail_is_told():
    assert changed(1, status=-15) == [True, False, True]
    assert changed(1, saved=False, step=None) == [True, False, True]
    assert changed(1, seconds=preemption.LIMIT_S + 0.1) == [True, False, True]
    # The next start went back further than what was said to be saved.
    assert changed(2, resumed_from=4) == [True, False, True]
    assert preemption.good(TRIALS, last_start=5) == [True, True, False]


def test_the_saved_step_and_its_folder_are_read_from_what_the_command_says():
    said = (
        "stopped by SIGTERM in phase 'fit' after step 12; the state is saved in /a/12:"
    )
    assert preemption._SAVED_IN.search(said).groups() == ("12", "/a/12")

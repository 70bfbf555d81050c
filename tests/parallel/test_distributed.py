"""That processes find each other is tested in training/test_processes.py."""

import signal

import jax
import pytest

from jaxanom.parallel import distributed


@pytest.mark.parametrize("name", [distributed.COUNT, "SLURM_STEP_NUM_TASKS"])
def test_a_command_for_one_process_refuses_several_and_says_which_variable(
    monkeypatch, name
):
    monkeypatch.delenv(distributed.COUNT, raising=False)
    monkeypatch.setenv(name, "1")
    distributed.check_alone("sweep")
    monkeypatch.setenv(name, "2")
    with pytest.raises(ValueError, match=f"sweep runs in one process, and {name}=2"):
        distributed.check_alone("sweep")


@pytest.mark.parametrize("count", [1, 2])
def test_a_process_alone_takes_its_signal_back_from_jax(monkeypatch, count):
    ours = signal.getsignal(signal.SIGTERM)

    def joins(**keywords):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as jax's service does

    monkeypatch.setattr(jax.distributed, "initialize", joins)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    try:
        distributed.initialise()
        assert (signal.getsignal(signal.SIGTERM) is ours) == (count == 1)
    finally:
        signal.signal(signal.SIGTERM, ours)

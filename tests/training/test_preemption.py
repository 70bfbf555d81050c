import os
import signal
import threading

from jaxanom.training import preemption


def test_the_flag_rises_with_the_signal_and_the_old_handler_returns():
    before = signal.getsignal(signal.SIGTERM)
    with preemption.watch() as asked_to_stop:
        assert not asked_to_stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked_to_stop(2)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_leaves_signals_to_the_main_thread():
    found = []

    def work():
        with preemption.watch() as asked_to_stop:
            found.append(asked_to_stop(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_preemption_ends_the_process_with_a_message_and_a_failure_status():
    stopped = preemption.Preempted("saved in x")
    assert isinstance(stopped, SystemExit) and stopped.code == "saved in x"

import http.server
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import jaxanom
from jaxanom.training import preemption

PATIENCE_S = 300  # a machine shared with others may take long to start a process
UNWINDS = """
    try:
        print("here", flush=True)
        time.sleep(600)
    finally:
        print("tidied", flush=True)
"""
# Compiled code that neither holds Python's lock nor looks for signals, as XLA's. The
# word comes a second later from another thread: when the main one is in the middle.
DEAF = """
    threading.Timer(1.0, print, ["here"], {"flush": True}).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def test_the_flag_rises_with_the_signal_and_the_old_handler_returns():
    before = signal.getsignal(signal.SIGTERM)
    with preemption.watch() as asked_to_stop:
        assert not asked_to_stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked_to_stop(2)
    assert signal.getsignal(signal.SIGTERM) is before


def stopped(body, patience_s=2.0):
    """Sends SIGTERM to a program inside `at_once`; returns (status, said, errors)."""
    program = (
        "import hashlib, threading, time\nfrom jaxanom.training import preemption\n"
        f"preemption._PATIENCE_S = {patience_s}\n"
        f"with preemption.at_once():{body}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(jaxanom.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=PATIENCE_S)
        return process.returncode, said, errors
    finally:
        process.kill()
        process.wait()


def test_with_nothing_to_save_the_signal_unwinds_and_ends_with_the_same_status():
    # A patience that a loaded machine does not use up while it tidies.
    status, said, _ = stopped(UNWINDS, patience_s=60)
    assert (status, said) == (preemption.EXIT_CODE, "tidied\n")


def test_compiled_code_that_hears_no_signal_is_left_in_the_middle():
    start = time.monotonic()
    status, _, errors = stopped(DEAF)
    assert status == preemption.EXIT_CODE and preemption.AT_ONCE in errors
    # The program takes half an hour; two seconds are granted it, and a machine under
    # load is slow to start and end processes.
    assert time.monotonic() - start < 60


def test_while_there_is_something_to_save_nobody_leaves(monkeypatch):
    monkeypatch.setattr(preemption, "_PATIENCE_S", 0.05)
    with preemption.at_once(), preemption.watch() as asked_to_stop:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)  # ten times the patience: this process is still here
        assert asked_to_stop(1)


def test_a_signal_after_the_last_question_is_heeded_after_the_last_step():
    with pytest.raises(preemption.Preempted), preemption.at_once():
        with preemption.watch() as asked_to_stop:
            assert not asked_to_stop(1)
            os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the request to stop was forgotten")


def test_of_several_processes_none_leaves_by_itself():
    before = signal.getsignal(signal.SIGTERM)
    with preemption.at_once(alone=False):
        assert signal.getsignal(signal.SIGTERM) is before


def test_afterwards_signals_are_handled_as_before():
    handler, file = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    with preemption.at_once():
        assert signal.getsignal(signal.SIGTERM) is not handler
    assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.set_wakeup_fd(file) == file == -1


def test_a_thread_leaves_signals_to_the_main_thread():
    found = []

    def work():
        with preemption.watch() as asked_to_stop:
            found.append(asked_to_stop(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_preemption_has_a_message_and_the_status_that_schedulers_requeue():
    stopped = preemption.Preempted("saved in x")
    assert isinstance(stopped, SystemExit) and stopped.code == preemption.EXIT_CODE
    assert str(stopped) == stopped.message == "saved in x"


@pytest.fixture
def page():
    """A platform's page of notices: what it says, and where it is."""
    said = ["FALSE"]

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(said[0].encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield said, f"http://127.0.0.1:{server.server_port}/preempted"
        server.shutdown()
        thread.join()


def test_the_platforms_notice_raises_the_flag_and_its_absence_does_not(
    page, monkeypatch
):
    said, url = page
    monkeypatch.setenv(preemption.NOTICE_URL, url)
    with preemption.watch() as asked_to_stop:
        time.sleep(1.5)  # a question a second: at least one was answered
        assert not asked_to_stop(1)
        said[0] = "TRUE"
        give_up = time.monotonic() + 60
        while not asked_to_stop(2):
            assert time.monotonic() < give_up, "the notice was not heeded"
            time.sleep(0.05)


def test_a_page_that_does_not_answer_stops_nothing_and_is_asked_again(monkeypatch):
    asked, came = [], []

    def refuse(request, timeout):
        asked.append(request.full_url)
        if len(asked) < 3:
            raise ConnectionRefusedError
        return io.BytesIO(b"TRUE")  # it answers in the end

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(os, "kill", lambda pid, number: came.append(number))
    with preemption.notices("http://nowhere/", every_s=0.01):
        give_up = time.monotonic() + 60
        while not came:
            assert len(asked) <= 3 and time.monotonic() < give_up
            time.sleep(0.01)
    assert asked == ["http://nowhere/"] * 3 and came == [signal.SIGTERM]

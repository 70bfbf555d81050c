import http.server
import os
import signal
import threading
import time

import pytest

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


def test_a_page_that_does_not_answer_stops_nothing():
    with preemption.notices("http://127.0.0.1:9/", every_s=0.01):
        time.sleep(0.1)

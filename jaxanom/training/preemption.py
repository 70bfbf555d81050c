"""A request to stop (SIGTERM, a platform's notice): what it ends, and when.

Before a step is trained, and in commands that train nothing, it ends the process at
once: `at_once`. Between steps it is a flag that the loop reads and saves for: `watch`.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# jax is imported where it is used: a command listens before it has imported that much.

EXIT_CODE = 75
"""Of a process that stopped as asked: EX_TEMPFAIL of sysexits.h, "try again". The
scripts of `launch/` requeue on it and on nothing else."""

NOTICE_URL = "JAXANOM_NOTICE_URL"
"""Variable that names the page on which a platform announces the end of a machine, on
Google Cloud http://metadata.google.internal/computeMetadata/v1/instance/preempted"""

AT_ONCE = (
    "stopped by SIGTERM; nothing is half-written: start the same command again, which "
    "begins anew what it had not finished"
)
_NOTICE_EVERY_S = 1.0
_PATIENCE_S = 2.0
"""What the main thread gets to remove its temporary files before it is left alone."""


class Preempted(SystemExit):
    """The process was asked to stop; the message says what is saved, and where."""

    def __init__(self, message: str):
        """Takes what to tell the user."""
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        """Returns the message."""
        return self.message


@contextlib.contextmanager
def at_once(alone: bool = True) -> Iterator[None]:
    """Lets SIGTERM end the process while the context is open; there is nothing to save.

    `Preempted` is raised in the main thread, so that whoever writes a file removes it.
    Python does that between two of its own instructions; a compile or another long call
    into compiled code cannot be interrupted, so after `_PATIENCE_S` seconds a second
    thread ends the process in the middle of it, with the same exit code.

    Args:
      alone: False does nothing: of several processes none may leave by itself, and the
        service that `watch` asks has taken over the signal when they were joined.
    """
    if not alone or threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread only; its owner decides there.
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise Preempted(AT_ONCE)

    with _abandoning(), _handled_by(leave):
        yield


@contextlib.contextmanager
def watch() -> Iterator[Callable[[int], bool]]:
    """Catches SIGTERM while the context is open, and heeds the platform's notice.

    With several processes the notice may reach only one of them: jax's coordinator then
    agrees on one step for all, so that they save the same state.

    Yields:
      global step -> True if the run should save after this step and stop. A signal that
      came after the last question is sent again when the context has closed.
    """
    import jax
    from jax.experimental import multihost_utils

    with notices(os.environ.get(NOTICE_URL, "")):
        if jax.process_count() > 1:
            yield multihost_utils.reached_preemption_sync_point
            return
        if threading.current_thread() is not threading.main_thread():
            yield lambda step: False
            return
        signalled, reported = threading.Event(), threading.Event()

        def asked_to_stop(step: int) -> bool:
            if signalled.is_set():
                reported.set()
            return reported.is_set()

        with _heard_by(-1), _handled_by(lambda number, frame: signalled.set()):
            yield asked_to_stop
        if signalled.is_set() and not reported.is_set():
            signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    previous = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _heard_by(file: int) -> Iterator[None]:
    """Has the number of every signal written to a file, at once; -1: to none."""
    previous = signal.set_wakeup_fd(file, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)


@contextlib.contextmanager
def _abandoning() -> Iterator[None]:
    """Ends the process where SIGTERM came and the context is still open after a while.

    The part of a signal's handling that is in C writes to a pipe whatever the main
    thread does, and a thread that reads from it runs beside compiled code.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    closed = threading.Event()

    def listen() -> None:
        while signal.SIGTERM not in os.read(reading, 1):
            if closed.is_set():
                return
        if not closed.wait(_PATIENCE_S):
            _abandon()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        with _heard_by(writing):
            yield
    finally:
        closed.set()
        os.write(writing, b"\0")
        thread.join()
        os.close(reading)
        os.close(writing)


def _abandon() -> None:
    """Leaves without unwinding; worker processes would not notice."""
    workers = sys.modules.get("multiprocessing")
    for child in workers.active_children() if workers else ():
        child.terminate()
    os.write(2, f"jaxanom: {AT_ONCE}\n".encode())
    os._exit(EXIT_CODE)


@contextlib.contextmanager
def notices(url: str, every_s: float = _NOTICE_EVERY_S) -> Iterator[None]:
    """Turns a platform's notice into SIGTERM for this process.

    Args:
      url: A page that says TRUE once the machine is to go; "" asks nobody.
      every_s: seconds between questions. A page that does not answer is asked again.
    """
    if not url:
        yield
        return
    closed = threading.Event()
    arguments = (url, every_s, closed)
    thread = threading.Thread(target=_ask, args=arguments, daemon=True)
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join()


def _ask(url: str, every_s: float, closed: threading.Event) -> None:
    import urllib.request  # a tenth of a second, for those who have such a page

    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    while not closed.wait(every_s):
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(request, timeout=every_s) as answer:
                said = answer.read(16).decode("ascii", "replace")
            if said.strip().upper() == "TRUE" and not closed.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
                return

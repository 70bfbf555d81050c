"""A request to stop (SIGTERM, a platform's notice) is a flag read between steps."""

import contextlib
import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75
"""Of a process that stopped as asked: EX_TEMPFAIL of sysexits.h, "try again". The
scripts of `launch/` requeue on it and on nothing else."""

NOTICE_URL = "JAXANOM_NOTICE_URL"
"""Variable that names the page on which a platform announces the end of a machine, on
Google Cloud http://metadata.google.internal/computeMetadata/v1/instance/preempted"""

_NOTICE_EVERY_S = 1.0


class Preempted(SystemExit):
    """Training was asked to stop; the message says what is saved, and where."""

    def __init__(self, message: str):
        """Takes what to tell the user."""
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        """Returns the message."""
        return self.message


@contextlib.contextmanager
def watch() -> Iterator[Callable[[int], bool]]:
    """Catches SIGTERM while the context is open, and heeds the platform's notice.

    With several processes the notice may reach only one of them: jax's coordinator then
    agrees on one step for all, so that they save the same state.

    Yields:
      global step -> True if the run should save after this step and stop.
    """
    with notices(os.environ.get(NOTICE_URL, "")):
        if jax.process_count() > 1:
            yield multihost_utils.reached_preemption_sync_point
            return
        asked = threading.Event()
        if threading.current_thread() is not threading.main_thread():
            # Python delivers signals to the main thread only; its owner decides there.
            yield lambda step: False
            return
        previous = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
        try:
            yield lambda step: asked.is_set()
        finally:
            signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def notices(url: str, every_s: float = _NOTICE_EVERY_S) -> Iterator[None]:
    """Turns a platform's notice into SIGTERM for this process.

    Args:
      url: of a page that says TRUE once the machine is to go; "" asks nobody.
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
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    while not closed.wait(every_s):
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(request, timeout=every_s) as answer:
                said = answer.read(16).decode("ascii", "replace")
            if said.strip().upper() == "TRUE" and not closed.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
                return

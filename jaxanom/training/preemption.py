"""A request to stop (SIGTERM) becomes a flag that the loop reads between steps."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


class Preempted(SystemExit):
    """Training was asked to stop and saved its state; the message says where."""


@contextlib.contextmanager
def watch() -> Iterator[Callable[[int], bool]]:
    """Catches SIGTERM while the context is open.

    With several processes the notice may reach only one of them: jax's coordinator then
    agrees on one step for all, so that they save the same state.

    Yields:
      global step -> True if the run should save after this step and stop.
    """
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

"""`--profile=DIR`: a trace of what the devices do, for TensorBoard or Perfetto."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def add_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds the flag.

    Args:
      parser: The verb's parser.
      what: is traced, for the help.
    """
    parser.add_argument(
        "--profile",
        default="",
        metavar="DIR",
        help=f"write a trace of {what} there, for TensorBoard or Perfetto",
    )


@contextlib.contextmanager
def whole(directory: str) -> Iterator[None]:
    """Traces all that happens inside; nothing if the name is empty."""
    if not directory:
        yield
        return
    import jax

    with jax.profiler.trace(directory):
        yield


@contextlib.contextmanager
def steps(directory: str) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """Yields an `on_log` that traces some steps of every phase; None for no name."""
    if not directory:
        yield None
        return
    with contextlib.closing(Steps(directory)) as on_log:
        yield on_log


class Steps:
    """Traces a training between two rows of metrics, once in every phase.

    The first row of a phase starts its trace and the second ends it: by then the step
    is compiled and has run, and the trace holds `config.train.log_every` steps.
    """

    def __init__(self, directory: str):
        self._directory = Path(directory)
        self._running = ""
        self._done: set[str] = set()

    def __call__(self, row: dict[str, Any]) -> None:
        """Sees a row of metrics."""
        phase = row["phase"]
        if self._running and row["kind"] == "train":
            self.close()
        elif row["kind"] == "train" and phase not in self._done:
            import jax

            self._done.add(phase)
            self._running = phase
            jax.profiler.start_trace(self._directory / phase)

    def close(self) -> None:
        """Ends a trace that is running; a phase may be over before its second row."""
        if self._running:
            import jax

            self._running = ""
            jax.profiler.stop_trace()

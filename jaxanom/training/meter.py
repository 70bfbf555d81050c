"""How fast training goes: steps, images, share of peak; compile time apart."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

AHEAD_S, LEAST_AHEAD, MOST_AHEAD = 1.0, 2, 4
"""Seconds, and steps, that a device is kept supplied with, see `Meter.ahead`."""


class Compiled(NamedTuple):
    """A compiled function with what compiling it took.

    Attributes:
      call: takes the arguments it was compiled for, nothing else.
      seconds: tracing and compiling, wall clock.
      flops: per device and call, as the compiler counts them; None if it does not. The
        body of a loop counts once, so this is a lower bound.
    """

    call: Any
    seconds: float
    flops: float | None


def compile_ahead(jitted: Any, *args: Any) -> Compiled:
    """Compiles a jitted function for these arguments and measures that alone."""
    start = time.perf_counter()
    call = jitted.lower(*args).compile()
    seconds = time.perf_counter() - start
    costs = call.cost_analysis()
    flops = costs.get("flops") if costs else None
    return Compiled(call=call, seconds=seconds, flops=flops)


class Meter:
    """A stopwatch over training steps.

    Steps are dispatched ahead of the device: call `read` only right after a value of
    the latest step was fetched, or the time of unfinished steps is missed.
    """

    def __init__(
        self,
        num_devices: int,
        peak_flops: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Starts the watch.

        Args:
          num_devices: devices that share the work.
          peak_flops: Operations per second of one device; 0 leaves the utilisation out.
          clock: () -> seconds.
        """
        self._num_devices = num_devices
        self._peak_flops = peak_flops
        self._clock = clock
        self._ticked, self._pace, self._total = clock(), 0.0, 0
        self._restart()

    def tick(self, num_images: int) -> None:
        """Counts one step on a global batch of `num_images` rows."""
        now = self._clock()
        # Steps that are only handed over take no time; a wait for one tells its own.
        self._pace = max(now - self._ticked, 0.9 * self._pace)
        self._ticked = now
        self._total += 1
        self._steps += 1
        self._images += num_images

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what happens inside: compiling, evaluating, saving."""
        paused_at = self._clock()
        yield
        paused = self._clock() - paused_at
        self._start += paused
        self._ticked += paused

    def ahead(self) -> int:
        """Returns how many steps to hand to the device before waiting for the oldest.

        Two keep it busy; more hide a late batch. What is on its way has to be waited
        for before a run that is asked to stop can save: of long steps there are two.
        The first step is waited for at once: until then nobody knows how long they are.
        """
        if self._total <= 1:
            return 1
        return LEAST_AHEAD if self._pace * MOST_AHEAD > AHEAD_S else MOST_AHEAD

    def read(self, steps_left: int, flops: float | None = None) -> dict[str, float]:
        """Returns the rates since the last reading and starts anew.

        Args:
          steps_left: for the time left, `eta_s`.
          flops: Operations of a step on one device; needed for `flop_utilisation`.
        """
        seconds = max(self._clock() - self._start, 1e-9)
        rate = self._steps / seconds
        rates = {
            "steps_per_s": rate,
            "images_per_s_per_device": self._images / seconds / self._num_devices,
        }
        if rate > 0:
            rates["eta_s"] = steps_left / rate
        if flops and self._peak_flops > 0:
            rates["flop_utilisation"] = flops * rate / self._peak_flops
        self._restart()
        return rates

    def _restart(self) -> None:
        self._start = self._clock()
        self._steps = 0
        self._images = 0


def shapes_of(tree: Any) -> tuple[Any, ...]:
    """Returns what decides whether a function must be compiled again, hashable."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)

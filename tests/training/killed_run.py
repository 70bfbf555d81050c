"""Trains slowly, to be killed from outside: killed_run.py DIRECTORY."""

import sys
import time

import jax
import linear

from configs import common
from jaxanom.parallel import mesh
from jaxanom.training import loop

NUM_STEPS = 12


def slowly(phase_name, start_step):
    batches = linear.make_batches(phase_name, start_step)
    for position, batch in enumerate(batches, start=start_step):
        # The last step waits for the kill, however slow the killer is.
        time.sleep(0.1 if position < NUM_STEPS - 1 else 600.0)
        yield batch


def train(directory, make_batches):
    return loop.run(
        linear.make(linear.noisy_loss_fn),
        linear.phases_config(NUM_STEPS),
        # Saving at every step puts most kills into the middle of a save.
        common.TRAIN | {"log_every": 1, "checkpoint_every": 1, "ema_decay": 0.9},
        make_batches,
        mesh.make_mesh(devices=jax.devices()[:1]),
        directory,
    )


if __name__ == "__main__":
    train(sys.argv[1], slowly)

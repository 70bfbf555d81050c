"""One of several processes that train a line and evaluate it."""

import argparse
import json
import os
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import linear
import numpy as np

from configs import common
from jaxanom.data import pipeline
from jaxanom.evaluation import runner
from jaxanom.metrics import ranking
from jaxanom.parallel import distributed, mesh, placement
from jaxanom.training import loop
from jaxanom.types import Predictions

NUM_STEPS, NUM_TESTED, BATCH_SIZE = 8, 21, 8


def make_batches(rows):
    """Returns a maker of this process's rows of the shared batches."""

    def make(phase_name, start_step):
        for step in range(start_step, NUM_STEPS):
            whole = linear.batch_at(step, BATCH_SIZE)
            yield {key: value[list(rows)] for key, value in whole.items()}

    return make


def source():
    """Points to rank by their error; "defective" ones are every third."""
    return [
        {
            "image": linear.batch_at(1000 + place)["x"][0],
            "y": linear.batch_at(1000 + place)["y"][0],
            "label": np.int32(place % 3 == 0),
            "category_id": np.int32(0),
            "index": np.int32(place),
        }
        for place in range(NUM_TESTED)
    ]


def evaluate(params, frozen, devices):
    """Evaluates as `api.evaluate` does; the last batch is padded."""

    def predict(params, batch):
        layer = params["linear"]
        error = (batch["image"] @ layer["kernel"] - batch["y"] + layer["bias"])[:, 0]
        return Predictions(jnp.zeros((len(error), 1, 1)), error**2)

    rows = placement.process_rows(BATCH_SIZE, devices)
    apply = jax.jit(predict)
    return runner.evaluate(
        lambda batch: apply(params, batch),
        (
            placement.place_batch(batch, devices)
            for batch in pipeline.finite_batches(source(), BATCH_SIZE, rows)
        ),
        {"image": ranking.images()},
        gather=placement.to_host if jax.process_count() > 1 else None,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kill_after", type=int, default=0)
    parser.add_argument("--stop_after", type=int, default=0)
    parser.add_argument("--stop_before", action="store_true")
    arguments = parser.parse_args()
    distributed.initialise()
    if arguments.stop_before:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2.0)  # jax asks for signals once a second
    devices = mesh.make_mesh()
    rows = placement.process_rows(BATCH_SIZE, devices)

    def on_log(row):
        if row["kind"] == "train" and row["step"] == arguments.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if row["kind"] == "train" and row["step"] == arguments.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        if row["kind"] == "train" and 0 < arguments.stop_after <= row["step"]:
            # jax asks for signals once a second, and then agrees on a later step.
            time.sleep(2.0)

    params, info = loop.run(
        linear.make(linear.noisy_loss_fn),
        linear.phases_config(NUM_STEPS),
        common.TRAIN | {"log_every": 1, "checkpoint_every": 2, "ema_decay": 0.9},
        make_batches(rows),
        devices,
        arguments.directory,
        on_log=on_log,
    )
    found = evaluate(params, info["frozen"], devices)
    weights = jax.tree.map(lambda leaf: leaf.tolist(), placement.to_host(params))
    if distributed.is_writer():
        found |= {
            "weights": weights,
            "rows": list(rows),
            "processes": jax.process_count(),
            "resumed_from": info["resumed_from"],
        }
        (arguments.directory / "result.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

"""One of several processes that encode the training images of a config."""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from jaxanom import record
from jaxanom.jobs import prepare
from jaxanom.parallel import distributed


def first_batch(config):
    """Returns this process's rows of a training's first batch."""
    made = prepare.prepare(config)
    _, frozen = made.method.init(jax.random.key(0))
    make_batches = prepare.batch_maker(made, frozen, *prepare.pools_of(made))
    return next(make_batches(made.method.phases[-1].name, 0))


def main():
    config_file, directory = map(Path, sys.argv[1:])
    distributed.initialise()
    config = record.config_from_plain(json.loads(config_file.read_text()))
    np.savez(directory / f"{jax.process_index()}.npz", **first_batch(config))


if __name__ == "__main__":
    main()

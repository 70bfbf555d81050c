"""A tower of colours and edges, so that distances are known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.jobs import config_file
from jaxanom.methods.memory import complete, options, views
from jaxanom.models.features import towers


def features(params, image, taps):
    cells = (image.shape[0], image.shape[1] // 8, image.shape[2] // 8, 3)
    small = jax.image.resize(image, cells, "linear")
    kinds = {"colour": small + 0.1, "square": small**2 + 0.1}
    return tuple(params["scale"] * kinds[tap] for tap in taps)


TOWER = towers.FeatureTower(
    name="colours",
    params={"scale": jnp.float32(1)},
    size=32,
    taps=("colour", "square"),
    default_taps=("colour",),
    features=features,
    pooled=lambda params, image: image.mean((1, 2)),
)


@pytest.fixture
def memory_of():
    """(shots [K, H, W, 3] of each category, changes of the options) -> Memory."""

    def make(*shots, **changes):
        section = config_file.load("configs/memory/folder.py").memory.to_dict()
        option = options.read({**section, "taps": (), **changes})
        seen = views.make(
            TOWER, option.taps, option.scales, option.border, shots[0].shape[1:3]
        )
        names = tuple(f"c{number}" for number in range(len(shots)))
        return complete.Memory(option, seen, names, shots)

    return make


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def shots(rng):
    """Four images of 32 px with smooth random colours."""
    small = rng.uniform(size=(4, 4, 4, 3)).astype(np.float32)
    return np.asarray(jax.image.resize(small, (4, 32, 32, 3), "linear"))

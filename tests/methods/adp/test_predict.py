"""CLIP looks at windows where a channel with weight reads them, and nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.methods.adp import predict
from jaxanom.methods.adp.channels import evidence as channels
from jaxanom.methods.adp.channels import fusion
from jaxanom.methods.adp.memory import bank, windows
from jaxanom.models.features import patches

SIZES = (2,)
SIDE = 4


def of_colours() -> bank.FeatureTower:
    """A tower of its own: its features are the image's colours."""

    def features(params, image, found):
        del params, found
        small = jax.image.resize(image, (len(image), SIDE, SIDE, 3), "linear")
        return {"colours": patches.unit(small)}

    groups = bank.separate_groups(["colours"])
    return bank.FeatureTower({}, (), groups, features, ("mean",))


def detector_of(parts, tower) -> predict.Detector:
    return predict.Detector(
        towers=parts.towers,
        tower=tower,
        channels=(
            channels.language(SIDE, (0.07,)),
            channels.reference(tower.groups.mixtures, tower.cells),
        ),
        sizes=SIZES,
        temperatures=(0.07,),
        side=SIDE,
    )


def predictions(parts, tower, weights):
    """Predictions of two images, with a memory drawn by numpy."""
    detector = detector_of(parts, tower)
    rng = np.random.default_rng(3)
    size = parts.towers.size
    image = jnp.asarray(rng.random((2, size, size, 3)), jnp.float32)
    settings = fusion.default(weights, has_language=True)
    scoring = predict.placeholder(detector, parts.params, settings, 1)
    prototypes = rng.normal(size=scoring.prototypes.shape).astype(np.float32)
    scoring = scoring._replace(prototypes=jnp.asarray(prototypes))
    found = windows.features(
        parts.towers, parts.params, image, SIZES, tower.clip_layers
    )
    memory = {}
    for name, array in tower.features({}, image, found).items():
        rows = rng.normal(size=(1, 6, array.shape[-1])).astype(np.float32)
        owners = jnp.zeros((1, 6), jnp.int32)
        memory[name] = {"features": patches.unit(jnp.asarray(rows)), "owners": owners}
    frozen = {"towers": parts.params, "memory": memory}
    batch = {"image": image, "category_id": jnp.zeros(2, jnp.int32)}
    params = {"scoring": predict.as_tree(scoring)}
    found = predict.make_predict(detector)(params, frozen, batch, jax.random.key(0))
    return np.asarray(found.anomaly_map)


def telling(monkeypatch, is_read):
    """Has windows read, or not, whatever the detector asks for; lists what it asks."""
    asked, features = [], windows.features

    def telling_features(towers, params, image, sizes, layers, wanted=None):
        if wanted is None:
            return features(towers, params, image, sizes, layers)
        asked.append(bool(wanted))
        return features(towers, params, image, sizes, layers, jnp.asarray(is_read))

    monkeypatch.setattr(windows, "features", telling_features)
    return asked


@pytest.mark.parametrize(
    ("memory", "weights", "reads"),
    [
        ("colours", (1.0, 1.0), True),
        ("colours", (0.0, 1.0), False),
        ("clip", (0.0, 1.0), True),
    ],
)
def test_windows_are_seen_where_they_count(memory, weights, reads, parts, monkeypatch):
    tower = of_colours() if memory == "colours" else bank.from_clip([1], SIZES)
    found = predictions(parts, tower, weights)
    with monkeypatch.context() as patch:
        asked = telling(patch, True)
        seen = predictions(parts, tower, weights)
    with monkeypatch.context() as patch:
        telling(patch, False)
        unseen = predictions(parts, tower, weights)
    assert asked == [reads]
    np.testing.assert_allclose(found, seen, atol=1e-5)  # float32, other fusions
    # Negative control: detectors that read windows need them.
    assert np.allclose(found, unseen, atol=1e-5) is not reads


def test_windows_that_nothing_reads_are_zeros(parts):
    size = parts.towers.size
    image = jax.random.uniform(jax.random.key(0), (1, size, size, 3))
    there, absent = (
        windows.features(parts.towers, parts.params, image, SIZES, (1,), flag)
        for flag in (jnp.array(True), jnp.array(False))
    )
    wanted = windows.features(parts.towers, parts.params, image, SIZES, (1,))
    # float32: one of them is compiled as a whole.
    np.testing.assert_allclose(there.windows[2], wanted.windows[2], atol=1e-5)
    assert not absent.windows[2].any()
    np.testing.assert_array_equal(absent.whole, wanted.whole)
    np.testing.assert_array_equal(absent.layers[1], wanted.layers[1])

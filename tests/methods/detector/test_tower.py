"""The detector on a frozen tower: what it learns from, and what it leaves alone."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from sklearn.metrics import average_precision_score

from configs.detector import base
from jaxanom import trees
from jaxanom.data import catalog
from jaxanom.data.layouts import mvtec
from jaxanom.errors import UserError
from jaxanom.methods import detector
from jaxanom.methods.detector import tower

SIZE = (64, 96)


def pictures(count, seed):
    """Speckle; of odd rows a smooth dark square is the defect."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(0.2, 0.9, (count, *SIZE, 3)).astype(np.float32)
    mask = np.zeros((count, *SIZE), np.float32)
    for row in range(1, count, 2):
        top, left = rng.integers(4, SIZE[0] - 28), rng.integers(4, SIZE[1] - 28)
        mask[row, top : top + 24, left : left + 24] = 1
    image[mask > 0] = 0.1
    return image, mask


def dataset():
    image, _ = pictures(8, 0)
    records = [
        mvtec.Record(f"{n}.png", None, "part", "good", "train", str(n))
        for n in range(0, 8, 2)
    ]

    def load(record):
        pixels = np.round(255 * image[int(record.name)]).astype(np.uint8)
        return pixels, np.zeros(SIZE, np.uint8)

    kinds = ("good", "square")
    return catalog.from_records("parts", records, SIZE, ("part",), kinds, load)


def make(num_steps=1, data=None, **changes):
    options = {**base.options(), "encoder": "clip", **changes}
    phases = {"segment": {"num_steps": num_steps}}
    config = ml_collections.ConfigDict({"detector": options, "phases": phases})
    return detector.make(config, data or dataset())


def batch(count=6, seed=1):
    image, mask = pictures(count, seed)
    return {
        "image": jnp.asarray(image),
        "mask": jnp.asarray(mask),
        "label": jnp.asarray(mask.max((1, 2)), jnp.int32),
        "category_id": jnp.zeros(count, jnp.int32),
        "defect_id": jnp.asarray(mask.max((1, 2)), jnp.int32),
        "valid": jnp.ones(count, bool),
    }


@pytest.fixture(scope="module")
def method():
    return make()


@pytest.fixture(scope="module")
def state(method):
    return method.init(jax.random.key(0))


def test_half_of_the_places_hold_a_defect_and_the_rest_is_untouched():
    covered = np.zeros((3, 20), np.float32)
    covered[0, 7:9] = 1, 0.1
    covered[2] = 1

    def cells(least):
        key = jax.random.key(0)
        places = tower.draw_places(key, jnp.asarray(covered), 40, least)
        return np.take_along_axis(covered, np.asarray(places), axis=1), places

    drawn, places = cells(0.0)
    assert set(drawn[0, :20]) == {1, np.float32(0.1)} and not drawn[0, 20:].any()
    assert not drawn[1].any() and len(np.unique(places[1])) > 10
    np.testing.assert_array_equal(drawn[2], 1)
    # A cell that is hardly covered is neither present nor absent.
    drawn, _ = cells(tower.PRESENT)
    assert set(drawn[0, :20]) == {1} and not drawn[0, 20:].any()


def test_coverage_is_the_share_of_a_cell():
    mask = np.zeros((1, 16, 16), np.float32)
    mask[0, :, :8] = 1
    covered = np.asarray(tower.coverage(jnp.asarray(mask), (4, 4)))
    np.testing.assert_allclose(covered[0, :, 0], 1, atol=1e-6)
    np.testing.assert_allclose(covered[0, :, 3], 0, atol=1e-6)
    assert covered.mean() == pytest.approx(0.5, abs=1e-6)


def test_training_finds_the_defect_and_wrong_masks_teach_nothing(method, state):
    params, frozen = state
    cached = method.encode(frozen, batch(12))
    test = batch(8, seed=9)
    optimizer = optax.adam(3e-3)

    def trained(covered):
        rows = {**cached, "covered": covered}

        @jax.jit
        def step(params, moments, key):
            grads = jax.grad(
                lambda p: method.phases[0].loss_fn(p, frozen, rows, key)[0]
            )(params)
            updates, moments = optimizer.update(grads, moments, params)
            return optax.apply_updates(params, updates), moments

        current, moments = params, optimizer.init(params)
        for number in range(60):
            current, moments = step(current, moments, jax.random.key(number))
        maps = method.predict(current, frozen, test, None).anomaly_map
        return average_precision_score(np.ravel(test["mask"]) > 0, np.ravel(maps))

    share = float(np.mean(test["mask"]))
    # Masks of other images, mirrored: the same amount of defect, elsewhere.
    elsewhere = jnp.roll(cached["covered"], 2, axis=0)[:, ::-1, ::-1]
    assert trained(cached["covered"]) > 0.5 > 3 * share
    assert trained(elsewhere) < 0.3


def test_an_image_is_judged_alone_and_maps_have_its_size(method, state):
    whole = method.predict(*state, batch(4), None)
    assert whole.anomaly_map.shape == (4, *SIZE)
    one = {key: value[1:2] for key, value in batch(4).items()}
    alone = method.predict(*state, one, None)
    # float32 sums in another order, through the tower.
    np.testing.assert_allclose(alone.anomaly_map[0], whole.anomaly_map[1], atol=1e-4)
    np.testing.assert_allclose(alone.image_score[0], whole.image_score[1], atol=1e-4)


def test_cached_layers_give_the_maps_of_the_images(method, state):
    _, frozen = state
    cached = method.encode(frozen, batch(2))
    assert "image" not in cached and cached["covered"].ndim == 3
    plain = method.predict(*state, batch(2), None).anomaly_map
    halved = method.predict(*state, cached, None).anomaly_map
    # Half precision has eleven bits; the head adds some hundred products.
    np.testing.assert_allclose(halved, plain, atol=5e-3)


def test_the_tower_and_the_measured_constants_are_not_trained(method, state):
    params, frozen = state
    assert "tower" in frozen
    (phase,) = method.phases
    trained, kept = trees.split(params, phase.trainable)
    names = [set(trees.flatten(part)) for part in (trained, kept)]
    assert all(name.split("/")[1][:5] in ("proje", "logit") for name in names[0])
    assert {name.split("/")[1][:4] for name in names[1]} == {"mean", "std_"}


def test_constants_are_measured_for_training_and_left_to_be_read_afterwards(state):
    params, _ = state
    assert np.abs(params["outline"]["mean_0"]).max() > 0 and np.all(
        np.asarray(params["outline"]["std_0"]) > 0
    )
    fresh, _ = make(num_steps=0).init(jax.random.key(0))
    trees.check_same_shapes(fresh, params, "a run")
    np.testing.assert_array_equal(fresh["outline"]["mean_0"], 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taps": ("9",)}, r"config\.detector\.taps.*no layers"),
        ({"orientation_fixed": ("part",)}, r"orientation_fixed.*config\.data\.flips"),
        ({"encoder": "resnet"}, "efficientnet_lite0"),
        ({"num_places": 1}, r"config\.detector\.num_places"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_without_caching_images_are_augmented_in_the_loss():
    method = make(cache_features=False)
    assert method.encode is None
    params, frozen = method.init(jax.random.key(0))
    loss, metrics = method.phases[0].loss_fn(
        params, frozen, batch(2), jax.random.key(1)
    )
    assert np.isfinite(loss) and set(metrics) == {"outline", "presence"}

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from scipy import ndimage

from configs.detector import base
from jaxanom import trees
from jaxanom.methods import detector
from jaxanom.methods.detector import model, objective, options, predict

SIZE = (8, 12)
DATASET = types.SimpleNamespace(image_size=SIZE, categories=("bolt", "nut", "cable"))
SMALL = {"width": 8, "depth": 1}


PLAIN = {  # no augmentation
    **base.options(),
    "flip_horizontal": False,
    "flip_vertical": False,
    "brightness": 0.0,
    "contrast": 0.0,
}


def options_of(**changes):
    return options.read({**PLAIN, **changes})


def config(**options):
    return ml_collections.ConfigDict({"detector": {**PLAIN, **SMALL, **options}})


def make(**options):
    return detector.make(config(**options), DATASET)


def batch(num_rows=4, seed=0, size=SIZE):
    """Dim noise with a bright rectangle, off centre, as the defect of odd rows."""
    rng = np.random.default_rng(seed)
    image = 0.4 * rng.uniform(size=(num_rows, *size, 3))
    mask = np.zeros((num_rows, *size))
    for row in range(1, num_rows, 2):
        top, left = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
        mask[row, top : top + 4, left : left + 3] = 1
    image = np.where(mask[..., None] == 1, image + 0.5, image)
    return {
        "image": jnp.asarray(image, jnp.float32),
        "mask": jnp.asarray(mask, jnp.float32),
        "label": jnp.asarray(mask.max((1, 2)), jnp.int32),
        "category_id": jnp.arange(num_rows, dtype=jnp.int32) % 3,
        "valid": jnp.ones(num_rows, bool),
    }


class OneLayer(nn.Module):
    """Stands for the segmenter where its depth does not matter; compiles at once."""

    @nn.compact
    def __call__(self, image):
        return nn.Conv(2, (3, 3), name="logits")(image)


def one_layer():
    """(loss from options, params) on `OneLayer`, with weights that tell sides apart."""
    rng = np.random.default_rng(7)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 2)), jnp.float32)
    params = {"logits": {"kernel": kernel, "bias": jnp.asarray([0.3, -0.2])}}

    def loss(rows, key=3, fixed=(), **changes):
        loss_fn = objective.make_loss(OneLayer(), options_of(**changes), fixed)
        loss_fn = jax.jit(loss_fn)
        return loss_fn(params, {}, rows, jax.random.key(key))

    return loss, params


def test_the_method_has_one_phase_and_freezes_nothing():
    method = make()
    params, frozen = method.init(jax.random.key(0))
    assert [phase.name for phase in method.phases] == ["segment"]
    assert frozen == {}
    selected, rest = trees.split(params, method.phases[0].trainable)
    assert rest == {} and trees.num_params(selected) == trees.num_params(params)
    assert method.encode is None and method.generate is None


def focal_by_hand(logits, mask, gamma):
    """arXiv 1708.02002, eq. 4, averaged over pixels, in float64."""
    logits = np.asarray(logits, np.float64)
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    true = np.where(mask == 1, probability[..., 1], probability[..., 0])
    return np.mean(-((1 - true) ** gamma) * np.log(true))


def test_the_loss_is_the_mean_focal_loss_by_hand():
    rows = batch()
    loss_of, params = one_layer()
    logits = OneLayer().apply({"params": params}, rows["image"])
    for gamma in (2.0, 1.0):
        loss, metrics = loss_of(rows, gamma=gamma)
        # float32 loss against float64 arithmetic on the same logits.
        np.testing.assert_allclose(
            loss, focal_by_hand(logits, rows["mask"], gamma), rtol=1e-5
        )
        assert loss.dtype == jnp.float32 and metrics["focal"] == loss
    # Negative control: the exponent matters.
    first, second = (focal_by_hand(logits, rows["mask"], g) for g in (2.0, 1.0))
    assert abs(first - second) > 0.05 * first


def test_the_made_method_trains_its_own_network_on_this_loss():
    method, rows = make(), batch()
    params, _ = method.init(jax.random.key(0))
    segmenter = model.Segmenter(**SMALL)
    logits = jax.jit(segmenter.apply)({"params": params}, rows["image"])
    loss, _ = jax.jit(method.phases[0].loss_fn)(params, {}, rows, jax.random.key(0))
    # Two compiled programs of the same float32 network.
    np.testing.assert_allclose(
        loss, focal_by_hand(logits, rows["mask"], 2.0), rtol=1e-4
    )


def test_padding_rows_change_nothing():
    loss_of, _ = one_layer()
    rows = batch(3)
    padded = {name: jnp.concatenate([value, value[:2]]) for name, value in rows.items()}
    padded["image"] = padded["image"].at[3:].set(1 - padded["image"][3:])
    padded["mask"] = padded["mask"].at[3:].set(1)
    counted = loss_of(padded)[0]
    padded["valid"] = padded["valid"].at[3:].set(False)
    loss = loss_of(padded)[0]
    # Another batch size sums in another order.
    np.testing.assert_allclose(loss, loss_of(rows)[0], rtol=1e-5)
    # Negative control: the same rows, counted, are a hundred tolerances away.
    assert abs(float(counted - loss)) > 1e-3 * float(loss)


def test_a_batch_of_padding_alone_costs_nothing():
    loss_of, _ = one_layer()
    rows = {**batch(2), "valid": jnp.zeros(2, bool)}
    assert float(loss_of(rows)[0]) == 0


def test_training_lowers_the_loss_and_finds_the_defect():
    """A dozen Adam steps on one batch: gradients point down; quality is not tested."""
    method, rows = make(flip_horizontal=True, brightness=0.05), batch(8)
    params, _ = method.init(jax.random.key(0))
    optimiser = optax.adam(1e-2)
    carry = params, optimiser.init(params)

    @jax.jit
    def step(carry, key):
        params, opt_state = carry
        loss_fn = method.phases[0].loss_fn
        grads, metrics = jax.grad(loss_fn, has_aux=True)(params, {}, rows, key)
        updates, opt_state = optimiser.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), metrics

    losses = []
    for key in jax.random.split(jax.random.key(1), 12):
        carry, metrics = step(carry, key)
        losses.append(float(metrics["focal"]))
    assert losses[-1] < 0.5 * losses[0]
    out = jax.device_get(jax.jit(method.predict)(carry[0], {}, rows, key))
    inside = np.asarray(rows["mask"]) == 1
    assert out.anomaly_map[inside].mean() > 2 * out.anomaly_map[~inside].mean()
    assert out.image_score[1::2].min() > out.image_score[::2].max()


def test_predictions_are_probabilities_per_pixel_and_one_score_per_image():
    method, rows = make(), batch(3)
    params, _ = method.init(jax.random.key(0))
    out = jax.jit(method.predict)(params, {}, rows, jax.random.key(0))
    assert out.anomaly_map.shape == (3, *SIZE) and out.image_score.shape == (3,)
    assert out.anomaly_map.dtype == out.image_score.dtype == jnp.float32
    assert 0 <= float(out.anomaly_map.min()) <= float(out.anomaly_map.max()) <= 1
    again = jax.jit(method.predict)(params, {}, rows, jax.random.key(9))
    np.testing.assert_array_equal(out.anomaly_map, again.anomaly_map)


@pytest.mark.parametrize(
    ("size", "window"),
    [(256, 21), (512, 41), (128, 11), (64, 5), (32, 3), (8, 3), (1024, 85)],
)
def test_the_window_is_21_at_256_in_proportion_odd_and_at_least_3(size, window):
    assert predict.score_window((size, size)) == window
    assert predict.score_window((size, 2 * size)) == window


def test_image_scores_equal_a_zero_padded_mean_filter_by_scipy():
    rng = np.random.default_rng(0)
    maps = rng.uniform(size=(3, 64, 96)) ** 4
    window = predict.score_window((64, 96))
    expected = [
        ndimage.uniform_filter(one, window, mode="constant").max() for one in maps
    ]
    scores = predict.image_scores(jnp.asarray(maps, jnp.float32))
    # Means of 25 float32 values.
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_one_hot_pixel_counts_less_than_a_patch():
    maps = np.zeros((3, 64, 64), np.float32)
    maps[0, 30, 30] = 1.0
    maps[1, 30:35, 30:35] = 0.5
    maps[2, 0, 0] = 1.0
    scores = predict.image_scores(jnp.asarray(maps))
    # float32 rounding of two divisions by 5.
    np.testing.assert_allclose(scores, [1 / 25, 0.5, 1 / 25], rtol=1e-6)


def augmented(options, rows, mirrors=None, seed=0):
    mirrors = jnp.ones(len(rows["image"]), bool) if mirrors is None else mirrors
    change = jax.jit(objective.augment, static_argnames="options")
    return change(jax.random.key(seed), rows["image"], rows["mask"], mirrors, options)


def mirrored(options, num_rows=64, mirrors=None):
    """For every row, which of the four mirror images came out (as 0, 1, 2, 3)."""
    rows = batch(num_rows)
    image, mask = jax.device_get(augmented(options, rows, mirrors))
    rows = jax.device_get(rows)
    found = []
    for row in range(num_rows):
        for code, axes in enumerate([(), (0,), (1,), (0, 1)]):
            if np.array_equal(image[row], np.flip(rows["image"][row], axes)):
                np.testing.assert_array_equal(
                    mask[row], np.flip(rows["mask"][row], axes)
                )
                found.append(code)
    assert len(found) == num_rows
    return np.asarray(found)


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ({"flip_vertical": True}, {0, 1}),
        ({"flip_horizontal": True}, {0, 2}),
        ({"flip_horizontal": True, "flip_vertical": True}, {0, 1, 2, 3}),
    ],
)
def test_image_and_mask_are_mirrored_together_and_row_by_row(options, codes):
    found = mirrored(options_of(**options))
    assert set(found) == codes
    # Fair coins: 64 draws leave [0.25, 0.75] of the mean less than once in 10^4.
    share = np.mean(found == 0) * len(codes)
    assert 0.5 < share < 1.5 if len(codes) == 2 else 0.2 < share < 2


def test_orientation_fixed_rows_are_never_mirrored():
    options = options_of(flip_horizontal=True, flip_vertical=True)
    found = mirrored(options, mirrors=jnp.arange(64) % 2 == 0)
    assert np.all(found[1::2] == 0) and np.any(found[::2] != 0)


def test_orientation_fixed_categories_reach_the_loss_by_name():
    loss_of, _ = one_layer()
    rows = batch(6)
    plain, _ = loss_of(rows)
    fixed, _ = loss_of(rows, flip_horizontal=True, fixed=(0, 1, 2))
    np.testing.assert_allclose(fixed, plain, rtol=1e-6)  # Two programs, one sum.
    some, _ = loss_of(rows, flip_horizontal=True, fixed=(1,))
    assert abs(float(some - plain)) > 1e-4 * float(plain)

    def made(**changes):
        method = make(**{"flip_horizontal": True, **changes})
        params, _ = method.init(jax.random.key(0))
        loss_fn = jax.jit(method.phases[0].loss_fn)
        return float(loss_fn(params, {}, rows, jax.random.key(3))[0])

    everything = list(DATASET.categories)
    still = made(flip_horizontal=False)
    assert made(orientation_fixed=everything) == pytest.approx(still, rel=1e-6)
    assert abs(made(orientation_fixed=["nut"]) - still) > 1e-4 * still


def test_light_changes_the_image_within_its_range_and_not_the_mask():
    rows = batch(32)
    options = options_of(brightness=0.3, contrast=0.5)
    image, mask = augmented(options, rows)
    np.testing.assert_array_equal(mask, rows["mask"])
    assert float(image.min()) == 0 and float(image.max()) == 1  # Clipping was needed.
    assert not np.array_equal(image[0], image[1] - rows["image"][1] + rows["image"][0])


def test_brightness_shifts_and_contrast_stretches_about_the_mean():
    rng = np.random.default_rng(0)
    image = jnp.asarray(0.5 + 0.1 * rng.uniform(-1, 1, (64, 4, 4, 3)), jnp.float32)
    rows = {"image": image, "mask": jnp.zeros((64, 4, 4))}
    shifted, _ = augmented(options_of(brightness=0.2), rows)
    shift = np.asarray(shifted - image)
    # One shift per row; the rest is float32 rounding.
    np.testing.assert_allclose(shift, shift[:, :1, :1, :1] + 0 * shift, atol=1e-6)
    assert -0.2 <= shift.min() < -0.15 and 0.15 < shift.max() <= 0.2
    stretched, _ = augmented(options_of(contrast=0.4), rows)
    axes = (1, 2, 3)
    np.testing.assert_allclose(stretched.mean(axes), image.mean(axes), atol=1e-6)
    gain = np.asarray(stretched.std(axes) / image.std(axes))
    assert 0.6 <= gain.min() < 0.7 and 1.3 < gain.max() <= 1.4 + 1e-5


def test_no_option_means_no_change_and_the_key_decides_the_rest():
    rows = batch()
    mirrors = jnp.ones(len(rows["image"]), bool)
    image, mask = objective.augment(
        jax.random.key(0), rows["image"], rows["mask"], mirrors, options_of()
    )
    assert image is rows["image"] and mask is rows["mask"]
    options = options_of(flip_horizontal=True, brightness=0.1)
    first, again = (augmented(options, rows, seed=1)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, augmented(options, rows, seed=2)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"widht": 8},
            r"unknown keys \['widht'\]; did you mean config\.detector\.width",
        ),
        ({"gamma": -1.0}, r"gamma=-1\.0; wanted in \[0, inf\)"),
        ({"brightness": 1.0}, r"brightness=1\.0; wanted in \[0, 1\)"),
        ({"contrast": -0.1}, r"contrast=-0\.1; wanted in \[0, 1\)"),
        ({"depth": 4}, r"image_size=\(8, 12\) is not a multiple of 2\*\*depth=16"),
        ({"orientation_fixed": ["gear"]}, r"names \['gear'\]; the dataset has"),
    ],
)
def test_a_wrong_option_is_refused_with_its_key(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_defaults_are_the_released_detector_s_loss():
    defaults = options.read(base.options())
    assert defaults.gamma == 2.0


def test_the_bfloat16_network_keeps_float32_weights_and_maps():
    method, rows = make(dtype="bfloat16"), batch()
    params, _ = method.init(jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    out = jax.eval_shape(method.predict, params, {}, rows, jax.random.key(0))
    assert out.anomaly_map.dtype == out.image_score.dtype == jnp.float32
    loss, _ = jax.eval_shape(
        method.phases[0].loss_fn, params, {}, rows, jax.random.key(0)
    )
    assert loss.dtype == jnp.float32 and loss.shape == ()

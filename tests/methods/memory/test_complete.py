"""What is remembered: each shot counts, in any order, and can be left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.methods.memory import complete, predict
from jaxanom.models.features import patches


def filled(memory):
    params, facts = complete.make(memory)(
        complete.blank(memory), {"tower": memory.views.params}, None
    )
    return params, facts["memory"]


def predictions(memory, params, image, category=0):
    batch = {
        "image": jnp.asarray(image),
        "category_id": jnp.full(len(image), category, jnp.int32),
    }
    frozen = {"tower": memory.views.params}
    return predict.make_predict(memory.options, memory.views)(
        params, frozen, batch, None
    )


def left_out_scores(memory, params, shot):
    looks = memory.views.look(memory.views.params, jnp.asarray(memory.shots[0]))
    owners = jnp.arange(4, dtype=jnp.int32) if shot else jnp.full(4, patches.NOBODY)
    zeros = jnp.zeros(4, jnp.int32)
    return predict.scores(memory.options, params, looks, zeros, owners)[1]


@pytest.mark.parametrize("kind", ["nearest", "patchcore"])
def test_a_shot_scores_near_zero_unless_it_is_left_out(memory_of, shots, kind):
    memory = memory_of(shots, kind=kind)
    params, _ = filled(memory)
    scale = float(left_out_scores(memory, params, True).min())
    # float32 cosines of equal vectors differ from one by 1e-7; a root makes it 1e-3.
    assert np.abs(left_out_scores(memory, params, False)).max() < 0.05 * scale


def test_the_copies_of_a_shot_are_left_out_with_it(memory_of, shots):
    """Images that are symmetric under all copies would give a shot away at once."""
    even = shots + shots[:, ::-1] + shots[:, :, ::-1] + shots[:, ::-1, ::-1]
    memory = memory_of(even / 4, turns=(0, 2), mirrors=True)
    params, _ = filled(memory)
    assert complete.normal_scores(params, 0).min() > 1e-4


@pytest.mark.parametrize("kind", ["nearest", "patchcore", "padim"])
def test_the_order_of_the_shots_changes_nothing(memory_of, shots, kind):
    changes = {"kind": kind, "coreset": 0.5}
    if kind == "padim":
        changes |= {"turns": (0,), "mirrors": False}
    image = shots[:2, ::-1] ** 2
    results = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        memory = memory_of(shots[order], **changes)
        params, _ = filled(memory)
        scores = np.sort(complete.normal_scores(params, 0))
        results.append((predictions(memory, params, image).image_score, scores))
    # Sums over shots in another order.
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-3)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-3, atol=1e-5)
    fewer = memory_of(shots[:2], **changes)
    other = predictions(fewer, filled(fewer)[0], image).image_score
    assert np.abs(other - results[0][0]).max() > 1e-4  # control: shots do count


def test_a_category_with_fewer_shots_is_not_changed_by_the_padding(memory_of, shots):
    alone = memory_of(shots[:1])
    beside = memory_of(shots[:1], shots[1:])
    image = shots[:2, :, ::-1] ** 2
    params, facts = filled(beside)
    np.testing.assert_allclose(
        predictions(beside, params, image).anomaly_map,
        predictions(alone, filled(alone)[0], image).anomaly_map,
        rtol=1e-5,
        atol=1e-6,
    )
    other = predictions(beside, params, image, category=1)
    assert (
        np.abs(other.image_score - predictions(beside, params, image).image_score)[0]
        > 1e-4
    )  # control: the categories have memories of their own
    assert facts["c0"]["normal_images"] == 1 and facts["c1"]["normal_images"] == 3


def test_a_score_does_not_depend_on_its_batch(memory_of, shots):
    memory = memory_of(shots[:2])
    params, _ = filled(memory)
    whole = predictions(memory, params, shots)
    alone = predictions(memory, params, shots[2:3])
    np.testing.assert_allclose(alone.anomaly_map[0], whole.anomaly_map[2], atol=1e-5)
    np.testing.assert_allclose(alone.image_score[0], whole.image_score[2], atol=1e-5)
    assert np.ptp(np.asarray(whole.image_score)) > 1e-3


def test_scores_of_left_out_shots_are_stored_and_of_one_shot_there_are_none(
    memory_of, shots
):
    memory = memory_of(shots, shots[:1])
    params, facts = filled(memory)
    assert complete.normal_scores(params, 0).shape == (4,)
    assert complete.normal_scores(params, 1).shape == (0,)
    np.testing.assert_allclose(
        complete.normal_scores(params, 0),
        left_out_scores(memory, params, True),
        rtol=1e-4,
    )
    assert facts["c0"]["smallest_false_alarm_rate"] == pytest.approx(1 / 5)
    assert "none" in facts["c1"]["threshold"]


def test_parameters_have_the_shapes_that_init_promises(memory_of, shots):
    for kind in ("nearest", "patchcore", "padim"):
        memory = memory_of(
            shots[:3], kind=kind, turns=(0,), mirrors=False, dimensions=2, coreset=0.3
        )
        shapes = jax.tree.map(jnp.shape, complete.blank(memory))
        assert jax.tree.map(jnp.shape, filled(memory)[0]) == shapes


def test_two_classes_are_parted_between_them():
    values = np.array([0.1, 0.12, 0.11, 0.8, 0.82])
    assert 0.12 < complete.otsu(values) <= 0.8

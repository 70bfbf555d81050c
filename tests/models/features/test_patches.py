import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.models.features import patches

RNG = np.random.default_rng(2)


def unit(shape):
    found = RNG.normal(size=shape)
    return (found / np.linalg.norm(found, axis=-1, keepdims=True)).astype(np.float32)


SHOTS = unit((3, 2, 2, 5))
OWNERS = np.repeat(np.int32([0, 1, 2]), 4)
MEMORY = (jnp.asarray(SHOTS.reshape(1, -1, 5)), jnp.asarray(OWNERS)[None])


def distance(features, left_out):
    rows = len(features)
    found = patches.distances(
        jnp.asarray(features),
        *MEMORY,
        jnp.zeros(rows, jnp.int32),
        jnp.asarray(left_out, jnp.int32),
    )
    return np.asarray(found)


def test_distances_equal_a_loop_over_patches_and_entries():
    query = unit((2, 2, 2, 5))
    found = distance(query, [patches.NOBODY, 1])
    for image, shots in ((0, (0, 1, 2)), (1, (0, 2))):
        for i in range(2):
            for j in range(2):
                best = max(
                    float(query[image, i, j] @ SHOTS[k, a, b])
                    for k in shots
                    for a in range(2)
                    for b in range(2)
                )
                # float32 dot products of five terms
                assert found[image, i, j] == pytest.approx((1 - best) / 2, abs=1e-6)


def test_a_shot_is_far_from_a_bank_without_it_and_on_one_with_it():
    left = distance(SHOTS, [0, 1, 2])
    assert left.min() > 1e-3
    # Negative control: with its own entries the distance vanishes.
    assert distance(SHOTS, [patches.NOBODY] * 3).max() < 1e-6


def test_padding_is_never_matched():
    zero = np.zeros((1, 2, 2, 5), np.float32)
    zero[..., 0] = 1
    rows = jnp.asarray(np.pad(zero.reshape(1, -1, 5), ((0, 0), (0, 4), (0, 0))))
    owners = jnp.asarray([[0] * 4 + [patches.PADDING] * 4], jnp.int32)
    found = patches.distances(
        jnp.asarray(zero),
        rows,
        owners,
        jnp.zeros(1, jnp.int32),
        jnp.zeros(1, jnp.int32),
    )
    np.testing.assert_array_equal(found, 1.0)  # nothing is left to compare with


def test_joined_layers_have_length_one_on_the_finest_grid():
    features = {
        "a": jnp.asarray(unit((1, 4, 4, 6))),
        "b": jnp.asarray(unit((1, 2, 2, 3))),
    }
    found = patches.joined(features)
    assert found["joined"].shape == (1, 4, 4, 9) and set(found) == {"joined", "a", "b"}
    np.testing.assert_allclose(jnp.linalg.norm(found["joined"], axis=-1), 1, atol=1e-5)


def test_a_bank_larger_than_one_part_is_compared_as_a_whole(monkeypatch):
    rows, owners = jnp.asarray(unit((1, 11, 5))), jnp.zeros((1, 11), jnp.int32)
    query = jnp.asarray(unit((1, 3, 2, 5)))
    nobody = jnp.full(1, patches.NOBODY, jnp.int32)

    def nearest(rows):
        owner = owners[:, : rows.shape[1]]
        return patches.distances(query, rows, owner, jnp.zeros(1, jnp.int32), nobody)

    whole, less = nearest(rows), nearest(rows[:, :8])
    monkeypatch.setattr(patches, "ENTRIES", 4)  # two parts and three entries more
    np.testing.assert_allclose(nearest(rows), whole, atol=1e-6)
    assert np.abs(whole - less).max() > 1e-3  # control: the last three do count


def test_layers_of_a_tall_image_are_joined_on_its_grid():
    features = {"a": jnp.ones((1, 6, 2, 4)), "b": jnp.ones((1, 3, 1, 2))}
    assert patches.joined(features)["joined"].shape == (1, 6, 2, 6)

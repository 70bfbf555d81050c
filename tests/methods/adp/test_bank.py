import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.methods.adp.memory import bank

RNG = np.random.default_rng(2)


def unit(shape):
    found = RNG.normal(size=shape)
    return (found / np.linalg.norm(found, axis=-1, keepdims=True)).astype(np.float32)


SHOTS = unit((3, 2, 2, 5))
BANK = bank.build({"kind": SHOTS}, np.array([0, 1, 2]), num_slots=4)["kind"]
MEMORY = tuple(jnp.asarray(BANK[name])[None] for name in ("features", "owners"))


def distance(features, left_out):
    rows = len(features)
    found = bank.distances(
        jnp.asarray(features),
        *MEMORY,
        jnp.zeros(rows, jnp.int32),
        jnp.asarray(left_out, jnp.int32),
    )
    return np.asarray(found)


def test_distances_equal_a_loop_over_patches_and_entries():
    query = unit((2, 2, 2, 5))
    found = distance(query, [bank.NOBODY, 1])
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
    assert distance(SHOTS, [bank.NOBODY] * 3).max() < 1e-6


def test_padding_is_never_matched():
    zero = np.zeros((1, 2, 2, 5), np.float32)
    zero[..., 0] = 1
    short = bank.build({"kind": zero}, np.array([0]), num_slots=2)["kind"]
    assert (np.asarray(short["owners"]) == bank.PADDING).sum() == 4
    found = bank.distances(
        jnp.asarray(zero),
        short["features"][None],
        short["owners"][None],
        jnp.zeros(1, jnp.int32),
        jnp.zeros(1, jnp.int32),
    )
    np.testing.assert_array_equal(found, 1.0)  # nothing is left to compare with


def test_joined_layers_have_length_one_on_the_finest_grid():
    features = {
        "a": jnp.asarray(unit((1, 4, 4, 6))),
        "b": jnp.asarray(unit((1, 2, 2, 3))),
    }
    found = bank.joined(features)
    assert found["joined"].shape == (1, 4, 4, 9) and set(found) == {"joined", "a", "b"}
    np.testing.assert_allclose(jnp.linalg.norm(found["joined"], axis=-1), 1, atol=1e-5)
    assert bank.joined_groups(["a", "b"]).names == ("joined", "a", "b")


def test_the_first_mixture_is_the_mean_of_all_kinds():
    groups = bank.separate_groups(["a", "b"])
    np.testing.assert_allclose(groups.mixtures, [[0.5, 0.5], [1, 0], [0, 1]])
    assert bank.separate_groups(["a"]).mixtures.shape == (1, 1)

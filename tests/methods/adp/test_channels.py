import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.methods.adp.channels import evidence as channels
from jaxanom.methods.adp.memory import windows

RNG = np.random.default_rng(4)


def unit(shape):
    found = RNG.normal(size=shape)
    return jnp.asarray(
        found / np.linalg.norm(found, axis=-1, keepdims=True), jnp.float32
    )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_merging_windows_is_the_harmonic_mean_over_the_windows_of_a_patch(size):
    side = 5
    count = side - size + 1
    values = RNG.uniform(0.05, 0.95, (2, count, count)).astype(np.float32)
    found = np.asarray(channels.merge_windows(jnp.asarray(values), size))
    for i in range(side):
        for j in range(side):
            inside = [
                values[:, a, b]
                for a in range(count)
                for b in range(count)
                if a <= i < a + size and b <= j < b + size
            ]
            wanted = len(inside) / sum(1 / value for value in inside)
            # float32 sums of up to nine terms
            np.testing.assert_allclose(found[:, i, j], wanted, rtol=1e-5)


def test_a_window_holds_the_patches_it_names():
    indices = windows.window_indices(4, 2)
    assert indices.shape == (9, 4)
    assert indices[0].tolist() == [0, 1, 4, 5]
    assert indices[-1].tolist() == [10, 11, 14, 15]
    with pytest.raises(ValueError, match=r"adp\.windows has 5"):
        windows.window_indices(4, 5)


def test_probability_is_a_two_way_softmax_of_cosines():
    features, prototypes = unit((2, 3, 6)), unit((2, 2, 6))
    tau = np.array([0.07, 0.3], np.float32)
    found = channels.probability(features, prototypes, jnp.asarray(tau))
    cosine = np.einsum("bnk,bpk->bnp", features, prototypes) / tau[:, None, None]
    weights = np.exp(cosine - cosine.max(-1, keepdims=True))
    wanted = weights[..., 1] / weights.sum(-1)
    np.testing.assert_allclose(found, wanted, atol=1e-5)  # float32 over tau = 0.07
    # Negative control: with the prototypes exchanged it is the other probability.
    swapped = channels.probability(features, prototypes[:, ::-1], jnp.asarray(tau))
    np.testing.assert_allclose(swapped, 1 - wanted, atol=1e-5)


def test_the_language_map_is_harmonic_over_windows_sizes_and_the_image():
    grid = 3
    found = windows.Features(
        whole=unit((1, 6)),
        windows={1: unit((1, grid, grid, 6)), 2: unit((1, 2, 2, 6))},
        layers={},
    )
    seen = channels.Evidence(found, unit((1, 2, 6)), None, None, None, None, None)
    tau = jnp.array([0.2])
    values, whole = channels.language_maps(seen, tau)
    parts = [
        channels.merge_windows(channels.probability(f, seen.prototypes, tau), k)
        for k, f in found.windows.items()
    ]
    wanted = 3 / (
        1 / np.asarray(parts[0]) + 1 / np.asarray(parts[1]) + 1 / float(whole[0])
    )
    np.testing.assert_allclose(values, wanted, rtol=1e-5)


def test_coverage_counts_patches_under_a_mask():
    mask = np.zeros((1, 4, 4), np.float32)
    mask[0, :2, :2] = 1  # one of four patches of a 2 x 2 grid
    found = windows.coverage(mask, 2, (1, 2))[0]
    np.testing.assert_allclose(found, [0.25, 1, 0, 0, 0, 0.25], atol=1e-6)

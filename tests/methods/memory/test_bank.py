import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.methods.memory import bank
from jaxanom.models.features import patches


def clusters(rng, count=6, each=40, width=8):
    """Tight clusters of unit vectors, and which cluster each row is of."""
    centres = rng.normal(size=(count, width))
    rows = np.repeat(centres, each, 0) + 0.01 * rng.normal(size=(count * each, width))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), np.repeat(np.arange(count), each)


def test_a_coreset_has_an_entry_of_every_cluster(rng):
    rows, cluster = clusters(rng)
    assert set(cluster[bank.coreset(rows, 6)]) == set(range(6))
    # Control: the first rows, as many, cover one cluster alone.
    assert set(cluster[:6]) == {0}


@pytest.mark.parametrize("rounds", [512, 3])
def test_a_coreset_picks_as_many_as_asked_and_none_twice(rng, rounds, monkeypatch):
    monkeypatch.setattr(bank, "ROUNDS", rounds)
    rows, _ = clusters(rng)
    kept = bank.coreset(np.concatenate([rows, rows]), 50)
    assert len(set(kept.tolist())) == 50


def test_a_coreset_does_not_depend_on_the_order_of_its_rows(rng):
    rows, _ = clusters(rng)
    order = rng.permutation(len(rows))
    first, second = rows[bank.coreset(rows, 12)], rows[order]
    second = second[bank.coreset(second, 12)]
    # Sums in another order differ in the last digits; rows are the same rows.
    np.testing.assert_array_equal(np.sort(first, 0), np.sort(second, 0))


def test_a_bank_keeps_all_it_has_room_for_and_says_whose_they_are(rng):
    rows, cluster = clusters(rng, 2, 3)
    kept = bank.fill(rows, cluster, 8)
    np.testing.assert_array_equal(kept.features[:6], rows)
    np.testing.assert_array_equal(
        kept.owners, [0, 0, 0, 1, 1, 1, patches.PADDING, patches.PADDING]
    )


@pytest.mark.parametrize(
    ("patches_there", "share", "most", "kept"),
    [(100, 1.0, 8192, 100), (100, 0.25, 8192, 25), (100, 1.0, 10, 10), (3, 0.1, 9, 1)],
)
def test_a_bank_has_the_size_of_its_share(patches_there, share, most, kept):
    assert bank.size(patches_there, share, most) == kept


def test_a_patch_is_not_compared_with_those_beside_it():
    image = np.zeros((1, 7, 7, 2), np.float32)
    image[..., 0] = 1
    image[0, 3, 3] = 0, 1  # one patch unlike the rest
    image[0, 3, 4] = 0, 1  # and its twin, right beside it
    away = np.asarray(bank.apart(jnp.asarray(image)))[0]
    assert away[3, 3] == pytest.approx(0.5)  # orthogonal to all that is left
    assert away[0, 0] == pytest.approx(0.0, abs=1e-6)


def test_the_score_of_patchcore_equals_its_equations_by_loops(rng):
    rows, _ = clusters(rng, 5, 4)
    image = rng.normal(size=(2, 3, 8))
    image = (image / np.linalg.norm(image, axis=-1, keepdims=True)).astype(np.float32)
    kept = bank.Bank(jnp.asarray(rows), jnp.zeros(20, jnp.int32))
    away = np.linalg.norm(image.reshape(-1, 1, 8) - rows[None], axis=-1)
    patch = away.min(1).argmax()
    nearest = away[patch].argmin()
    around = np.linalg.norm(rows - rows[nearest], axis=1).argsort()[:9]
    weight = 1 - np.exp(away[patch, nearest]) / np.exp(away[patch, around]).sum()
    score = bank.reweighted(jnp.asarray(image), kept, jnp.int32(patches.NOBODY))
    # A root of differences of float32 cosines.
    assert float(score) == pytest.approx(weight * away[patch, nearest], rel=1e-4)
    assert weight < 0.95  # control: the weight does something here

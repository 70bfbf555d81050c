"""Masks drawn from p(m)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_defect_generation import masks

from jaxanom.methods.defect_generation import placement


def test_drawn_masks_keep_their_area_and_stay_binary():
    bank = masks(4, (5, 8, 8))
    bank[1] = 0
    bank[1, 7, 0] = 1  # one cell in a corner
    bank[2] = 1  # everything
    for row in range(5):
        alone = jnp.asarray(bank[row : row + 1])
        drawn = np.asarray(placement.draw_masks(alone, 64, jax.random.key(row)))
        assert drawn.shape == (64, 8, 8) and set(np.unique(drawn)) <= {0.0, 1.0}
        np.testing.assert_array_equal(drawn.sum((1, 2)), bank[row].sum())


def test_drawn_masks_move_and_mirror_but_never_wrap_around():
    bank = np.zeros((1, 8, 8), np.float32)
    bank[0, 2, 1:4] = bank[0, 3, 1] = 1  # an L, unlike its mirror images
    drawn = np.asarray(placement.draw_masks(jnp.asarray(bank), 400, jax.random.key(0)))
    shapes = set()
    for mask in drawn:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        # A shape that wrapped around the border would be longer than 2 x 3.
        assert rows[-1] - rows[0] == 1 and columns[-1] - columns[0] == 2
        shapes.add(mask[np.ix_(rows, columns)].tobytes())
    assert len(shapes) == 4
    assert drawn.any((0,)).all(), "every cell is reached"


def test_a_draw_depends_on_its_key_and_place_alone():
    bank = jnp.asarray(masks(4, (5, 8, 8)))
    first = placement.draw_masks(bank, 6, jax.random.key(1))
    np.testing.assert_array_equal(
        first, placement.draw_masks(bank, 6, jax.random.key(1))
    )
    assert np.any(first != placement.draw_masks(bank, 6, jax.random.key(2)))


def test_the_bank_leaves_out_empty_masks_and_thins_evenly():
    found = [np.zeros((4, 4), np.uint8)]
    for number in range(10):
        mask = np.zeros((4, 4), np.uint8)
        mask.flat[number] = 1
        found.append(mask)
    assert placement.mask_bank(found).shape == (10, 4, 4)
    thinned = placement.mask_bank(found, limit=4)
    assert [int(mask.argmax()) for mask in thinned] == [0, 3, 6, 9]


def test_a_bank_without_any_mask_says_what_to_add():
    with pytest.raises(ValueError, match="ground_truth"):
        placement.mask_bank([np.zeros((4, 4), np.uint8)])

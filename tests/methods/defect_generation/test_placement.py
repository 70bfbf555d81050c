"""Masks drawn from p(m), and the plan: which image, which defect, where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_defect_generation import masks

from jaxanom.data import pools
from jaxanom.jobs import prepare
from jaxanom.methods.defect_generation import placement


@pytest.fixture(scope="module")
def dataset(generation_config):
    """The training part of the tiny folder."""
    return pools.training_part(*prepare.open_data(generation_config()))


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


def test_more_images_leave_the_first_ones_as_they_are(dataset):
    short = placement.plan(dataset, 3, seed=5)
    long = placement.plan(dataset, 9, seed=5)
    for one, other in zip(short, long, strict=False):
        assert one[:4] == other[:4]
        np.testing.assert_array_equal(one.mask, other.mask)
    assert [request.number for request in long] == list(range(9))
    assert any(
        one.normal != other.normal or np.any(one.mask != other.mask)
        for one, other in zip(long, placement.plan(dataset, 9, 6), strict=True)
    )


def test_defect_types_take_turns_and_masks_come_from_their_own_training_masks(dataset):
    requests = placement.plan(dataset, 6, seed=0)
    kinds = [request.defect_type for request in requests]
    assert kinds == ["dent", "scratch"] * 3
    for request in requests:
        record = dataset.records[request.normal]
        assert record.defect_type == "good" and record.category == request.category
        assert request.mask.dtype == np.uint8 and request.mask.sum() == 20  # 5 x 4


def test_a_defect_type_without_masks_is_left_out(dataset):
    def load(record):
        image, mask = dataset.load(record)
        return image, np.zeros_like(mask) if record.defect_type == "dent" else mask

    half = dataset._replace(load=load)
    assert {r.defect_type for r in placement.plan(half, 4, 0)} == {"scratch"}
    none = half._replace(load=lambda r: (load(r)[0], np.zeros_like(load(r)[1])))
    with pytest.raises(ValueError, match="no training defect has a mask"):
        placement.plan(none, 4, 0)


def test_entries_of_a_plan_that_share_an_image_share_its_mask_and_type(dataset):
    shared = placement.plan(dataset, 7, seed=5, per_image=3)
    single = placement.plan(dataset, 3, seed=5)
    assert [request.number for request in shared] == list(range(7))
    for request in shared:
        wanted = single[request.number // 3]
        assert request[1:4] == wanted[1:4]
        np.testing.assert_array_equal(request.mask, wanted.mask)

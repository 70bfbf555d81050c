"""Masks placed by their context: some follow the outline, others stay inside."""

import numpy as np
import pytest
import scipy.ndimage

from jaxanom.methods.defect_generation import context
from jaxanom.methods.defect_generation.context import Marked

SIZE = 64
Y, X = np.mgrid[:SIZE, :SIZE].astype(float)


def bar(angle, centre=(32, 32), length=40, width=16):
    """A bar [64, 64] bool whose long axis lies at `angle` degrees."""
    turn = np.deg2rad(angle)
    along = (X - centre[1]) * np.cos(turn) + (Y - centre[0]) * np.sin(turn)
    across = (Y - centre[0]) * np.cos(turn) - (X - centre[1]) * np.sin(turn)
    return (abs(along) < length / 2) & (abs(across) < width / 2), along


def picture(objects, seed=0, colour=(0.8, 0.3, 0.2)):
    """An object on a grey table under uneven light, with noise."""
    rng = np.random.default_rng(seed)
    image = 0.5 + 0.2 * (X + Y)[..., None] / (2 * SIZE) + np.zeros(3)
    image[objects] = colour
    return np.clip(image + rng.normal(0, 0.01, image.shape), 0, 1)


def texture(seed):
    noise = np.random.default_rng(seed).normal(size=(SIZE, SIZE, 3))
    return np.clip(0.5 + scipy.ndimage.gaussian_filter(noise, (2, 2, 0)), 0, 1)


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize("angle", [0, 35, 90, 140])
def test_the_object_is_found_on_an_uneven_table_and_its_pose_measured(angle):
    objects, _ = bar(angle, (30, 36))
    seen = context.object_map(picture(objects))
    # A pixel all around a bar of 40 by 16 would be 0.82.
    assert overlap(seen > 0.5, objects) > 0.82
    pose = context.pose(seen)
    np.testing.assert_allclose(pose.centre, (30, 36), atol=1)
    turn = np.deg2rad(angle) - pose.angle
    # The ends of the bar may be off by a pixel of 20.
    assert abs(np.sin(turn)) < 0.08 and not pose.is_round


def test_textures_and_empty_tables_show_no_object():
    bars = [context.object_map(picture(bar(a)[0], a)) for a in (0, 50, 100)]
    assert context.shows_object(bars)
    assert not context.shows_object([context.object_map(texture(n)) for n in range(3)])
    empty = np.zeros((SIZE, SIZE), bool)
    assert not context.shows_object([context.object_map(picture(empty))] * 3)


def half_marked(angle):
    """The end of a bar, as a mask of a part that has another colour."""
    objects, along = bar(angle)
    return Marked(objects & (along > 0), objects.astype(np.float32))


@pytest.mark.parametrize("angle", [20, 75, 130])
def test_a_mask_that_follows_the_outline_moves_with_the_pose(angle):
    target, along = bar(angle, (28, 34))
    ends = [target & (along > 0), target & (along < 0)]
    overlaps = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        mask, difference = context.place(
            half_marked(0), target.astype(np.float32), rng, False
        )
        assert difference < context.DISAGREES
        overlaps.append(max(overlap(mask, end) for end in ends))
    # Places differ by a pixel or two, on purpose.
    assert np.mean(overlaps) > 0.7 and min(overlaps) > 0.5


def test_a_mask_laid_blindly_misses_the_outline():
    """The control: the training mask as it is, on an object in another pose."""
    target, along = bar(75, (28, 34))
    ends = [target & (along > 0), target & (along < 0)]
    assert max(overlap(half_marked(0).mask, end) for end in ends) < 0.5


def test_a_defect_on_the_object_stays_on_it_and_visits_all_of_it():
    objects, _ = bar(0)
    spot = (X - 40) ** 2 + (Y - 32) ** 2 < 9
    target, along = bar(110, (30, 30))
    visited = np.zeros(target.shape, bool)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        mask, _ = context.place(
            Marked(spot, objects.astype(np.float32)),
            target.astype(np.float32),
            rng,
            False,
        )
        assert (mask & target).sum() >= 0.9 * mask.sum()
        visited |= mask
    assert min(along[visited & target]) < -10 and max(along[visited & target]) > 10


def test_a_fixed_orientation_is_neither_mirrored_nor_turned():
    corner = np.zeros((SIZE, SIZE), bool)
    corner[26:31, 22:42] = corner[31:40, 22:27] = True  # unlike its mirror images
    objects = (X - 32) ** 2 + (Y - 32) ** 2 < 25**2
    marked = Marked(corner, objects.astype(np.float32))

    def looks(is_fixed):
        """Whether the long arm is above, and the other on the left, of 12 draws."""
        drawn = []
        for seed in range(12):
            rng = np.random.default_rng(seed)
            mask, _ = context.place(marked, marked.objects, rng, is_fixed)
            rows, columns = np.nonzero(mask)
            above = rows.mean() < (rows.min() + rows.max()) / 2
            left = columns.mean() < (columns.min() + columns.max()) / 2
            drawn.append(above and left and np.ptp(columns) > np.ptp(rows))
        return drawn

    assert all(looks(True))
    assert sum(looks(False)) < 9


def test_a_mask_that_fits_nowhere_says_so():
    everything = np.ones((SIZE, SIZE), bool)
    mask, difference = context.place(
        Marked(everything, np.ones((SIZE, SIZE), np.float32)),
        bar(0)[0].astype(np.float32),
        np.random.default_rng(0),
        False,
    )
    assert not mask.any() and difference == 1.0

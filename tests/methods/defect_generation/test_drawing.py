"""A plan drawn batch by batch, and what becomes of the masks on the host."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_defect_generation import SIZE
from tiny_defect_generation import drawing as options_of_drawing

from jaxanom.data import pools
from jaxanom.jobs import prepare
from jaxanom.methods.defect_generation import drawing, plan
from jaxanom.parallel import mesh as meshes


@pytest.fixture(scope="module")
def dataset(generation_config):
    """The training part of the tiny folder."""
    return pools.training_part(*prepare.open_data(generation_config()))


def rows(generate, dataset, count, **options):
    """What a stand-in for the method's `generate` draws for the plan of seed 3."""
    sets = drawing.sets(options_of_drawing(seed=3, **options), "a {defect}")
    return list(sets.pairs(generate, None, None, dataset, count, meshes.make_mesh()))


def test_a_set_is_drawn_with_one_image_for_its_defects(dataset):
    """Five rows in batches of four, two defects an image; the last is filled up."""
    shapes = []

    def generate(params, frozen, batch, key):
        shapes.append({name: value.shape[:2] for name, value in batch.items()})
        told = jnp.repeat(batch["image"], 2, 0)
        blank = jnp.zeros((4, SIZE, SIZE))
        return {
            "image": told,
            "reference": told,
            "inverted": blank,
            "change": blank,
            "mask": jnp.repeat(batch["mask"], 2, 0),
        }

    found = rows(generate, dataset, 5, batch_size=4, per_image=2)
    assert len(shapes) == 2 and shapes[0] == shapes[1]
    assert shapes[0]["seed"] == shapes[0]["defect_id"] == (2, 2)
    assert shapes[0]["image"][0] == shapes[0]["mask"][0] == 2
    requests = plan.plan(dataset, 5, 3, per_image=2)
    for (row, pictures), request in zip(found, requests, strict=True):
        normal = dataset.records[request.normal]
        assert row.source_name == normal.name and row.seed == request.number
        image = dataset.load(normal)[0] / np.float32(255)
        np.testing.assert_array_equal(pictures["normal"], image)
        np.testing.assert_array_equal(row.requested_mask, request.mask)


@pytest.mark.parametrize("refine", [True, False])
def test_only_refined_masks_are_freed_of_specks(dataset, refine, monkeypatch):
    def generate(params, frozen, batch, key):
        names = "image", "reference", "inverted", "change"
        return {name: batch["image"] for name in names} | {"mask": batch["mask"]}

    monkeypatch.setattr(drawing.refinement, "drop_small", np.zeros_like)
    for row, _ in rows(generate, dataset, 2, batch_size=2, refine=refine):
        kept = np.zeros_like(row.requested_mask) if refine else row.requested_mask
        np.testing.assert_array_equal(row.mask, kept)


@pytest.mark.parametrize("paste", [True, False])
def test_pixels_that_the_final_mask_drops_are_the_normal_ones_again(dataset, paste):
    """All of these defects count as not drawn: the whole image is pasted back."""

    def generate(params, frozen, batch, key):
        drawn = 1 - batch["image"]
        blank = jnp.zeros(batch["mask"].shape)
        return {
            "image": drawn,
            "reference": drawn,
            "inverted": blank,
            "change": blank,
            "mask": blank.at[:, 2:4, 2:4].set(1.0) * batch["mask"],
        }

    found = rows(generate, dataset, 2, batch_size=2, least_kept=1.0, paste=paste)
    for (row, _), request in zip(found, plan.plan(dataset, 2, 3), strict=True):
        normal = dataset.load(dataset.records[request.normal])[0]
        assert not row.mask.any() and request.mask.sum() > 4
        assert np.array_equal(row.image, normal) == paste


def test_final_masks_lose_their_specks():
    mask = np.zeros((1, 64, 64), np.float32)
    mask[0, 3, 3] = 1  # 1 pixel of 4096 is under 0.05 %
    mask[0, 20:24, 20:24] = 1
    found = drawing.final_masks(mask)
    assert found.dtype == bool and found.sum() == 16 and not found[0, 3, 3]


def test_a_mask_that_was_not_refined_keeps_its_small_parts():
    mask = np.zeros((1, 512, 512), np.float32)
    mask[0, 100:111, 40:51] = 1  # 121 pixels of 262144 are under 0.05 %
    assert not drawing.final_masks(mask).any()
    np.testing.assert_array_equal(drawing.final_masks(mask, refine=False), mask > 0)


def test_a_defect_of_which_hardly_anything_was_drawn_counts_as_none():
    requested = np.zeros((2, 64, 64), np.float32)
    requested[:, 20:30, 20:30] = 1
    mask = requested.copy()
    mask[1, 20:29] = 0  # a tenth is left
    found = drawing.final_masks(mask, requested, 0.3)
    assert found[0].sum() == 100 and not found[1].any()
    assert drawing.final_masks(mask, requested, 0.05)[1].sum() == 10


@pytest.mark.parametrize(
    ("per_image", "said"), [(0, "per_image=0"), (3, "batch_size=2")]
)
def test_a_batch_holds_whole_images(per_image, said):
    sets = drawing.sets(options_of_drawing(batch_size=2, per_image=per_image), "")
    with pytest.raises(ValueError, match=rf"config\.generate\.{said}"):
        sets.check(2, meshes.make_mesh())

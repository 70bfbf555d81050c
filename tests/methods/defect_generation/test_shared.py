"""Many defects on one normal image, by other seeds and prompts: one inversion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_defect_generation import (
    FROZEN,
    PARAMS,
    SIZE,
    latent_mask,
    stand_in,
    stand_in_batch,
    stand_in_generator,
)

from jaxanom.data import pools
from jaxanom.jobs import prepare
from jaxanom.methods.defect_generation import drawing, predict
from jaxanom.parallel import mesh as meshes


def several(network=stand_in, **options):
    """Three defects on each of two images, by other seeds and other prompts."""
    generate = jax.jit(stand_in_generator(network, **options))
    batch = stand_in_batch(seed=((3, 8, 9), (4, 5, 6)))
    batch["defect_id"] = jnp.asarray([[1, 2, 1], [2, 1, 2]])
    found = generate(PARAMS, FROZEN, batch, jax.random.key(0))
    return {name: np.asarray(value) for name, value in found.items()}, batch, generate


@pytest.mark.parametrize(
    "options",
    [
        {"background": "replay", "refine": True},
        {"paste": True, "inversion_time": "target", "fixed_point_iterations": 1},
        {"guidance_scale": 2.0, "solver": "dpmpp_2m"},
        {"start": "noise"},
        {"start": "noise", "final_alpha": "first"},
    ],
)
def test_defects_that_share_an_inversion_are_those_drawn_one_by_one(options):
    found, batch, generate = several(**options)
    for place in range(3):
        one = {name: batch[name][:, place] for name in ("seed", "defect_id")}
        alone = generate(PARAMS, FROZEN, batch | one, jax.random.key(0))
        assert sorted(alone) == sorted(found)
        for name, value in alone.items():
            # Other shapes sum in another order: rounding of latents that reach 14.
            np.testing.assert_allclose(
                found[name][place::3], value, atol=1e-4, err_msg=name
            )
    # Negative control: the rows of one image are not one row three times.
    assert np.abs(found["latents"][0] - found["latents"][1]).max() > 1e-2


@pytest.mark.parametrize(("background", "sampled"), [("replay", 6), ("recompute", 12)])
def test_siblings_have_one_background_and_cost_one_inversion(background, sampled):
    rows = []

    def counting(params, latents, timesteps, context, bias):
        rows.append(len(latents))
        return stand_in(params, latents, timesteps, context, bias)

    found, batch, _ = several(counting, background=background)
    # One row of the inversion for an image; of the sampling, one or two for a defect.
    assert set(rows) == {2, sampled}
    inside = np.repeat(latent_mask(batch), 3, 0)
    inside = np.broadcast_to(inside, found["latents"].shape)
    first = np.repeat(found["latents"][::3], 3, 0)
    np.testing.assert_array_equal(found["latents"][~inside], first[~inside])
    assert np.abs(found["latents"] - first)[inside].max() > 1e-2


@pytest.mark.parametrize(
    ("seeds", "defects"), [((2, 3), (2,)), ((3,), (3,)), ((2, 1, 2), (2, 1, 2))]
)
def test_rows_that_do_not_belong_to_an_image_are_refused(seeds, defects):
    batch = stand_in_batch(seed=np.zeros(seeds, np.int32))
    batch["defect_id"] = jnp.ones(defects, jnp.int32)
    with pytest.raises(ValueError, match=r"2 images with seed of shape .*\[B, K\]"):
        stand_in_generator()(PARAMS, FROZEN, batch, jax.random.key(0))


@pytest.fixture(scope="module")
def dataset(generation_config):
    """The training part of the tiny folder."""
    return pools.training_part(*prepare.open_data(generation_config()))


def test_entries_of_a_plan_that_share_an_image_share_its_mask_and_type(dataset):
    shared = predict.plan(dataset, 7, seed=5, per_image=3)
    single = predict.plan(dataset, 3, seed=5)
    assert [request.number for request in shared] == list(range(7))
    for request in shared:
        wanted = single[request.number // 3]
        assert request[1:4] == wanted[1:4]
        np.testing.assert_array_equal(request.mask, wanted.mask)


def rows(generate, dataset, count, **options):
    """What a stand-in for the method's `generate` draws for the plan of seed 3."""
    mesh = meshes.make_mesh()
    told = {"prompt": "a {defect}", "seed": 3, "mesh": mesh, **options}
    return list(drawing.rows(generate, None, None, dataset, count, **told))


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
    requests = predict.plan(dataset, 5, 3, per_image=2)
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

    monkeypatch.setattr(predict.refinement, "drop_small", np.zeros_like)
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
    for (row, _), request in zip(found, predict.plan(dataset, 2, 3), strict=True):
        normal = dataset.load(dataset.records[request.normal])[0]
        assert not row.mask.any() and request.mask.sum() > 4
        assert np.array_equal(row.image, normal) == paste

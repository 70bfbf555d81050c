"""Many defects on one normal image, by other seeds and prompts: one inversion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_defect_generation import (
    FROZEN,
    PARAMS,
    latent_mask,
    stand_in,
    stand_in_batch,
    stand_in_generator,
)


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

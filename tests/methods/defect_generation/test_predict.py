"""Drawing defects: arXiv 2411.16767, Algorithm 1, lines 6-9."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_defect_generation import (
    FROZEN,
    PARAMS,
    SIDE,
    SIZE,
    drawing,
    latent_mask,
    stand_in,
    stand_in_batch,
    stand_in_generator,
    training,
)

from jaxanom.data import catalog, pools
from jaxanom.diffusion import inversion, schedules
from jaxanom.jobs import prepare
from jaxanom.methods.defect_generation import model, objective, options, predict
from jaxanom.models import backbones
from jaxanom.models.latent import noise_schedule, unet

STEPS = 3
ALPHAS = schedules.alphas_cumprod()


# A real, random UNet and autoencoder, through the method. --------------------------


@pytest.fixture(scope="module")
def generator(generation_config, tiny_backbone):
    """The method on the tiny folder with the backbone's own random UNet."""
    config = generation_config(model__unet="", generate__num_steps=STEPS)
    made = prepare.prepare(config)
    params, frozen = made.method.init(jax.random.key(0))
    network = backbones.load_unet(tiny_backbone).module
    return types.SimpleNamespace(
        params=params,
        frozen=frozen,
        dataset=pools.training_part(made.dataset, made.division),
        generate=jax.jit(made.method.generate),
        # What the negative control composes by hand:
        unet_apply=lambda params, *inputs: network.apply({"params": params}, *inputs),
        grids=unet.attention_resolutions(network.config, SIDE, SIDE),
        contexts=model.Contexts(**frozen["contexts"]),
    )


def batch_of(dataset, defect_id=(1, 2), seed=(0, 1), rows=(0, 1)):
    """Normal images of given rows, each with its own off-centre mask."""
    source = catalog.source(dataset, catalog.select(dataset, anomalous=False))
    mask = np.zeros((2, SIZE, SIZE), np.float32)
    mask[0, 2:7, 8:15] = 1
    mask[1, 9:11, 1] = 1
    image = np.stack([source[row]["image"] for row in rows])
    return {
        "image": jnp.asarray(image / 255.0, jnp.float32),
        "mask": jnp.asarray(mask[list(rows)]),
        "defect_id": jnp.asarray(defect_id),
        "category_id": jnp.zeros(2, jnp.int32),
        "seed": jnp.asarray(seed),
    }


def call(generator, **changes):
    batch = batch_of(generator.dataset, **changes)
    found = generator.generate(
        generator.params, generator.frozen, batch, jax.random.key(7)
    )
    return {name: np.asarray(value) for name, value in found.items()}, batch


def test_the_background_is_the_same_bits_for_every_seed_and_every_defect(generator):
    first, batch = call(generator)
    other, _ = call(generator, seed=(40, 41))
    prompt, _ = call(generator, defect_id=(2, 1))
    inside = np.broadcast_to(latent_mask(batch), first["latents"].shape)
    for found in (other, prompt):
        np.testing.assert_array_equal(
            first["latents"][~inside], found["latents"][~inside]
        )
        np.testing.assert_array_equal(first["inverted"], found["inverted"])
        np.testing.assert_array_equal(first["normal"], found["normal"])
    # Fresh unit noise is another defect; the prompt alone moves it less.
    assert np.abs(first["latents"] - other["latents"])[inside].max() > 0.1
    assert np.abs(first["latents"] - prompt["latents"])[inside].max() > 1e-4


def test_the_hole_of_the_inverted_latents_is_exactly_zero(generator):
    found, batch = call(generator)
    inside = np.broadcast_to(latent_mask(batch), found["inverted"].shape)
    assert (found["inverted"][inside] == 0).all()
    assert (found["inverted"][~inside] != 0).all()


def test_a_row_is_a_function_of_itself_alone(generator):
    """Its neighbours in the batch and its place in it change nothing."""
    together, _ = call(generator)
    alike, _ = call(generator, rows=(0, 0), defect_id=(1, 1), seed=(0, 5))
    moved, _ = call(generator, rows=(1, 0), defect_id=(2, 1), seed=(1, 0))
    for name in ("latents", "image", "mask", "inverted"):
        # Same place, other neighbour: the same instructions on the same numbers.
        np.testing.assert_allclose(together[name][0], alike[name][0], atol=1e-5)
    for name in ("latents", "inverted"):
        # Another place may be tiled otherwise. Rounding of one part in 1e6 a call grows
        # over six calls of a random network, on latents that reach 14.
        np.testing.assert_allclose(together[name], moved[name][::-1], atol=1e-2)
    # Negative control: the seed of the row matters.
    assert np.abs(alike["latents"][0] - alike["latents"][1]).max() > 0.1


def test_inversion_and_sampling_compile_once_for_a_shape(generator):
    call(generator)
    call(generator, seed=(8, 9))
    assert generator.generate._cache_size() == 1


def test_what_comes_out_is_in_range_and_inside_the_requested_mask(generator):
    found, batch = call(generator)
    for name in ("image", "reference"):
        assert found[name].shape == (2, SIZE, SIZE, 3)
        assert found[name].min() >= 0 and found[name].max() <= 1
    assert set(np.unique(found["mask"])) <= {0.0, 1.0}
    assert (found["mask"] <= np.asarray(batch["mask"])).all()
    assert found["change"].min() >= 0 and found["change"].max() <= 1


def test_a_composition_that_breaks_the_rule_changes_the_background(generator):
    """Negative controls: the background branch fed z_t; C1 on the whole image."""
    levels = schedules.levels(len(ALPHAS), STEPS)
    downward = schedules.sampling_table(ALPHAS, levels)
    first, batch = call(generator)
    mask = jnp.asarray(latent_mask(batch), jnp.float32)

    @jax.jit
    def sample(start, defect_id, which):
        prompt = model.prompted(
            generator.contexts,
            mask[..., 0],
            defect_id,
            batch["category_id"],
            training(),
            generator.grids,
        )
        pair = objective.pair_noise(
            generator.unet_apply, generator.params["unet"], prompt, False
        )

        def noise_fn(latents, background, timesteps):
            seen = jnp.where(which == 1, latents, background)
            defect, outside = pair(latents, seen, timesteps)
            return defect, jnp.where(which == 2, defect, outside)

        return inversion.compose_sample(noise_fn, start, mask, downward)

    inverted = jnp.asarray(first["inverted"])
    starts = [
        inversion.start_latents(
            inverted, mask, jax.random.normal(jax.random.key(seed), inverted.shape)
        )
        for seed in (1, 2)
    ]
    outside = np.broadcast_to(~latent_mask(batch), inverted.shape)
    ids = jnp.asarray([1, 2])
    spread = {}
    for which in (0, 1, 2):
        found = [np.asarray(sample(start, ids, which)) for start in starts]
        spread[which] = np.abs(found[0] - found[1])[outside].max()
    assert spread[0] == 0.0
    assert spread[1] > 1e-3 and spread[2] > 1e-3, spread


# Options, on a stand-in autoencoder and network that compile at once. ---------------


@functools.cache
def drawn(network=stand_in, trained_as=None, flipped=False, key=0, **options):
    """Runs the method on stand-ins; the same call is compiled and run once."""
    generate = stand_in_generator(network, trained_as, **options)
    batch = stand_in_batch()
    if flipped:
        batch["image"] = batch["image"][:, ::-1] * 0.5
    found = jax.jit(generate)(PARAMS, FROZEN, batch, jax.random.key(key))
    return {name: np.asarray(value) for name, value in found.items()}


def background(found, name="latents"):
    inside = latent_mask(stand_in_batch())
    return found[name][~np.broadcast_to(inside, found[name].shape)]


def defect(found):
    inside = latent_mask(stand_in_batch())
    return found["latents"][np.broadcast_to(inside, found["latents"].shape)]


def test_replay_returns_the_encoded_background_exactly():
    found = drawn(background="replay")
    np.testing.assert_array_equal(background(found), background(found, "normal"))
    # Negative control: recomputing carries the round trip's error.
    again = drawn()
    assert np.abs(background(again) - background(again, "normal")).max() > 1e-4


def test_replay_and_recompute_share_the_inversion():
    np.testing.assert_array_equal(
        drawn()["inverted"], drawn(background="replay")["inverted"]
    )


def test_more_steps_invert_better_and_fixed_points_better_still():
    def error(**options):
        found = drawn(**options)
        return np.abs(background(found) - background(found, "normal")).mean()

    few, many = error(num_steps=4), error(num_steps=64)
    assert many < few
    target = {"num_steps": 16, "inversion_time": "target"}
    assert error(**target, fixed_point_iterations=5) < error(**target)


def test_the_number_of_traces_of_the_network_does_not_grow_with_the_steps():
    def traces(num_steps):
        count = []

        def counting(*inputs):
            count.append(1)
            return stand_in(*inputs)

        drawn(counting, num_steps=num_steps)
        return len(count)

    assert traces(3) == traces(12) <= 4


@pytest.mark.parametrize("final_alpha", ["one", "first"])
def test_starting_from_noise_ends_in_the_encoded_background_too(final_alpha):
    found = drawn(start="noise", final_alpha=final_alpha)
    np.testing.assert_array_equal(background(found), background(found, "normal"))
    assert np.abs(found["inverted"] - drawn()["inverted"]).max() > 0.1


@pytest.mark.parametrize(
    "options",
    [{"guidance_scale": 3.0}, {"eta": 0.7}, {"eta": 1.0, "background": "replay"}],
)
def test_guidance_and_fresh_noise_change_the_defect_and_not_the_background(options):
    base = drawn(background=options.get("background", "recompute"))
    found = drawn(**options)
    # Another program for the same background: float32 rounding of values that reach
    # 14 on the way, over four moves.
    np.testing.assert_allclose(background(base), background(found), atol=1e-4)
    assert np.abs(defect(base) - defect(found)).max() > 1e-2


@pytest.mark.parametrize("background_mode", options.BACKGROUNDS)
def test_the_second_order_solver_changes_the_defect_and_not_the_background(
    background_mode,
):
    options = {"background": background_mode, "num_steps": 6, "spacing": "log_snr"}
    base, found = drawn(**options), drawn(**options, solver="dpmpp_2m")
    np.testing.assert_allclose(background(base), background(found), atol=1e-4)
    if background_mode == "replay":
        np.testing.assert_array_equal(background(found), background(found, "normal"))
    assert np.abs(defect(base) - defect(found)).max() > 1e-3


def test_the_second_order_solver_takes_no_fresh_noise():
    with pytest.raises(ValueError, match=r"generate\.solver='dpmpp_2m'.*generate\.eta"):
        drawing(solver="dpmpp_2m", eta=0.3)


def test_fresh_noise_never_reaches_the_background():
    first, second = drawn(eta=0.7, key=1), drawn(eta=0.7, key=2)
    assert np.abs(defect(first) - defect(second)).max() > 1e-2
    np.testing.assert_array_equal(background(first), background(second))


def test_the_branches_hear_plain_prompts_where_attention_is_not_masked():
    lengths = set()

    def listening(params, latents, timesteps, context, bias):
        lengths.add((context.shape[1], bias is None))
        return stand_in(params, latents, timesteps, context, bias)

    drawn(listening, training(masked_attention=False))
    assert lengths == {(2, True)}
    lengths.clear()
    drawn(listening)
    assert lengths == {(4, False)}


def test_a_hidden_background_does_not_reach_the_defect():
    """The defect branch is blind: other images give the same defect."""
    blind = training(hide_background=True)
    one, two = (defect(drawn(trained_as=blind, flipped=f)) for f in (False, True))
    # A mean over hidden pixels of exact zeros: only the order of sums may differ.
    np.testing.assert_allclose(one, two, atol=1e-6)
    one, two = (defect(drawn(flipped=f)) for f in (False, True))
    assert np.abs(one - two).max() > 1e-3


def test_paste_puts_the_normal_pixels_back_outside_the_mask():
    batch = stand_in_batch()
    outside = np.asarray(batch["mask"]) < 0.5
    pasted = drawn(paste=True)["image"]
    np.testing.assert_array_equal(pasted[outside], np.asarray(batch["image"])[outside])
    assert np.abs(drawn()["image"][outside] - pasted[outside]).max() > 1e-4


def test_pasted_images_differ_from_the_normal_ones_where_the_refined_mask_says_alone():
    normal = np.asarray(stand_in_batch()["image"])
    found = drawn(paste=True, refine=True)
    left = (np.asarray(stand_in_batch()["mask"]) > 0.5) & (found["mask"] < 0.5)
    outside = found["mask"] < 0.5
    assert left.any()  # asked for, and not called a defect
    np.testing.assert_array_equal(found["image"][outside], normal[outside])
    plain = drawn(refine=True)["image"]
    assert np.abs(plain[left] - normal[left]).max() > 1e-4


def test_refinement_keeps_a_part_of_the_mask_and_nothing_where_nothing_changed():
    mask = np.asarray(stand_in_batch()["mask"])
    np.testing.assert_array_equal(drawn(refine=False)["mask"], mask)
    found = drawn(refine=True)["mask"]
    assert (found <= mask).all() and found.sum() > 0
    assert drawn(refine=True, change_floor=1.0)["mask"].sum() == 0


@pytest.mark.parametrize(
    "options",
    [
        {"background": "paste"},
        {"start": "zero"},
        {"inversion_time": "middle"},
        {"spacing": "log"},
        {"solver": "heun"},
        {"num_steps": 0},
        {"fixed_point_iterations": -1},
        {"guidance_scale": -1.0},
        {"eta": 1.5},
        {"change_floor": 2.0},
        {"least_kept": -0.5},
    ],
)
def test_a_wrong_option_names_its_key(options):
    ((key, value),) = options.items()
    with pytest.raises(ValueError, match=rf"config\.generate\.{key}={value!r}"):
        drawing(**options)


def test_more_moves_than_the_schedule_has_are_refused():
    with pytest.raises(ValueError, match="num_steps=1000"):
        drawn(num_steps=1000)


# Whose noise levels. ---------------------------------------------------------------

# What the scheduler folder of stable-diffusion-v1-5 says.
PUBLISHED = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def test_a_walk_visits_the_levels_the_checkpoints_scheduler_lays_out():
    schedule = noise_schedule.read(PUBLISHED, "published")
    up, down = predict._tables(schedule, drawing(num_steps=50))
    np.testing.assert_array_equal(down.timesteps, np.arange(981, 0, -20))
    for end in (up.alpha_from[0], down.alpha_to[-1]):
        assert end == np.float32(ALPHAS[0])
    # With set_alpha_to_one, and with a spacing of one's own, the walk is another.
    ends_clean = noise_schedule.read({**PUBLISHED, "set_alpha_to_one": True}, "other")
    _, other = predict._tables(ends_clean, drawing(num_steps=50))
    assert other.alpha_to[-1] == 1
    _, even = predict._tables(schedule, drawing(num_steps=50, spacing="linspace"))
    assert even.timesteps[0] == 999

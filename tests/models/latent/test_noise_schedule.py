"""Scheduler configs of published checkpoints, and of diffusers' own classes."""

import numpy as np
import pytest

from jaxanom.models.latent import noise_schedule

SD1 = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
SD2 = SD1 | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}


def test_published_files_are_read():
    first, second = (noise_schedule.read(raw, "x") for raw in (SD1, SD2))
    assert first.prediction_type == "epsilon"
    assert second.prediction_type == "v_prediction"
    for found in (first, second):
        assert found[2:] == ("leading", 1, "first")
        assert found.alphas_cumprod.shape == (1000,)
        # The ends that the released models are known by.
        np.testing.assert_allclose(found.alphas_cumprod[0], 1 - 0.00085, rtol=1e-9)
        np.testing.assert_allclose(found.alphas_cumprod[-1], 0.004660, rtol=1e-3)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_levels_and_alphas_are_those_of_diffusers(spacing, offset, betas):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(
        beta_schedule=betas,
        timestep_spacing=spacing,
        steps_offset=offset,
        set_alpha_to_one=bool(offset),
        clip_sample=False,
    )
    theirs.set_timesteps(50)
    ours = noise_schedule.read(dict(theirs.config), "x")
    assert ours.levels(50)[1:][::-1].tolist() == theirs.timesteps.tolist()
    # diffusers keeps float32 products of a thousand factors.
    np.testing.assert_allclose(
        ours.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-6
    )
    final = 1.0 if ours.final_alpha == "one" else ours.alphas_cumprod[0]
    np.testing.assert_allclose(final, float(theirs.final_alpha_cumprod), rtol=1e-6)


def test_defaults_of_absent_keys_are_those_of_each_class():
    diffusers = pytest.importorskip("diffusers")
    for name, spacing in noise_schedule._SPACING.items():
        config = getattr(diffusers, name)().config
        if "timestep_spacing" in config:
            assert config["timestep_spacing"] == spacing, name
        wanted = "one" if config.get("set_alpha_to_one", True) else "first"
        bare = noise_schedule.read({"_class_name": name}, "x")
        assert bare.final_alpha == wanted, name
        whole = {key: config[key] for key in noise_schedule._BETAS}
        told = noise_schedule.read({"_class_name": name} | whole, "x")
        np.testing.assert_array_equal(bare.alphas_cumprod, told.alphas_cumprod, name)
        for key in whole:
            rest = {k: v for k, v in whole.items() if k != key}
            part = noise_schedule.read({"_class_name": name} | rest, "x")
            np.testing.assert_array_equal(part.alphas_cumprod, told.alphas_cumprod)


def test_given_betas_win_over_the_named_schedule():
    betas = np.linspace(0.1, 0.2, 4)
    raw = SD1 | {"trained_betas": betas.tolist(), "num_train_timesteps": 4}
    found = noise_schedule.read(raw | {"steps_offset": 0}, "x")
    np.testing.assert_allclose(found.alphas_cumprod, np.cumprod(1 - betas))


def test_an_offset_is_ignored_by_other_spacings_as_in_diffusers():
    raw = SD1 | {"timestep_spacing": "trailing"}
    assert noise_schedule.read(raw, "x").levels(4).tolist() == [-1, 249, 499, 749, 999]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "sample"}, "prediction_type='sample'"),
        ({"prediction_type": None}, "prediction_type=None"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        ({"beta_start": 0.5}, "beta_start=0.5"),
        ({"beta_start": "small"}, "not supported"),
        ({"trained_betas": [0.1, 0.2]}, r"trained_betas of shape \(2,\) contradict"),
        ({"trained_betas": [1.5] * 1000}, "between 0 and 1"),
        ({"num_train_timesteps": "many"}, "wanted a count"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ({"timestep_spacing": "random"}, "timestep_spacing='random'"),
        ({"_class_name": "OwnScheduler"}, "timestep_spacing=None of OwnScheduler"),
        (
            {"_class_name": "OwnScheduler", "beta_end": None},
            r"\['beta_end'\] of OwnScheduler are not known",
        ),
        ({"steps_offset": -1}, "steps_offset=-1"),
        ({"steps_offset": 1.5}, "steps_offset=1.5"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True asks for"),
        ({"clip_sample": True}, "clip_sample=True asks for clipped latents"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas"),
    ],
)
def test_values_that_are_unknown_or_contradict_are_named_with_their_file(
    changes, message
):
    with pytest.raises(ValueError, match=f"file.json.*{message}|{message}.*file.json"):
        noise_schedule.read(SD1 | changes, "file.json")

"""The libraries' own Flax classes: same numbers, parameters in and out, refusals."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom import trees
from jaxanom.models import networks
from jaxanom.models.clip import towers
from jaxanom.models.latent import tiny_autoencoder, unet, vae
from jaxanom.models.libraries import interop

UNET = unet.UNetConfig(
    block_out_channels=(32, 64),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    cross_attention_dim=12,
    attention_head_dim=(2, 4),
    use_linear_projection=True,
)
VAE = vae.VaeConfig(
    block_out_channels=(8, 16), norm_num_groups=4, latent_channels=3, sample_size=16
)
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "projection_dim": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT = towers.TextConfig(
    vocab_size=40,
    max_position_embeddings=7,
    bos_token_id=38,
    eos_token_id=39,
    **SIZES,
)
VISION = towers.VisionConfig(image_size=16, patch_size=8, hidden_act="gelu", **SIZES)
CLIP = towers.ClipConfig(TEXT, VISION, projection_dim=12)
IDS = np.array([[38, 5, 6, 39, 39, 39, 39], [38, 1, 2, 3, 4, 7, 39]], np.int32)

TOWERS = {
    "unet": unet.UNet(UNET),
    "vae": vae.AutoencoderKL(VAE),
    "clip": towers.CLIP(CLIP),
    "text": towers.TextTower(TEXT),
    "text without projection": towers.TextTower(TEXT, projection=False),
    "image": towers.ImageTower(VISION),
    "image without projection": towers.ImageTower(VISION, projection=False),
}


@functools.cache
def rows(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def inputs(name):
    if name == "unet":
        latents = rows(2, 8, 8, 4) - 0.5
        return latents, np.array([981, 3], np.int32), rows(2, 5, 12, seed=1) - 0.5
    image = rows(2, 16, 16, 3)
    if name == "clip":
        return IDS, image
    return (IDS,) if name.startswith("text") else (image,)


@functools.cache
def weights(name):
    """Random values in every leaf, so that a leaf that is not read shows."""
    shapes = networks.shapes(TOWERS[name])
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape).astype(np.float32)
        if path.endswith("kernel"):
            return values / np.sqrt(np.prod(leaf.shape[:-1]))
        return (1 if path.endswith("scale") else 0) + np.float32(0.3) * values

    return trees.unflatten({p: draw(p, x) for p, x in trees.flatten(shapes).items()})


def run(module, name, **keywords):
    call = jax.jit(functools.partial(module.apply, **keywords))
    return call({"params": weights(name)}, *inputs(name))


def close(found, wanted, atol=1e-5):
    """float32 through few layers, activations of order one: 2e-6 is usual."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers.models.vae_flax")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers.models.clip.modeling_flax_clip")


@pytest.fixture
def library(request):
    """Skips where the library of a parametrised tower has no Flax classes."""
    name = request.getfixturevalue("name")
    request.getfixturevalue("diffusers" if name in ("unet", "vae") else "transformers")


@pytest.mark.parametrize("name", TOWERS)
def test_the_library_reads_our_parameter_tree(library, name):
    adapted = interop.adapt(TOWERS[name])
    shapes = networks.shapes(adapted)
    trees.check_same_shapes(shapes, weights(name), name)
    assert type(adapted) is not type(TOWERS[name])


class TestUNet:
    @pytest.fixture(scope="class")
    def ours(self, diffusers):
        return run(TOWERS["unet"], "unet")

    def test_equals_ours(self, ours):
        assert np.abs(ours).max() > 0.3
        close(run(interop.adapt(TOWERS["unet"]), "unet"), ours)

    def test_differs_from_ours_with_the_constants_of_the_library(self, ours):
        """So that the test above sees both constants, and says which class ran."""
        model, params = interop.to_flax(TOWERS["unet"], weights("unet"))
        latents, *rest = map(jnp.asarray, inputs("unet"))
        theirs = jax.jit(model.apply)(
            {"params": params}, latents.transpose(0, 3, 1, 2), *rest
        )
        found = theirs.sample.transpose(0, 2, 3, 1)
        assert 1e-5 < np.abs(found - ours).max() < 1e-2

    def test_gradients_equal_ours(self, diffusers):
        config = dataclasses.replace(
            UNET,
            block_out_channels=(32,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("UpBlock2D",),
            attention_head_dim=2,
        )
        module = unet.UNet(config)
        shapes = networks.shapes(module)
        rng = np.random.default_rng(1)
        params = jax.tree.map(
            lambda leaf: 0.2 * rng.standard_normal(leaf.shape).astype(np.float32),
            shapes,
        )

        def grads(module):
            def loss(params):
                return jnp.mean(module.apply({"params": params}, *inputs("unet")) ** 2)

            return jax.device_get(jax.jit(jax.grad(loss))(params))

        ours, theirs = (
            trees.flatten(grads(m)) for m in (module, interop.adapt(module))
        )
        for path, wanted in ours.items():
            # Sums of thousands of float32 products, in another order.
            scale = np.abs(wanted).max()
            assert np.abs(theirs[path] - wanted).max() < 1e-3 * scale + 1e-7, path

    def test_a_mask_for_attention_names_both_keys(self, diffusers):
        adapted = interop.adapt(TOWERS["unet"])
        bias = {64: jnp.zeros((1, 64, 5))}
        with pytest.raises(ValueError, match="masked_attention=False or config"):
            jax.eval_shape(
                adapted.apply, {"params": weights("unet")}, *inputs("unet"), bias
            )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"norm_num_groups": 16}, "norm_num_groups=32 only.*says 16"),
            ({"norm_eps": 1e-6}, "norm_eps=1e-05 only"),
        ],
    )
    def test_sizes_that_the_library_lacks_are_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            interop.adapt(unet.UNet(dataclasses.replace(UNET, **change)))

    def test_remat_is_refused_with_its_key(self):
        with pytest.raises(ValueError, match=r"config\.model\.remat='none'"):
            interop.adapt(unet.UNet(UNET, remat="full"))


class TestAutoencoder:
    def test_encodes_and_decodes_as_ours(self, diffusers):
        module = TOWERS["vae"]
        adapted = interop.adapt(module)
        moments = run(module, "vae", method="encode")
        close(run(adapted, "vae", method="encode"), moments)
        assert np.abs(moments.mean).max() > 0.1

        def decode(which):
            call = jax.jit(functools.partial(which.apply, method="decode", clip=False))
            return call({"params": weights("vae")}, moments.mean)

        wanted = decode(module)
        close(decode(adapted), wanted, atol=2e-5)
        assert np.abs(wanted).max() > 0.3

    @pytest.mark.parametrize("name", ["mid_block_add_attention", "use_quant_conv"])
    def test_what_the_library_always_has_cannot_be_left_out(self, name):
        config = dataclasses.replace(VAE, **{name: False})
        with pytest.raises(ValueError, match=f"{name}=True only"):
            interop.adapt(vae.AutoencoderKL(config))

    def test_a_tiny_autoencoder_has_no_form_in_the_library(self):
        module = tiny_autoencoder.TinyAutoencoder(tiny_autoencoder.TinyConfig())
        with pytest.raises(ValueError, match=r"TinyAutoencoder.*implementation='ours'"):
            interop.adapt(module)


class TestClip:
    def test_both_towers_equal_ours(self, transformers):
        ours = run(TOWERS["clip"], "clip")
        close(run(interop.adapt(TOWERS["clip"]), "clip"), ours)
        assert np.abs(ours.logits_per_image).max() > 0.3

    @pytest.mark.parametrize("name", ["text", "image"])
    def test_hidden_states_are_those_of_ours(self, transformers, name):
        module = TOWERS[name]
        ours = run(module, name, return_layers=(0, 2, 1))
        found = run(interop.adapt(module), name, return_layers=(0, 2, 1))
        close(found, ours)
        states = ours.hidden_states
        assert np.abs(states[0] - states[1]).max() > 0.1

    def test_images_of_another_size_are_refused(self, transformers):
        adapted = interop.adapt(TOWERS["image"])
        with pytest.raises(ValueError, match=r"16 px only.*32"):
            jax.eval_shape(
                adapted.apply, {"params": weights("image")}, rows(1, 32, 32, 3)
            )

    def test_embeddings_instead_of_ids_are_refused(self, transformers):
        adapted = interop.adapt(TOWERS["text"])
        with pytest.raises(ValueError, match="reads input_ids only"):
            jax.eval_shape(
                lambda: adapted.apply(
                    {"params": weights("text")},
                    token_embeddings=rows(1, 7, 16),
                    eos_positions=np.array([3]),
                )
            )


class TestInAndOut:
    @pytest.mark.parametrize("name", [name for name in TOWERS if name != "image"])
    def test_there_and_back_changes_nothing(self, library, name):
        model, params = interop.to_flax(TOWERS[name], weights(name))
        module, back = interop.from_flax(model, params)
        if name == "unet":  # heads are named per block over there
            assert module.config.num_heads == TOWERS[name].config.num_heads
        if name in ("vae", "text", "text without projection"):
            assert module == TOWERS[name]
        flat = trees.flatten(back)
        for path, value in trees.flatten(weights(name)).items():
            np.testing.assert_array_equal(flat.pop(path), value)
        assert not flat

    def test_the_object_of_the_library_says_what_ours_says(self, transformers):
        model, params = interop.to_flax(TOWERS["clip"], weights("clip"))
        ours = run(TOWERS["clip"], "clip")
        ids, image = inputs("clip")
        pixels = (image - VISION.image_mean) / np.array(VISION.image_std)
        pixels = pixels.transpose(0, 3, 1, 2).astype(np.float32)
        theirs = jax.jit(lambda params: model(ids, pixels, params=params))(params)
        close(theirs.logits_per_image, ours.logits_per_image)

    def test_a_model_that_holds_its_parameters_gives_them(self, transformers):
        name = "text without projection"
        model, params = interop.to_flax(TOWERS[name], weights(name))
        # As its constructor does, without drawing random parameters first.
        model._is_initialized = True
        model.params = params
        module, found = interop.from_flax(model)
        assert isinstance(module, towers.TextTower) and not module.projection
        assert jax.tree.all(jax.tree.map(np.array_equal, found, weights(name)))

    def test_a_text_tower_takes_its_part_of_a_whole_clip(self, transformers):
        module = TOWERS["text without projection"]
        _, params = interop.to_flax(module, weights("clip"))
        assert set(params) == {"text_model"}

    def test_parameters_of_another_model_are_refused(self, diffusers):
        model, params = interop.to_flax(TOWERS["vae"], weights("vae"))
        with pytest.raises(ValueError, match="does not hold its parameters"):
            interop.from_flax(model)
        with pytest.raises(ValueError, match=r"encoder/conv_in.*found nothing"):
            interop.from_flax(
                model, {k: v for k, v in params.items() if k != "encoder"}
            )
        with pytest.raises(ValueError, match="none of the Flax models"):
            interop.from_flax(object())

    def test_an_image_tower_with_projection_has_no_class(self, transformers):
        with pytest.raises(ValueError, match="projection=False"):
            interop.to_flax(TOWERS["image"], weights("image"))


@pytest.mark.parametrize(
    ("package", "name"), [("diffusers", "unet"), ("transformers", "clip")]
)
def test_without_the_library_the_extra_to_install_is_named(monkeypatch, package, name):
    for loaded in list(sys.modules):
        if loaded.split(".")[0] == package:
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"{package} < .*pip install 'jaxanom\[hf\]'"):
        interop.adapt(TOWERS[name])

"""Cross-model attention, maps and image logits against the released modules."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.methods.bayes_pfl import heads
from jaxanom.models.clip import towers


def test_attention_and_maps_of_every_layer(golden):
    arrays = golden.arrays("rca_heads_train")
    patch_tokens = np.moveaxis(golden.arrays("vision")["patch_tokens"], 0, 1)
    network, variables = golden.network(), {"params": golden.params()}
    text = arrays["text_embeddings"]
    adapted, dense = network.apply(variables, text, patch_tokens, method="adapt")
    logits = network.apply(variables, text, patch_tokens, method="pixel_logits")
    margins = network.apply(variables, text, patch_tokens, method="pixel_margins")
    half = text.shape[1] // 2
    for layer in range(len(golden.options.layers)):
        golden.close(adapted[:, layer], arrays[f"rca/text_out_{layer}"])
        golden.close(dense[:, layer], arrays[f"rca/dense_{layer}"])
        wanted = arrays[f"lowres_logits_{layer}"]
        golden.close(logits[:, layer], wanted)
        difference = wanted[:, half:] - wanted[:, :half]
        # A difference of two logits: the error is that of the logits.
        scale = np.abs(wanted).max() / np.abs(difference).max()
        golden.close(margins[:, layer], difference, golden.forward * scale)


def test_upsampling_puts_corners_on_corners(golden):
    arrays = golden.arrays("rca_heads_train")
    size = (golden.sizes.image,) * 2
    grid = heads.grid_of(size, golden.sizes.patch)
    for layer, wanted in enumerate(arrays["map_logits"]):
        small = heads.square(arrays[f"lowres_logits_{layer}"], grid)
        golden.close(heads.upsample(small, size), wanted)
    # Negative control: centres on centres is another map.
    other = jax.image.resize(small, (*small.shape[:2], *size), "bilinear")
    assert np.abs(other - wanted).max() > 100 * golden.forward * np.abs(wanted).max()


def test_fused_patches_and_image_logits_of_both_stages(golden):
    arrays = golden.arrays("rca_heads_train")
    patch_tokens = np.moveaxis(golden.arrays("vision")["patch_tokens"], 0, 1)
    network, variables = golden.network(), {"params": golden.params()}
    golden.close(network.bind(variables).fuse(patch_tokens), arrays["fuse_out"])
    for stage in (1, 2):
        feature = network.apply(
            variables,
            arrays["image_features"],
            patch_tokens,
            stage,
            method="image_feature",
        )
        logits = network.apply(
            variables, arrays["text_embeddings"], feature, method="image_logits"
        )
        golden.close(logits, arrays[f"image_logits_stage{stage}"], what=f"{stage}")


def test_gradients_of_the_attention(golden):
    arrays = golden.arrays("rca_grad")
    layer = int(arrays["layer"])
    weights = golden.params()["attention"]
    params = {
        "query": weights["query"],
        "projections": weights["projections"][layer : layer + 1],
    }
    width = golden.sizes.D
    module = heads.CrossModelAttention(1, golden.options.num_heads, width)

    def objective(params, text, patch_tokens):
        out, dense = module.apply({"params": params}, text, patch_tokens[:, None])
        value = jnp.sum(out[:, 0] * arrays["cot_text"])
        value += jnp.sum(dense[:, 0] * arrays["cot_dense"])
        return value, (out[:, 0], dense[:, 0])

    (value, found), grads = jax.value_and_grad(objective, (0, 1, 2), has_aux=True)(
        params, arrays["text_in"], arrays["patch_in"]
    )
    golden.close(found[0], arrays["text_out"])
    golden.close(found[1], arrays["dense_out"])
    golden.close(value, arrays["objective"])
    golden.close(grads[1], arrays["grad_text_in"], golden.gradient)
    golden.close(grads[2], arrays["grad_patch_in"], golden.gradient)
    for grad, name in (
        (grads[0]["query"]["kernel"].T[:, :, None], "q_weight"),
        (grads[0]["query"]["bias"], "q_bias"),
        (grads[0]["projections"][0].T, "linear_weight"),
    ):
        golden.close(grad, arrays[f"grad_{name}"], golden.gradient, name)


def test_a_scale_by_the_width_of_a_head_would_be_seen(golden):
    """Negative control of the attention's unusual scale."""
    arrays = golden.arrays("rca_grad")
    layer = int(arrays["layer"])
    weights = golden.params()["attention"]
    text, patches = arrays["text_in"], arrays["patch_in"]
    dense = towers.normalise(patches @ weights["projections"][layer])
    query = text @ weights["query"]["kernel"] + weights["query"]["bias"]
    split = (*query.shape[:2], golden.options.num_heads, -1)
    keys = dense.reshape(dense.shape[0], dense.shape[1], *split[2:])
    mixed = jax.nn.dot_product_attention(query.reshape(split), keys, keys)
    out = towers.normalise(mixed.reshape(text.shape) + text)
    assert np.abs(out - arrays["text_out"]).max() > 10 * golden.forward

"""The released test loop and validation routine, image by image, in one batch."""

import functools

import jax
import numpy as np
import pytest

from jaxanom.methods.bayes_pfl import distributions, objective, predict


def noise_of(arrays):
    """Fresh context noise per image; state noise of the first image alone."""
    return distributions.Noise(
        arrays["eps_isd"],
        arrays["eps_iad_normal"][:1],
        arrays["eps_iad_abnormal"][:1],
    )


@functools.cache
def found_of(golden, stage, shortcuts=True):
    """Image heads [N, R] and maps [N, R, H, W] of all images at once."""
    arrays = golden.arrays("inference")
    token_ids = golden.arrays("text_test")["token_ids"]
    length = None if shortcuts else token_ids.shape[1]
    network = golden.network(shortcuts=shortcuts)
    size = (golden.sizes.image,) * 2
    seen = golden.features(golden.images(arrays["images"]))
    category_id = np.zeros(seen.image_features.shape[0], np.int32)

    @jax.jit
    def run(params, frozen, seen, noise):
        return predict.per_draw(
            network,
            golden.towers,
            stage,
            size,
            params,
            frozen,
            seen,
            category_id,
            noise,
        )

    frozen = golden.frozen(token_ids, length)
    return jax.tree.map(
        np.asarray, run(golden.params(), frozen, seen, noise_of(arrays))
    )


@pytest.mark.parametrize("stage, shortcuts", [(1, True), (2, True), (1, False)])
def test_anomaly_maps_and_image_scores(golden, stage, shortcuts):
    arrays = golden.arrays("inference")
    scores, maps = found_of(golden, stage, shortcuts)
    golden.close(scores.mean(1), arrays[f"image_score_stage{stage}"])
    golden.close(maps.mean(1), arrays["anomaly_map"])
    # Negative control: the draws of one image differ.
    assert np.abs(maps.std(1)).max() > 100 * golden.forward


def test_text_embeddings_and_patch_logits_of_every_image(golden):
    arrays = golden.arrays("inference")
    token_ids = golden.arrays("text_test")["token_ids"]
    network, variables = golden.network(), {"params": golden.params()}
    seen = golden.features(golden.images(arrays["images"]))
    num_images = seen.image_features.shape[0]

    @jax.jit
    def run(params, frozen, seen, noise):
        draws = network.apply(variables, *seen, noise, method="draw")
        text = objective.text_features(
            network,
            golden.towers.text,
            params,
            frozen,
            draws,
            np.zeros(num_images, np.int32),
        )
        pairs = text.reshape(num_images, -1, text.shape[-1])
        logits = network.apply(
            variables, pairs, seen.patch_tokens, method="pixel_logits"
        )
        return draws, pairs, logits

    draws, pairs, logits = run(
        variables["params"], golden.frozen(token_ids), seen, noise_of(arrays)
    )
    golden.close(draws.normal.end[0], arrays["cached_zk_normal"])
    golden.close(draws.abnormal.end[0], arrays["cached_zk_abnormal"])
    wanted = arrays["text_embeddings"]
    golden.close(pairs.reshape(wanted.shape), wanted)
    wanted = arrays["lowres_logits"]
    golden.close(logits.reshape(wanted.shape), wanted)


def test_the_validation_routine(golden):
    arrays = golden.arrays("validation")
    metrics = pytest.importorskip("sklearn.metrics")
    scores, maps = found_of(golden, 1)
    layers, entries = len(golden.options.layers), golden.options.num_prompts
    summed = maps.sum(1) * layers * entries
    golden.close(summed, arrays["score_map_sum"])
    scaled = predict.make_rescale(0.0)(scores.mean(1)[:, None].repeat(2, 1))
    golden.close(scaled, arrays["image_scores_minmax"])
    masks = arrays["masks"][:, 0].ravel() > 0.5
    pixel = metrics.average_precision_score(masks, summed.ravel())
    image = metrics.average_precision_score(arrays["image_labels"], scores.mean(1))
    # Pixels that float32 leaves within 1e-6 of each other may change places.
    assert pixel == pytest.approx(float(arrays["ap_pixel"]), abs=1e-4)
    assert image == pytest.approx(float(arrays["ap_image"]), abs=1e-6)

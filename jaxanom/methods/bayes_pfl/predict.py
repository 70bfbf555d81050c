"""Anomaly maps and image scores: means over draws, with the draws' spread."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from jaxanom.contracts import PredictFn
from jaxanom.methods.bayes_pfl import (
    captions,
    distributions,
    features,
    heads,
    model,
    objective,
)
from jaxanom.methods.bayes_pfl import options as settings
from jaxanom.types import Array, Predictions

MAPS_AT_ONCE = 16
"""Draws whose maps are upsampled together; bounds the memory."""


def make_predict(
    network: model.Network,
    towers: objective.Towers,
    stage: int,
    image_size: tuple[int, int],
    top_k: Sequence[int],
) -> PredictFn:
    """Returns predict.

    Args:
      network, towers: Modules.
      stage: The stage whose image head is used.
      image_size: Size of the maps.
      top_k: Per category, pixels whose mean enters the image score.

    Returns:
      (params, frozen, batch, key) -> Predictions. A row is a function of its image, its
      category and the key alone, whatever the batch. The anomaly map is smoothed;
      `score_parts` holds [image head, mean of the top pixels of the unsmoothed map].
    """
    options = network.options
    finish = make_finish(options, image_size, top_k)

    def predict(params, frozen, batch, key):
        seen = features.of_batch(towers.image, frozen, batch, options.layers)
        if "row_seed" in batch:
            seeds = batch["row_seed"]
        else:
            seeds = features.row_seeds(batch["image"])
        noise = distributions.row_noise(
            key, seeds, options.draws_test, network.width, options.iad_noise == "run"
        )
        scores, maps = per_draw(
            network,
            towers,
            stage,
            image_size,
            params,
            frozen,
            seen,
            batch["category_id"],
            noise,
        )
        if share := options.caption_share:
            plain = captions.compare(
                towers.image, frozen, seen, batch["category_id"], image_size
            )
            scores, maps = (
                (1 - share) * drawn + share * known[:, None]
                for drawn, known in zip((scores, maps), plain, strict=True)
            )
        return finish(scores, maps, batch["category_id"])

    return predict


def make_finish(
    options: settings.Options, image_size: tuple[int, int], top_k: Sequence[int]
) -> Callable[[Array, Array, Array], Predictions]:
    """Returns (image heads [N, R], maps [N, R, H, W], category_id [N]) -> Predictions.

    Args:
      options: `sigma` and `map_weight` are read.
      image_size: (H, W).
      top_k: As in `make_predict`.
    """
    smoothing = [gaussian_matrix(size, options.sigma) for size in image_size]

    def finish(scores: Array, maps: Array, category_id: Array) -> Predictions:
        shares = top_shares(maps, jnp.asarray(top_k)[category_id])
        if options.sigma:
            maps = jnp.einsum("Yy,nryx,Xx->nrYX", smoothing[0], maps, smoothing[1])
        parts = jnp.stack([scores, shares], axis=-1)  # [N, R, 2]
        weights = jnp.asarray([1 - options.map_weight, options.map_weight])
        final = parts @ weights  # [N, R]
        drawn = options.prompts == "drawn"
        return Predictions(
            anomaly_map=jnp.mean(maps, 1),
            image_score=jnp.mean(final, 1),
            anomaly_map_std=jnp.std(maps, 1) if drawn else None,
            image_score_std=jnp.std(final, 1) if drawn else None,
            score_parts=jnp.mean(parts, 1),
        )

    return finish


def per_draw(
    network: model.Network,
    towers: objective.Towers,
    stage: int,
    image_size: tuple[int, int],
    params,
    frozen,
    seen: features.Features,
    category_id: Array,
    noise: distributions.Noise,
) -> tuple[Array, Array]:
    """Abnormal probabilities of every draw: image heads [N, R], maps [N, R, H, W].

    Means over the bank and, for maps, over layers.
    """
    options, variables = network.options, {"params": params}
    draws = network.apply(variables, *seen, noise, method="draw")
    text = objective.text_features(
        network, towers.text, params, frozen, draws, category_id, options.text_chunk
    )  # [N, 2, R, B, D]
    num_images, _, num_draws, num_prompts, width = text.shape
    pairs = text.reshape(num_images, -1, width)
    feature = network.apply(variables, *seen, stage, method="image_feature")
    logits = network.apply(variables, pairs, feature, method="image_logits")
    normal, abnormal = jnp.split(logits, 2, axis=1)
    scores = jax.nn.sigmoid(abnormal - normal).reshape(num_images, num_draws, -1)

    grid = heads.grid_of(image_size, towers.image.config.patch_size)
    method = "pixel_margins" if options.shortcuts else "pixel_logits"
    patches = network.apply(variables, pairs, seen.patch_tokens, method=method)
    patches = heads.square(patches, grid)  # [N, S, (2) R B, h, w]
    patches = patches.reshape(*patches.shape[:2], -1, num_draws, num_prompts, *grid)
    patches = jnp.moveaxis(patches, 3, 1)  # [N, R, S, 1 or 2, B, h, w]

    def map_of(one: Array) -> Array:
        maps = heads.upsample(one, image_size)  # [S, 1 or 2, B, H, W]
        if options.shortcuts:
            probability = jax.nn.sigmoid(maps[:, 0])
        else:
            probability = jax.nn.softmax(maps, axis=1)[:, 1]
        return jnp.mean(probability, (0, 1))

    rows = patches.reshape(num_images * num_draws, *patches.shape[2:])
    maps = jax.lax.map(map_of, rows, batch_size=MAPS_AT_ONCE)
    return jnp.mean(scores, -1), maps.reshape(num_images, num_draws, *image_size)


def top_shares(maps: Array, top_k: Array) -> Array:
    """Means of each draw's map over the pixels where the mean map is highest.

    The mean over draws is the mean of the mean map's own top pixels.

    Args:
      maps: [N, R, H, W].
      top_k: [N] int32, how many pixels; more than there are means all.

    Returns:
      [N, R].
    """
    flat = maps.reshape(*maps.shape[:2], -1)  # [N, R, H W]
    size = flat.shape[-1]
    order = jnp.argsort(-jnp.mean(flat, 1), axis=-1)  # [N, H W]
    count = jnp.minimum(top_k, size)[:, None]
    weights = (jnp.arange(size) < count) / count  # [N, H W]
    sorted_maps = jnp.take_along_axis(flat, order[:, None], axis=-1)
    return jnp.einsum("nrp,np->nr", sorted_maps, weights)


def gaussian_matrix(size: int, sigma: float) -> np.ndarray:
    """Returns [size, size]: a Gaussian filter along one axis, borders mirrored.

    Args:
      size: Pixels.
      sigma: In pixels; 0 gives the identity.
    """
    matrix = np.eye(size)
    if sigma:
        matrix = ndimage.gaussian_filter1d(matrix, sigma, axis=0)
    return matrix.astype(np.float32)


def make_rescale(map_weight: float) -> Callable[[np.ndarray], np.ndarray]:
    """Returns score parts [M, 2] of one category -> final scores [M].

    Min-max over the M images, then the weighted sum: a score depends on the other test
    images, which is why it is an option.
    """

    def rescale(parts: np.ndarray) -> np.ndarray:
        parts = np.asarray(parts, np.float64)
        low, high = parts.min(axis=0), parts.max(axis=0)
        scaled = (parts - low) / (high - low + 1e-8)
        return scaled @ np.array([1 - map_weight, map_weight])

    return rescale

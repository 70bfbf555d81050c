"""From patches to maps and scores; the memory is an argument, see `complete`.

Per view the distances to what is remembered, over the level that normal patches have
among themselves; their mean over views on the finest grid. The highest share of the
map, as it is, makes the image's score; smoothed and enlarged it is the anomaly map.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxanom.methods.memory import bank, gaussian
from jaxanom.methods.memory.options import Options
from jaxanom.methods.memory.views import Views
from jaxanom.models.features import patches
from jaxanom.types import Array, Batch, Frozen, Params, Predictions, PRNGKey


def raw_maps(
    options: Options,
    params: Params,
    looks: Sequence[Array],
    category_id: Array,
    left_out: Array,
) -> list[Array]:
    """Distances of every view, not yet over their level: [B, h, w] each.

    Args:
      options: Its `kind` is read.
      params: What `complete` filled, one entry a view.
      looks: [B, h, w, D] a view.
      category_id: [B] int32.
      left_out: [B] int32, a shot whose entries do not count; `patches.NOBODY` for none.
        Gaussians do not know their shots and are fitted without it instead.
    """
    maps = []
    for number, features in enumerate(looks):
        view = params["views"][str(number)]
        if options.kind == "padim":
            kept = features[
                ..., gaussian.kept_dimensions(features.shape[-1], options.dimensions)
            ]
            maps.append(_mahalanobis(kept, view, category_id))
            continue
        maps.append(
            patches.distances(
                features,
                view["features"],
                view["owners"],
                category_id,
                left_out,
            )
        )
    return maps


def _mahalanobis(features: Array, view: Params, category_id: Array) -> Array:
    def one(inputs):
        image, category = inputs
        fitted = gaussian.Gaussians(view["mean"][category], view["whitening"][category])
        return gaussian.distances(image[None], fitted)[0]

    return jax.lax.map(one, (features, category_id))


def fused(params: Params, maps: Sequence[Array], category_id: Array) -> Array:
    """Mean of the views' maps over their levels, on the finest grid, [B, h, w]."""
    grid = max(values.shape[1:] for values in maps)
    total = 0.0
    for number, values in enumerate(maps):
        level = params["views"][str(number)]["level"][category_id]
        values = values / level[:, None, None]
        total += jax.image.resize(values, (len(values), *grid), "linear")
    return total / len(maps)


def top_mean(values: Array, share: float) -> Array:
    """Mean of the highest share of each map [B, h, w], at least of one value: [B]."""
    flat = values.reshape(values.shape[0], -1)
    count = max(1, round(share * flat.shape[1]))
    return jnp.mean(jax.lax.top_k(flat, count)[0], axis=1)


def enlarged(values: Array, smoothing: float, size: tuple[int, int]) -> Array:
    """Smooths maps [B, h, w] and enlarges them to [B, H, W].

    Args:
      values: Maps.
      smoothing: Standard deviation as a share of the shorter side, so that a fine grid
        is smoothed as far as a coarse one.
      size: (H, W).
    """
    spread = jnp.float32(smoothing * min(values.shape[1:]))
    rows, columns = (patches.smoothing(side, spread) for side in values.shape[1:])
    values = jnp.einsum("ij,bjk,lk->bil", rows, values, columns)
    return jax.image.resize(values, (len(values), *size), "linear")


def foreground(looks: Sequence[Array], cut: Array) -> Array:
    """Cells that do not look like the frame of their own image, [B, h, w] in {0, 1}.

    Args:
      looks: [B, h, w, D] a view; the first is looked at.
      cut: [B], distance to the nearest cell of the frame from which a cell belongs to
        the object; 0 takes all.
    """
    away = frame_distance(looks[0])
    inside = (away >= cut[:, None, None]).astype(jnp.float32)
    # One cell further, or an object's edge would be lost.
    return jax.lax.reduce_window(inside, 0.0, jax.lax.max, (1, 3, 3), (1, 1, 1), "SAME")


def frame_distance(features: Array) -> Array:
    """Distance of patches [B, h, w, D] to the nearest of their image's frame."""

    def one(image):
        frame = jnp.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        return (1 - jnp.max(image @ frame.T, axis=-1)) / 2

    return jax.lax.map(one, features)


def scores(
    options: Options,
    params: Params,
    looks: Sequence[Array],
    category_id: Array,
    left_out: Array,
) -> tuple[Array, Array]:
    """Fused maps [B, h, w] and image scores [B]; see `raw_maps` for the arguments."""
    maps = raw_maps(options, params, looks, category_id, left_out)
    values = fused(params, maps, category_id)
    if options.foreground:
        mask = foreground(looks, params["cut"][category_id])
        values = values * jax.image.resize(mask, values.shape, "nearest")
    if options.kind != "patchcore":
        return values, top_mean(values, options.share)
    view = params["views"]["0"]

    def one(inputs):
        image, category, shot = inputs
        entries = bank.Bank(view["features"][category], view["owners"][category])
        return bank.reweighted(image, entries, shot)

    return values, jax.lax.map(one, (looks[0], category_id, left_out))


def make_predict(
    options: Options, views: Views
) -> Callable[[Params, Frozen, Batch, PRNGKey], Predictions]:
    """Makes `Method.predict`."""

    def predict(params: Params, frozen: Frozen, batch: Batch, key: PRNGKey):
        del key
        image, category_id = batch["image"], batch["category_id"]
        looks = views.look(frozen["tower"], image)
        nobody = jnp.full_like(category_id, patches.NOBODY)
        values, image_score = scores(options, params, looks, category_id, nobody)
        anomaly_map = enlarged(values, options.smoothing, image.shape[1:3])
        return Predictions(anomaly_map, image_score)

    return predict

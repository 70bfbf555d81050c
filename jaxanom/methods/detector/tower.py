"""The detector on a frozen feature tower: layers once, then a head in seconds.

Trained on a few places of each image, as many of them defective as normal where an
image has a defect: the rest of a normal surface repeats itself. Two heads learn two
things. "outline", on the finest grid, learns the share of a cell that is defective, so
that outlines end where they should. "presence", on cells twice as large, learns whether
a cell is defective at all: a thin or small defect counts as much as a broad one, and
the image's score is of these.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxanom import trees
from jaxanom.contracts import EncodeFn, LossFn, Method, Phase, PredictFn
from jaxanom.data import catalog
from jaxanom.errors import UserError
from jaxanom.losses import denoising
from jaxanom.methods.detector import objective
from jaxanom.methods.detector.head import Head
from jaxanom.methods.detector.options import Options
from jaxanom.models.features import towers
from jaxanom.types import Array, Batch, Frozen, Params, Predictions, PRNGKey

PRESENT = 0.2
"""Least share of a cell at which a defect is present in it; less teaches nothing."""
TOP_SHARE = 0.004
"""Share of the cells whose mean log-odds of presence are the image's."""
KEPT = ("label", "category_id", "defect_id", "valid")
_MEASURED_ON = 40  # normal images that means and deviations are measured on
_BATCH_SIZE = 8


class Parts(NamedTuple):
    """What the detector is made of.

    Attributes:
      tower: Its weights travel in `frozen["tower"]`.
      taps: Its layers, the finest first.
      heads: "outline" and "presence", which read them.
      image_size: (H, W).
      num_places: Places of an image that a step learns from.
    """

    tower: towers.FeatureTower
    taps: tuple[str, ...]
    heads: dict[str, Head]
    image_size: tuple[int, int]
    num_places: int


def make(options: Options, dataset: catalog.Dataset, is_trained: bool) -> Method:
    """Builds the detector on `config.detector.encoder`.

    Args:
      options: `config.detector`.
      dataset: The training part.
      is_trained: Whether parameters will be read, so that nothing is measured here.

    Raises:
      UserError: Weights are missing, a layer is unknown, or an option does not fit.
    """
    dtype = jnp.dtype(options.dtype)
    tower = towers.load(options.encoder, dtype)
    taps = options.taps or tower.default_taps
    towers.check_taps(tower, taps, "detector.taps")
    shapes = jax.eval_shape(
        lambda params, image: tower.features(params, image, taps),
        tower.params,
        jax.ShapeDtypeStruct((1, *dataset.image_size, 3), jnp.float32),
    )
    grids = [layer.shape[1:3] for layer in shapes]
    if max(grids) != grids[0]:
        raise UserError(f"config.detector.taps={taps}; wanted the finest layer first")
    if options.cache_features and options.orientation_fixed:
        raise UserError(
            "config.detector.orientation_fixed is for images that are mirrored in each "
            "step; with config.detector.cache_features=True leave out of "
            "config.data.flips what no category may have"
        )
    channels = tuple(layer.shape[-1] for layer in shapes)
    can_halve = all(side % 2 == 0 for side in grids[0])
    heads = {
        "outline": Head(channels, options.head_width, 1, dtype),
        "presence": Head(channels, options.head_width, 2 if can_halve else 1, dtype),
    }
    parts = Parts(tower, taps, heads, tuple(dataset.image_size), options.num_places)

    def init(key: PRNGKey) -> tuple[Params, Frozen]:
        blank = [jnp.zeros(layer.shape) for layer in shapes]
        constants = {} if is_trained else measured(parts, dataset)
        params = {}
        for name, part in zip(heads, jax.random.split(key), strict=True):
            fresh = heads[name].init(part, blank)["params"]
            params[name] = {**fresh, **constants}
        return params, {"tower": tower.params}

    phase = Phase("segment", loss_of(parts, options), (r".*/(projections|logit).*",))
    return Method(
        init=init,
        phases=(phase,),
        predict=predict_of(parts),
        encode=encode_of(parts) if options.cache_features else None,
        learns_pixels=True,
    )


def look(parts: Parts, frozen: Frozen, image: Array) -> list[Array]:
    """Returns the layers of images [B, H, W, 3], each a mean over 3 x 3 cells."""
    layers = parts.tower.features(frozen["tower"], image, parts.taps)
    return [
        nn.avg_pool(layer, (3, 3), padding="SAME", count_include_pad=False)
        for layer in jax.lax.stop_gradient(layers)
    ]


def layers_of(parts: Parts, frozen: Frozen, batch: Batch) -> list[Array]:
    """Returns the layers that a batch carries, or those of its images."""
    if parts.taps[0] in batch:
        return [batch[tap] for tap in parts.taps]
    return look(parts, frozen, batch["image"])


def encode_of(parts: Parts) -> EncodeFn:
    """Returns encode: (frozen, batch with images) -> batch with layers instead."""

    def encode(frozen: Frozen, batch: Batch) -> Batch:
        layers = look(parts, frozen, batch["image"])
        # Half the memory, and finer than what a layer says.
        kept = {
            tap: layer.astype(jnp.float16)
            for tap, layer in zip(parts.taps, layers, strict=True)
        }
        covered = coverage(batch["mask"], layers[0].shape[1:3])
        return {**kept, "covered": covered, **{name: batch[name] for name in KEPT}}

    return encode


def coverage(mask: Array, grid: tuple[int, int]) -> Array:
    """Returns the share of each cell that a mask [B, H, W] covers, [B, h, w]."""
    batch, height, width = mask.shape
    steps = height // grid[0], width // grid[1]
    if (grid[0] * steps[0], grid[1] * steps[1]) != (height, width):
        raise UserError(
            f"images of {height}x{width} are no multiple of the tower's grid {grid}; "
            "set config.data.image_size to a multiple of 32"
        )
    cells = mask.astype(jnp.float32).reshape(
        batch, grid[0], steps[0], grid[1], steps[1]
    )
    return jnp.mean(cells, axis=(2, 4))


def draw_places(key: PRNGKey, covered: Array, count: int, least: float) -> Array:
    """Draws cells to learn from, [B, count] int32.

    The first half hold a defect where an image has one; no other is touched by any.

    Args:
      key: Decides the draws.
      covered: [B, N], see `coverage`.
      count: Places of an image.
      least: Cells of the first half are covered by more than this share.
    """
    half = count // 2
    keys = jax.random.split(key)
    is_defect, is_normal = covered > least, covered <= 0
    defective = _draw_members(keys[0], is_defect, half)
    normal = _draw_members(keys[1], is_normal, count - half)
    # Of an image without the one kind, all places are of the other.
    has_defect, has_normal = (
        jnp.any(kind, axis=1, keepdims=True) for kind in (is_defect, is_normal)
    )
    first = jnp.where(has_defect, defective, normal[:, :half])
    second = jnp.where(
        has_normal, normal, defective[:, jnp.arange(count - half) % half]
    )
    return jnp.concatenate([first, second], axis=1)


def _draw_members(key: PRNGKey, members: Array, count: int) -> Array:
    """Draws cells of a set [B, N] bool, with replacement, [B, count] int32.

    The n-th member is where the members counted so far reach n.
    """
    counted = jnp.cumsum(members, axis=1)  # [B, N]
    draws = jax.random.uniform(key, (members.shape[0], count))
    numbers = 1 + jnp.floor(draws * counted[:, -1:]).astype(counted.dtype)
    places = jax.vmap(jnp.searchsorted)(counted, numbers)
    return jnp.minimum(places, members.shape[1] - 1).astype(jnp.int32)


def loss_of(parts: Parts, options: Options) -> LossFn:
    """Returns the cross-entropy with the covered shares, over drawn places."""

    def loss_fn(params, frozen, batch, key):
        key_augment, key_places = jax.random.split(key)
        if parts.taps[0] in batch:
            layers, covered = layers_of(parts, frozen, batch), batch["covered"]
        else:
            image, mask = objective.augment(
                key_augment,
                batch["image"],
                batch["mask"],
                jnp.ones(len(batch["image"]), bool),
                options,
            )
            layers = look(parts, frozen, image)
            covered = coverage(mask, layers[0].shape[1:3])
        losses = {}
        for name, part in zip(parts.heads, jax.random.split(key_places), strict=True):
            least = PRESENT if name == "presence" else 0.0
            cells = _coarser(covered, parts.heads[name].coarse)
            places = draw_places(part, cells, parts.num_places, least)
            share = jnp.take_along_axis(cells, places, axis=1)
            truth = (share > 0).astype(jnp.float32) if name == "presence" else share
            logits = parts.heads[name].apply(
                {"params": params[name]}, layers, places, method="at"
            )
            entropy = optax.sigmoid_binary_cross_entropy(logits, truth)  # [B, K]
            rows = jnp.mean(entropy, axis=1)
            losses[name] = denoising.row_mean(rows, batch["valid"])
        return sum(losses.values()), losses

    return loss_fn


def _coarser(covered: Array, factor: int) -> Array:
    """Averages blocks of `factor` x `factor` cells, [B, h, w] -> [B, N]."""
    pooled = nn.avg_pool(covered[..., None], (factor, factor), (factor, factor))
    return pooled.reshape(covered.shape[0], -1)


def predict_of(parts: Parts) -> PredictFn:
    """Returns predict: defective share of each pixel, presence in the top cells."""

    def predict(params, frozen, batch, key):
        del key
        layers = layers_of(parts, frozen, batch)
        outline, presence = (
            parts.heads[name].apply({"params": params[name]}, layers)  # [B, h, w]
            for name in ("outline", "presence")
        )
        shape = (len(outline), *parts.image_size)
        anomaly_map = jax.nn.sigmoid(jax.image.resize(outline, shape, "linear"))
        rows = presence.reshape(len(presence), -1)
        top, _ = jax.lax.top_k(rows, max(1, round(TOP_SHARE * rows.shape[1])))
        return Predictions(anomaly_map, jax.nn.sigmoid(jnp.mean(top, axis=1)))

    return predict


def measured(parts: Parts, dataset: catalog.Dataset) -> dict[str, Array]:
    """Measures mean and deviation of each channel on normal training images.

    Raises:
      UserError: There is no normal image.
    """
    numbers = catalog.select(dataset, anomalous=False)
    if not numbers:
        raise UserError("there is no normal training image to measure features on")
    numbers = numbers[:: -(-len(numbers) // _MEASURED_ON)]
    frozen = {"tower": parts.tower.params}

    @jax.jit
    def sums(frozen, image, valid):
        weights = valid[:, None, None, None]
        return [
            (
                jnp.sum(weights * layer, (0, 1, 2)),
                jnp.sum(weights * layer**2, (0, 1, 2)),
            )
            for layer in look(parts, frozen, image)
        ]

    totals = None
    size = min(_BATCH_SIZE, len(numbers))
    for rows, count in trees.fixed_batches(len(numbers), size):
        pictures = [dataset.load(dataset.records[numbers[row]])[0] for row in rows]
        image = np.stack(pictures).astype(np.float32) / np.float32(255)
        valid = (np.arange(size) < count).astype(np.float32)
        part = jax.tree.map(np.float64, sums(frozen, image, valid))
        totals = part if totals is None else jax.tree.map(np.add, totals, part)
    shapes = jax.eval_shape(lambda x: look(parts, frozen, x), image[:1])
    constants = {}
    for number, ((first, second), layer) in enumerate(zip(totals, shapes, strict=True)):
        cells = len(numbers) * layer.shape[1] * layer.shape[2]
        mean = first / cells
        std = np.sqrt(np.maximum(second / cells - mean**2, 0)) + 1e-3
        constants[f"mean_{number}"] = jnp.asarray(mean, jnp.float32)
        constants[f"std_{number}"] = jnp.asarray(std, jnp.float32)
    return constants

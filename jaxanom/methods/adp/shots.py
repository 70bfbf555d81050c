"""Shots of every category: loaded, turned, remembered, cut for the inversion."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.data import catalog
from jaxanom.errors import UserError
from jaxanom.methods.adp import bank, crops, generative, inversion, model, windows
from jaxanom.methods.adp.predict import Detector
from jaxanom.methods.adp.texts import Texts
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Array, Params

Turned = tuple[np.ndarray, np.ndarray]
"""Shots with their turned copies [K, H, W, 3], and which shot each is of [K]."""
LOOK_BATCH = 4


def load(dataset: catalog.Dataset, category: str) -> np.ndarray:
    """Loads the normal training images of a category, [K, H, W, 3] in [0, 1].

    Raises:
      UserError: it has none, or images are not square.
    """

    def normal(name: str) -> list[int]:
        return catalog.select(dataset, "train", name, anomalous=False)

    numbers = normal(category)
    if not numbers:
        known = ", ".join(filter(normal, dataset.categories)) or "none"
        raise UserError(
            f"category {category!r} has no normal training image, which method 'adp' "
            f"needs; known: {known}"
        )
    height, width = dataset.image_size
    if height != width:
        raise UserError(
            f"images of {height}x{width}; views and maps of this method are square: "
            "set config.data.image_size to one number"
        )
    images = [dataset.load(dataset.records[number])[0] for number in numbers]
    return np.stack(images).astype(np.float32) / np.float32(255)


def turned(images: np.ndarray, turns: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the shots with their turned copies, and which shot each is of."""
    turned = np.concatenate([crops.rotated(image, turns) for image in images])
    return turned, np.repeat(np.arange(len(images)), len(turns))


def padded(arrays: Sequence[np.ndarray]) -> Array:
    """Stacks [K_t, ...] arrays of T categories to [T, K, ...], zeros behind."""
    most = max(map(len, arrays))
    return jnp.stack(
        [np.pad(a, ((0, most - len(a)), *[(0, 0)] * (a.ndim - 1))) for a in arrays]
    )


def memory(
    detector: Detector, weights: Params, turned: Sequence[Turned], neutral: Array
) -> dict[str, dict[str, Array]]:
    """Fills the memory of every category.

    Args:
      detector: whose channels say which kinds of features are needed.
      weights: of all towers.
      turned: one entry a category.
      neutral: [T, L, D], contexts that C5's features are taken under.

    Returns:
      {kind: {"features": [T, N, D], "owners": [T, N]}}.
    """
    towers = detector.towers

    @jax.jit
    @meshes.bound
    def kinds(weights, image, context):
        found = {}
        if detector.has_reference:
            seen = windows.features(
                towers, weights, image, detector.sizes, detector.tower.clip_layers
            )
            found = detector.tower.features(weights.get("features"), image, seen)
        if any(channel.name == "unet_features" for channel in detector.channels):
            latents = model.moments(towers, weights, image).mean
            context = jnp.broadcast_to(context, (image.shape[0], *context.shape))
            found[generative.UNET] = generative.unet_features(
                towers, weights, latents, context
            )
        return found

    slots = max(len(images) for images, _ in turned)
    banks = []
    for (images, owners), context in zip(turned, neutral, strict=True):
        features = model.batched(
            lambda rows, context=context: kinds(weights, rows, context), 4, images
        )
        banks.append(bank.build(features, owners, slots))
    return jax.tree.map(lambda *rows: jnp.stack(rows), *banks)


def token_data(
    encode: inversion.Encoders,
    weights: Params,
    plain: Sequence[Texts],
    pyramid: crops.Pyramid,
    turned: Sequence[Turned],
    start: Array,
    towers: model.Towers,
    room: int,
) -> dict[str, Any]:
    """Encodes what every category's token is learnt from, leaves [T, ...].

    Args:
      encode, weights, pyramid: see `inversion.prepare`.
      plain: sentences around every category's name.
      turned: one entry a category; padded to the most shots there are.
      start: [T, n, D].
      towers: modules.
      room: windows of stage 2.
    """
    slots = max(len(images) for images, _ in turned)
    rows = [
        inversion.prepare(
            encode,
            weights,
            (one.normal, one.anomalous),
            pyramid,
            images,
            owners,
            first,
            (towers.size, towers.clip_size),
            slots,
            room,
        )
        for one, (images, owners), first in zip(plain, turned, start, strict=True)
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)._asdict()

"""Evidence about images, every cell of every channel, and the detector itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom import trees
from jaxanom.contracts import PredictFn
from jaxanom.methods.adp import model
from jaxanom.methods.adp.channels import evidence as channels
from jaxanom.methods.adp.channels import fusion, generative
from jaxanom.methods.adp.channels.evidence import Channel, Evidence
from jaxanom.methods.adp.memory import bank, windows
from jaxanom.models.features import patches
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Array, Frozen, Params, Predictions

GENERATIVE = ("reconstruct", "noise_gap", "unet_features")
"""Channels that ask the diffusion model."""


class Detector(NamedTuple):
    """What scores images: modules and plain values; weights and memory are frozen.

    Attributes:
      towers: see `model.Towers`.
      tower: Where what C2 remembers comes from.
      channels: those that are on, C1 first where it is.
      sizes: C1's window sizes.
      temperatures: cells of C1.
      side: Side m of all maps.
    """

    towers: model.Towers
    tower: bank.FeatureTower
    channels: tuple[Channel, ...]
    sizes: tuple[int, ...]
    temperatures: tuple[float, ...]
    side: int

    @property
    def uses_latents(self) -> bool:
        """Whether a channel asks the diffusion model."""
        return any(channel.name in GENERATIVE for channel in self.channels)

    @property
    def cell_counts(self) -> tuple[int, ...]:
        """Cells of every channel."""
        return tuple(len(channel.cells) for channel in self.channels)

    @property
    def has_language(self) -> bool:
        """Whether C1 is on, and with it a_0."""
        return self.channels[0].name == "language"

    @property
    def has_reference(self) -> bool:
        """Whether C2 is on."""
        return any(channel.name == "reference" for channel in self.channels)

    @property
    def remembers_windows(self) -> bool:
        """Whether C2 reads CLIP's windows too."""
        return self.has_reference and self.tower.params is None


class Scoring(NamedTuple):
    """What is computed once a token is there; stacked over categories, [T, ...].

    Attributes:
      prototypes: [T, 2, K], g_n and g_a.
      contexts: [T, 4, L, D], see `channels.Evidence`.
      centre, spread: [T, N], see `fusion.Calibration`.
      image_centre, image_spread: [T, Y].
      settings: h, leaves [T, ...].
    """

    prototypes: Array
    contexts: Array
    centre: Array
    spread: Array
    image_centre: Array
    image_spread: Array
    settings: fusion.Settings


def as_tree(scoring: Scoring) -> dict[str, Any]:
    """Returns nested dicts, as parameters are stored."""
    return {**scoring._asdict(), "settings": scoring.settings._asdict()}


def from_tree(tree: Mapping[str, Any]) -> Scoring:
    """Inverse of `as_tree`."""
    return Scoring(**{**tree, "settings": fusion.Settings(**tree["settings"])})


def evidence(
    detector: Detector,
    scoring: Scoring,
    frozen: Frozen,
    image: Array,
    category_id: Array,
    left_out: Array,
    reads_windows: Array | None = None,
) -> Evidence:
    """Runs the frozen towers over images [B, H, W, 3], once for all channels.

    Args:
      detector, scoring, frozen: as they stand.
      image: [B, H, W, 3] in [0, 1].
      category_id, left_out: [B] int32, see `patches.distances`.
      reads_windows: scalar bool, false where no channel with weight reads windows;
        by default they are there.
    """
    towers, params = detector.towers, frozen["towers"]
    clip = windows.features(
        towers,
        params,
        image,
        detector.sizes,
        detector.tower.clip_layers,
        reads_windows,
    )
    distances = None
    if detector.has_reference:
        kinds = detector.tower.features(params.get("features"), image, clip)
        maps = []
        for name in detector.tower.groups.names:
            memory = frozen["memory"][name]
            distance = patches.distances(
                kinds[name],
                memory["features"],
                memory["owners"],
                category_id,
                left_out,
            )
            maps.append(channels.to_grid(distance, detector.side))
        distances = jnp.stack(maps, axis=1)  # [B, G, m, m]
    latents = None
    if detector.uses_latents:
        latents = model.moments(towers, params, image).mean
    return Evidence(
        clip=clip,
        prototypes=scoring.prototypes[category_id],
        distances=distances,
        latents=latents,
        contexts=scoring.contexts[category_id],
        category_id=category_id,
        left_out=left_out,
    )


def every_cell(detector: Detector) -> Callable[..., tuple[Array, Array]]:
    """Makes the function that calibration and tuning look through.

    Returns:
      (scoring, frozen, image [B, H, W, 3], category_id [B], left_out [B]) -> (raw maps
      [B, N, m, m] of every cell of every channel, a_0 [B, Y] at every temperature).
    """

    def call(scoring, frozen, image, category_id, left_out):
        seen = evidence(detector, scoring, frozen, image, category_id, left_out)
        rows = image.shape[0]
        maps = []
        for channel in detector.channels:

            def one(cell, channel=channel):
                return channel.apply(seen, frozen, jnp.full((rows,), cell))

            maps.append(jax.lax.map(one, jnp.arange(len(channel.cells))))
        whole = jnp.stack(
            [
                channels.image_evidence(seen, jnp.full((rows,), tau))
                for tau in detector.temperatures
            ]
        )
        return jnp.moveaxis(jnp.concatenate(maps), 0, 1), whole.T

    return call


def make_predict(detector: Detector) -> PredictFn:
    """Makes the detector.

    A score depends on its own image alone: rows share nothing, and noises are fixed.
    """

    def predict(params, frozen, batch, key):
        del key
        image, category_id = batch["image"], batch["category_id"]
        scoring = from_tree(params["scoring"])
        nobody = jnp.full_like(category_id, patches.NOBODY)
        settings = jax.tree.map(lambda leaf: leaf[category_id], scoring.settings)
        reads_windows = detector.remembers_windows | (
            detector.has_language & jnp.any(settings.weights[:, 0] > 0)
        )
        seen = evidence(
            detector, scoring, frozen, image, category_id, nobody, reads_windows
        )
        fused = fuse(detector, scoring, frozen, seen, settings)
        whole = whole_image(detector, scoring, seen, settings)
        smooth = fusion.smooth(fused, settings.sigma)
        return Predictions(
            anomaly_map=fusion.to_image(smooth, image.shape[1:3]).astype(jnp.float32),
            image_score=fusion.image_score(fused, whole, settings).astype(jnp.float32),
        )

    return predict


def fuse(
    detector: Detector,
    scoring: Scoring,
    frozen: Frozen,
    seen: Evidence,
    settings: fusion.Settings,
) -> Array:
    """Returns the weighted sum of the calibrated channels, [B, m, m].

    Only the chosen cell of a channel is computed, and only where it has weight.

    Args:
      detector, scoring, frozen: as in `evidence`.
      seen: Evidence about B images.
      settings: leaves [B, ...].
    """
    category_id = seen.category_id
    nothing = jnp.zeros((category_id.shape[0], detector.side, detector.side))
    total, first = nothing, 0
    for number, channel in enumerate(detector.channels):
        weight, cell = settings.weights[:, number], settings.cells[:, number]

        def compute(channel=channel, cell=cell, first=first):
            raw = channel.apply(seen, frozen, cell)
            centre = scoring.centre[category_id, first + cell]
            spread = scoring.spread[category_id, first + cell]
            return (raw - centre[:, None, None]) / spread[:, None, None]

        values = jax.lax.cond(jnp.any(weight > 0), compute, lambda: nothing)
        total += weight[:, None, None] * values
        first += len(channel.cells)
    return total


def whole_image(
    detector: Detector, scoring: Scoring, seen: Evidence, settings: fusion.Settings
) -> Array:
    """Returns the calibrated a_0, [B]; zeros without C1."""
    category_id = seen.category_id
    if not detector.has_language:
        return jnp.zeros(category_id.shape)
    cell = settings.cells[:, 0]
    raw = channels.image_evidence(seen, jnp.asarray(detector.temperatures)[cell])
    centre = scoring.image_centre[category_id, cell]
    return (raw - centre) / scoring.image_spread[category_id, cell]


def placeholder(
    detector: Detector,
    params: Params,
    settings: fusion.Settings,
    num_categories: int,
) -> Scoring:
    """Returns scoring of the right shapes, as it is before there is a token.

    Args:
      detector: whose channels count.
      params: weights of the towers.
      settings: the default, of every category.
      num_categories: T.
    """
    count, num_cells = num_categories, sum(detector.cell_counts)
    num_temperatures = len(detector.temperatures)
    width = params["clip"]["text_projection"]["kernel"].shape[1]
    length, depth = detector.towers.text_length, model.token_table(params).shape[1]
    return Scoring(
        prototypes=jnp.zeros((count, 2, width)),
        contexts=jnp.zeros((count, 4, length, depth)),
        centre=jnp.zeros((count, num_cells)),
        spread=jnp.ones((count, num_cells)),
        image_centre=jnp.zeros((count, num_temperatures)),
        image_spread=jnp.ones((count, num_temperatures)),
        settings=jax.tree.map(lambda leaf: jnp.stack([leaf] * count), settings),
    )


def fill_memory(
    detector: Detector,
    weights: Params,
    turned: Sequence[tuple[np.ndarray, np.ndarray]],
    neutral: Array,
) -> dict[str, dict[str, Array]]:
    """Fills the memory of every category.

    Args:
      detector: Its channels say which kinds of features are needed.
      weights: Weights of all towers.
      turned: What `crops.turned` returned of every category's shots.
      neutral: [T, L, D], contexts that C5's features are taken under.

    Returns:
      {kind: {"features": [T, N, D], "owners": [T, N]}}.
    """
    towers = detector.towers

    @jax.jit
    @meshes.bound
    def kinds(weights, image, context):
        features = {}
        if detector.has_reference:
            clip = windows.features(
                towers, weights, image, detector.sizes, detector.tower.clip_layers
            )
            features = detector.tower.features(weights.get("features"), image, clip)
        if any(channel.name == "unet_features" for channel in detector.channels):
            latents = model.moments(towers, weights, image).mean
            context = jnp.broadcast_to(context, (image.shape[0], *context.shape))
            features[generative.UNET] = generative.unet_features(
                towers, weights, latents, context
            )
        return features

    slots = max(len(images) for images, _ in turned)
    banks = []
    for (images, owners), context in zip(turned, neutral, strict=True):
        features = trees.batched(
            lambda rows, context=context: kinds(weights, rows, context), 4, images
        )
        banks.append(bank.build(features, owners, slots))
    return jax.tree.map(lambda *rows: jnp.stack(rows), *banks)

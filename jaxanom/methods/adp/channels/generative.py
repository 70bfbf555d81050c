"""Score channels C3 to C5, which ask the personalised diffusion model.

Reconstructed from the abstract; off by default. All draws are fixed: every image meets
the same noises and timesteps, so that a score depends on its image alone and two calls
agree.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.diffusion import targets, walks
from jaxanom.methods.adp import model
from jaxanom.methods.adp.channels import evidence as channels
from jaxanom.methods.adp.channels.evidence import Channel, Evidence
from jaxanom.methods.adp.memory import windows
from jaxanom.models.features import patches
from jaxanom.types import Array, Params

NORMAL, NEUTRAL, ANOMALOUS, EMPTY = range(4)
"""Rows of `Evidence.contexts`."""
STARTS = (300, 100, 200, 400, 500)
"""Noise levels of C3; with every scale a cell."""
SCALES = (1.0, 3.0, 7.5)
"""Guidance scales of C3."""
GAP_RANGES = ((50, 600), (50, 250), (250, 600))
FEATURE_TIMESTEP = 50
UNET = "unet"
"""Kind of feature under which the memory keeps those of C5."""
_SEED = 7


class Options(NamedTuple):
    """How C3 and C4 look.

    Attributes:
      num_noises: fixed noises that C3 averages over.
      walk_steps: DDIM moves from every level of C3.
      gap_steps: fixed timesteps of C4.
      layers: CLIP's layers whose patch tokens C3 compares; empty compares latents.
    """

    num_noises: int
    walk_steps: int
    gap_steps: int
    layers: tuple[int, ...]


def fixed_noise(count: int, shape: tuple[int, ...]) -> Array:
    """Returns the noises that every image meets, [count, h, w, C]."""
    return jax.random.normal(jax.random.key(_SEED), (count, *shape))


def reconstruct(towers: model.Towers, options: Options, side: int) -> Channel:
    """C3: noise the latents, denoise them as a flawless S*, compare.

    The latent sub-map is mean_c |E(x) - z'|. With `layers` the distance of CLIP's patch
    tokens between D(E(x)) and D(z') is added: the round trip, not x, is compared with,
    or what the autoencoder loses would look like a defect.
    """
    grid = [(start, scale) for start in STARTS for scale in SCALES]
    table = walks.tables(
        towers.alphas_cumprod, [start for start, _ in grid], options.walk_steps
    )
    scales = np.array([scale for _, scale in grid], np.float32)

    def apply(evidence, frozen, cell):
        params, latents = frozen["towers"], evidence.latents
        noise_fn = walks.guided(
            lambda z, t, context: towers.unet(params["unet"], z, t, context),
            evidence.contexts[:, NORMAL],
            evidence.contexts[:, EMPTY],
            jnp.asarray(scales)[cell],
        )
        moves = walks.rows(table, cell)

        def one(noise):
            noise = jnp.broadcast_to(noise, latents.shape)
            return walks.denoise(noise_fn, latents, noise, moves)

        noises = fixed_noise(options.num_noises, latents.shape[1:])
        clean = jax.lax.map(one, noises)  # [E, B, h, w, C]
        values = jnp.mean(jnp.abs(latents - clean), axis=(0, -1))
        values = channels.to_grid(values, side)
        if options.layers:
            values += _token_change(
                towers, params, options.layers, latents, clean, side
            )
        return values

    names = tuple(f"t {start}, guidance {scale}" for start, scale in grid)
    return Channel("reconstruct", names, apply)


def _token_change(towers, params, layers, latents, clean, side):
    """1 - cos of CLIP's patch tokens between decoded images, averaged over `clean`."""

    def tokens(z):
        image = model.decode(towers, params, z)
        features = windows.features(towers, params, image, (), layers)
        return [patches.unit(array) for array in features.layers.values()]

    before = tokens(latents)

    def one(z):
        pairs = zip(before, tokens(z), strict=True)
        return sum(1 - jnp.sum(a * b, -1) for a, b in pairs) / len(before)

    return channels.to_grid(jnp.mean(jax.lax.map(one, clean), axis=0), side)


def noise_gap(towers: model.Towers, options: Options, side: int) -> Channel:
    """C4: by how much "damaged" explains the noise better than "flawless".

    E_{t, eps}[ mean_c (eps - eps_n)^2 - mean_c (eps - eps_a)^2 ], both contexts at the
    same (t, eps). Cells are ranges of t.
    """
    timesteps = np.linspace(*GAP_RANGES[0], options.gap_steps).round().astype(np.int32)
    inside = np.array([(timesteps >= a) & (timesteps <= b) for a, b in GAP_RANGES])
    inside = inside.astype(np.float32)
    weights = inside / np.maximum(inside.sum(1, keepdims=True), 1)

    def apply(evidence, frozen, cell):
        params, latents = frozen["towers"], evidence.latents
        rows = latents.shape[0]
        noises = fixed_noise(options.gap_steps, latents.shape[1:])

        def one(inputs):
            timestep, noise = inputs
            timesteps = jnp.full((rows,), timestep)
            noise = jnp.broadcast_to(noise, latents.shape)
            noised = targets.add_noise(latents, noise, timesteps, towers.alphas_cumprod)

            def error(which):
                context = evidence.contexts[:, which]
                noise_pred = towers.unet(params["unet"], noised, timesteps, context)
                return jnp.mean((noise - noise_pred.astype(jnp.float32)) ** 2, axis=-1)

            return error(NORMAL) - error(ANOMALOUS)

        gaps = jax.lax.map(one, (jnp.asarray(timesteps), noises))  # [S, B, h, w]
        values = jnp.einsum("bs,sbij->bij", jnp.asarray(weights)[cell], gaps)
        return channels.to_grid(values, side)

    return Channel("noise_gap", tuple(f"t {a} to {b}" for a, b in GAP_RANGES), apply)


def unet_features(
    towers: model.Towers, params: Params, latents: Array, context: Array
) -> Array:
    """Returns unit features of the UNet's middle decoder block at t = 50.

    Args:
      towers, params: see `model.load`.
      latents: [B, h, w, C].
      context: [B, L, D].

    Returns:
      [B, h', w', D].
    """
    module = towers.unet_module
    name = f"up_blocks_{module.config.num_blocks // 2}"
    timesteps = jnp.full((latents.shape[0],), FEATURE_TIMESTEP)
    noise = jnp.broadcast_to(fixed_noise(1, latents.shape[1:])[0], latents.shape)
    noised = targets.add_noise(latents, noise, timesteps, towers.alphas_cumprod)
    _, kept = module.apply(
        {"params": params["unet"]},
        noised,
        timesteps,
        context,
        capture_intermediates=lambda module, method: module.name == name,
        mutable=["intermediates"],
    )
    return patches.unit(kept["intermediates"][name]["__call__"][0])


def unet_memory(towers: model.Towers, side: int) -> Channel:
    """C5: distance of the UNet's features to those of the shots.

    The features are taken under the class word's neutral caption, so that the memory
    can be filled before there is a token; `frozen["class_contexts"]` [T, L, D] has it.
    """

    def apply(evidence: Evidence, frozen, cell):
        del cell
        context = frozen["class_contexts"][evidence.category_id]
        features = unet_features(towers, frozen["towers"], evidence.latents, context)
        memory = frozen["memory"][UNET]
        distance = patches.distances(
            features,
            memory["features"],
            memory["owners"],
            evidence.category_id,
            evidence.left_out,
        )
        return channels.to_grid(distance, side)

    return Channel("unet_features", (f"t {FEATURE_TIMESTEP}",), apply)

"""Latents to noise and back, with the background walked apart from the defect.

Background-aware defect generation, arXiv 2411.16767, Eqs. 8-9: a normal image is
inverted with the defect region cut out, the region is filled with fresh noise, and
sampling composes two noise predictions. The background's prediction never sees the
defect, so the background of the result is a function of the inverted background alone:
bitwise, for any weights, prompts and seeds.

Masks are [B, h, w, 1] at the latents' resolution, 1 = defect, and binary: everything
here selects by `mask > 0.5`. Selecting, rather than multiplying by {0, 1}, also keeps a
NaN or an overflow on one side of the mask from reaching the other.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxanom.diffusion import ddim, multistep, schedules
from jaxanom.diffusion.schedules import Table
from jaxanom.errors import UserError, check_choice
from jaxanom.types import Array, NoiseFn, PRNGKey

NoisePairFn = Callable[[Array, Array | None, Array], tuple[Array, Array | None]]
"""(latents, background_latents, timesteps [B]) -> (defect_noise, background_noise).

All arrays but the timesteps are [B, h, w, C]; one network call on 2B rows. When the
background is replayed, `background_latents` is None and the second result is ignored.
"""

SOLVERS = ("ddim", "dpmpp_2m")


def hide_defect(latents: Array, mask: Array) -> Array:
    """Returns (1 - mask) * latents, z^m: [B, h, w, C] with the hole at zero."""
    return jnp.where(mask > 0.5, 0.0, latents)


def masked_invert(
    noise_fn: NoiseFn,
    latents: Array,
    mask: Array,
    table: Table,
    fixed_point_iterations: int = 0,
    keep_trajectory: bool = False,
) -> tuple[Array, Array | None]:
    """Inverts the background of normal latents; the hole stays zero at every level.

    arXiv 2411.16767, Eq. 8. With `fixed_point_iterations` = k, every move is repeated k
    times with the noise taken where the move arrived, e(z_to, tau_to), which brings it
    closer to the exact inverse of the sampling move; one network trace either way.

    Args:
      noise_fn: The background branch, (latents, timesteps [B]) -> [B, h, w, C].
      latents: [B, h, w, C], the clean latents of normal images.
      mask: [B, h, w, 1], binary, 1 = defect.
      table: One of `schedules.inversion_table`; S rows.
      fixed_point_iterations: k >= 0, k + 1 network calls per move.
      keep_trajectory: Keeps what `compose_sample` replays.

    Returns:
      ([B, h, w, C] float32 at tau_S, trajectory). The trajectory is [S + 1, B, h, w, C]
      float32, row i at tau_i, or None.
    """
    _check_shapes(latents, mask)
    schedules.check_direction(table, "inversion", "masked_invert")
    if fixed_point_iterations < 0:
        raise UserError(
            f"fixed_point_iterations={fixed_point_iterations} must be at least 0"
        )

    def move(scaled: Array, row: Table, seen: Array, timestep: Array) -> Array:
        noise_pred = hide_defect(ddim.predict(noise_fn, seen, timestep), mask)
        return ddim.scaled_move(scaled, noise_pred, row.sigma_from, row.sigma_to)

    def step(scaled: Array, row: Table) -> tuple[Array, Array | None]:
        def again(k: Array, reached: Array) -> Array:
            level = jnp.where(k == 0, row.alpha_from, row.alpha_to)
            timestep = jnp.where(k == 0, row.timesteps, row.timesteps_to)
            return move(scaled, row, ddim.unscale(reached, level), timestep)

        if fixed_point_iterations:
            # Round 0 starts from the level left, so the loop body is the only trace.
            reached = jax.lax.fori_loop(0, fixed_point_iterations + 1, again, scaled)
        else:
            seen = ddim.unscale(scaled, row.alpha_from)
            reached = move(scaled, row, seen, row.timesteps)
        return reached, ddim.unscale(reached, row.alpha_to) if keep_trajectory else None

    start = hide_defect(latents.astype(jnp.float32), mask)
    scaled, later = jax.lax.scan(step, ddim.scale(start, table.alpha_from[0]), table)
    trajectory = jnp.concatenate([start[None], later]) if keep_trajectory else None
    return ddim.unscale(scaled, table.alpha_to[-1]), trajectory


def start_latents(inverted: Array, mask: Array, noise: Array) -> Array:
    """Fills the hole with fresh noise: z_T* = z~_T^m + m * eps.

    That is what Theorem 3.2 of arXiv 2411.16767 is used for. The background is
    `inverted`, bit for bit.

    Args:
      inverted: [B, h, w, C], from `masked_invert`.
      mask: [B, h, w, 1], binary.
      noise: [B, h, w, C], unit noise.
    """
    _check_shapes(inverted, mask)
    return jnp.where(mask > 0.5, noise, inverted.astype(jnp.float32))


def compose_sample(
    noise_pair_fn: NoisePairFn,
    start: Array,
    mask: Array,
    table: Table,
    trajectory: Array | None = None,
    eta: float = 0.0,
    key: PRNGKey | None = None,
    solver: str = "ddim",
) -> Array:
    """Samples a defect into an inverted background.

    arXiv 2411.16767, Eq. 9: the background moves by a prediction made from (1 - mask) *
    latents, the defect by one made from all latents. To recompute the background so is
    the paper's reading and carries the inversion's round-trip error. To replay it, from
    a trajectory, overwrites it by the inverted latents at every level, which has no
    error and leaves out the background's network calls.

    Args:
      noise_pair_fn: Both branches, see `NoisePairFn`.
      start: [B, h, w, C], from `start_latents`.
      mask: [B, h, w, 1], binary.
      table: One of `schedules.sampling_table`, on the levels of the inversion.
      trajectory: [S + 1, B, h, w, C], from `masked_invert` on the same levels, is
        replayed; None recomputes the background.
      eta: A Python float; 0 is DDIM. Noise is added inside the mask only.
      key: Draws that noise; needed for eta > 0.
      solver: What moves the defect, "ddim" or "dpmpp_2m" (`multistep`; eta = 0 only).
        The background moves by DDIM, which its inversion undoes, with either.

    Returns:
      [B, h, w, C] float32 at tau_0.
    """
    _check_shapes(start, mask)
    schedules.check_direction(table, "sampling", "compose_sample")
    num_steps = table.timesteps.shape[0]
    replay = trajectory is not None
    check_choice("solver", solver, SOLVERS)
    if eta < 0 or (eta > 0) != (key is not None) or (eta and solver != "ddim"):
        raise UserError(
            f"eta={eta} with solver={solver!r} and {'no' if key is None else 'a'} key: "
            "eta > 0 needs a key and solver='ddim', eta = 0 takes no key"
        )
    if replay and trajectory.shape != (num_steps + 1, *start.shape):
        raise UserError(
            f"trajectory has shape {trajectory.shape}, wanted "
            f"{(num_steps + 1, *start.shape)}: invert and sample on the same levels"
        )
    # Sampling move j leaves tau_{S-j}; row 0 of the trajectory is where it all ends.
    stored = trajectory[:0:-1].astype(jnp.float32) if replay else None
    keys = jax.random.split(key, num_steps) if eta else None
    second_order = solver == "dpmpp_2m"
    weights = multistep.change_weights(table) if second_order else None

    def step(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
        scaled, clean_before = carry
        row, replayed, key_row, weight = inputs
        latents = ddim.unscale(scaled, row.alpha_from)
        if replay:
            latents = jnp.where(mask > 0.5, latents, replayed)
        timesteps = jnp.broadcast_to(row.timesteps, latents.shape[:1])
        seen = None if replay else hide_defect(latents, mask)
        noise_defect, noise_background = noise_pair_fn(latents, seen, timesteps)
        carried, fresh = ddim.split_noise(row.sigma_from, row.sigma_to, eta)
        inside = ddim.scaled_move(scaled, noise_defect, row.sigma_from, carried)
        if eta:
            inside += fresh * jax.random.normal(key_row, scaled.shape, jnp.float32)
        clean = None
        if second_order:
            clean = multistep.clean(scaled, noise_defect, row.sigma_from)
            inside += weight * (clean - clean_before)
        outside = scaled
        if not replay:
            outside = ddim.scaled_move(
                scaled, noise_background, row.sigma_from, row.sigma_to
            )
        return (jnp.where(mask > 0.5, inside, outside), clean), None

    scaled = ddim.scale(start, table.alpha_from[0])
    carry = scaled, jnp.zeros_like(scaled) if second_order else None
    (scaled, _), _ = jax.lax.scan(step, carry, (table, stored, keys, weights))
    latents = ddim.unscale(scaled, table.alpha_to[-1])
    return jnp.where(mask > 0.5, latents, trajectory[0]) if replay else latents


def _check_shapes(latents: Array, mask: Array) -> None:
    chex.assert_rank([latents, mask], 4)
    if mask.shape != (*latents.shape[:3], 1):
        raise UserError(
            f"mask has shape {mask.shape}; latents of shape {latents.shape} want "
            f"{(*latents.shape[:3], 1)}: resize the mask to the latents' grid"
        )

"""Particles spread over a mesh axis: four interchangeable ways to meet one another.

With n particles on each of S devices, P = S n and D values each:

| backend      | moves per device and step | memory        | choose it for           |
|--------------|---------------------------|---------------|-------------------------|
| `replicated` | 2 P D, once               | P D + P^2     | small P: least latency  |
| `rows`       | 2 P D                     | P D + P^2 / S | work split over devices |
| `ring`       | 3 P D in blocks           | n D + P^2 / S | P D too large to gather |
| `feature`    | 4 n D + P^2               | n D + P^2     | D >> P, the prompt case |

(Bandwidth rules see all P^2 distances in each of them.) They differ in rounding only.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as Spec

from jaxanom.errors import UserError
from jaxanom.posterior import fields
from jaxanom.posterior import pairs as pairing
from jaxanom.posterior.pairs import Pairs
from jaxanom.types import Array

BACKENDS = ("replicated", "rows", "ring", "feature")


def velocity(mesh: Mesh, axis: str, backend: str) -> Callable:
    """Returns `fields.velocity` for particles whose rows are split over a mesh axis.

    Args:
      mesh: of all devices.
      axis: the mesh axis that holds particles.
      backend: one of `BACKENDS`.

    Raises:
      UserError: unknown backend or axis; from the result: particles that do not split
        evenly, or an embedding, which needs them all.
    """
    if backend not in BACKENDS or axis not in mesh.shape:
        raise UserError(
            f"backend={backend!r} over axis {axis!r}; choose one of {BACKENDS} and an "
            f"axis of {tuple(mesh.shape)}"
        )
    size = mesh.shape[axis]
    body = {"replicated": _replicated, "rows": _rows, "ring": _ring}.get(backend)
    body = partial(body or _feature, axis=axis, size=size)

    def apply(field, state, particles, grad_log_p, embed=None, noise=None):
        if embed is not None:
            raise UserError(
                f"backend={backend!r} knows kernel_space 'ctx' only; set "
                "config.app.backend='auto'"
            )
        if particles.shape[0] % size:
            raise UserError(
                f"{particles.shape[0]} particles do not split over mesh axis {axis}="
                f"{size}; set config.app.num_particles to a multiple"
            )
        split = (particles, grad_log_p) + (() if noise is None else (noise,))
        found = jax.shard_map(
            lambda state, *split: body(field, state, *split),
            mesh=mesh,
            in_specs=(Spec(), *(Spec(axis),) * len(split)),
            out_specs=(Spec(axis), Spec(), Spec(), Spec(axis)),
            check_vma=False,
        )(state, *split)
        moved, state, info, mixed = found
        return moved, state, info if noise is None else {**info, "noise": mixed}

    return apply


def _split_info(moved, state, info):
    """Takes the noise, which is split, from the numbers that are not."""
    mixed = info.get("noise", jnp.zeros_like(moved))
    return moved, state, {"bandwidth": info["bandwidth"]}, mixed


def _own_rows(num_rows: int, axis: str) -> Array:
    return jax.lax.axis_index(axis) * num_rows + jnp.arange(num_rows)


def _gather(axis: str) -> Callable[[Array], Array]:
    return partial(jax.lax.all_gather, axis_name=axis, tiled=True)


def _replicated(field, state, particles, grad_log_p, noise=None, *, axis, size):
    """Every device computes every pair and keeps its own rows."""
    rows = _own_rows(particles.shape[0], axis)
    whole = _gather(axis)
    moved, state, info = fields.velocity(
        field,
        state,
        whole(particles),
        whole(grad_log_p),
        noise=None if noise is None else whole(noise),
    )
    if noise is not None:
        info = {**info, "noise": info["noise"][rows]}
    return _split_info(moved[rows], state, info)


def _rows(field, state, particles, grad_log_p, noise=None, *, axis, size):
    """Every device computes its rows against all gathered particles."""
    whole = _gather(axis)
    pairs = Pairs(
        num_particles=size * particles.shape[0],
        rows=_own_rows(particles.shape[0], axis),
        inner=lambda x, y: pairing.matmul(x, whole(y).T),
        product=lambda matrix, y: pairing.matmul(matrix, whole(y)),
        gather=whole,
        mean=lambda x: jax.lax.pmean(jnp.mean(x, 0, keepdims=True), axis),
        columns=lambda x: x.shape[1],
    )
    found = fields.velocity(field, state, particles, grad_log_p, pairs, noise=noise)
    return _split_info(*found)


def _ring(field, state, particles, grad_log_p, noise=None, *, axis, size):
    """Blocks of particles travel around; nobody ever holds them all."""
    num_rows = particles.shape[0]
    here = jax.lax.axis_index(axis)
    onward = [(device, (device + 1) % size) for device in range(size)]

    def around(block: Array, start: Array, visit: Callable) -> Array:
        """Folds `visit(found, block, its first row)` over all blocks."""

        def turn(carry, number):
            found, block = carry
            owner = (here - number) % size
            found = visit(found, block, owner * num_rows)
            return (found, jax.lax.ppermute(block, axis, onward)), None

        (found, _), _ = jax.lax.scan(turn, (start, block), jnp.arange(size))
        return found

    def inner(x: Array, y: Array) -> Array:
        def visit(found, block, first):
            part = pairing.matmul(x, block.T)
            return jax.lax.dynamic_update_slice(found, part, (0, first))

        return around(y, jnp.zeros((num_rows, size * num_rows), x.dtype), visit)

    def product(matrix: Array, y: Array) -> Array:
        def visit(found, block, first):
            part = jax.lax.dynamic_slice_in_dim(matrix, first, num_rows, axis=1)
            return found + pairing.matmul(part, block)

        return around(y, jnp.zeros_like(y), visit)

    pairs = Pairs(
        num_particles=size * num_rows,
        rows=_own_rows(num_rows, axis),
        inner=inner,
        product=product,
        gather=_gather(axis),
        mean=lambda x: jax.lax.pmean(jnp.mean(x, 0, keepdims=True), axis),
        columns=lambda x: x.shape[1],
    )
    found = fields.velocity(field, state, particles, grad_log_p, pairs, noise=noise)
    return _split_info(*found)


def _feature(field, state, particles, grad_log_p, noise=None, *, axis, size):
    """Every device holds a slice of every particle; partial gram matrices are added."""
    width = particles.shape[1]
    padding = -width % size

    def to_columns(x: Array) -> Array:
        # Columns of zeros change no distance and are cut off again.
        padded = jnp.pad(x, ((0, 0), (0, padding)))
        return jax.lax.all_to_all(padded, axis, 1, 0, tiled=True)

    def to_rows(x: Array) -> Array:
        return jax.lax.all_to_all(x, axis, 0, 1, tiled=True)[:, :width]

    num_particles = size * particles.shape[0]
    pairs = pairing.local(num_particles)._replace(
        inner=lambda x, y: jax.lax.psum(pairing.matmul(x, y.T), axis),
        columns=lambda x: width,
    )
    if field.metric is not None:
        part = (width + padding) // size
        whole = jnp.pad(state.metric, (0, padding))
        first = jax.lax.axis_index(axis) * part
        state = state._replace(metric=jax.lax.dynamic_slice(whole, (first,), (part,)))
    moved, state, info = fields.velocity(
        field,
        state,
        to_columns(particles),
        to_columns(grad_log_p),
        pairs,
        noise=None if noise is None else to_columns(noise),
    )
    if field.metric is not None:
        state = state._replace(metric=_gather(axis)(state.metric)[:width])
    if noise is not None:
        info = {**info, "noise": to_rows(info["noise"])}
    return _split_info(to_rows(moved), state, info)

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
      mesh: All devices.
      axis: The mesh axis that holds particles.
      backend: One of `BACKENDS`.

    Raises:
      UserError: An unknown backend or axis; from the result: particles that do not
        split evenly, or an embedding, which needs them all.
    """
    if backend not in BACKENDS or axis not in mesh.shape:
        raise UserError(
            f"backend={backend!r} over axis {axis!r}; choose one of {BACKENDS} and an "
            f"axis of {tuple(mesh.shape)}"
        )
    size = mesh.shape[axis]
    bodies = dict(zip(BACKENDS, (_replicated, _rows, _ring, _feature), strict=True))
    body = partial(bodies[backend], axis=axis, size=size)

    def apply(field, state, particles, grad_log_p, embed=None, noise=None):
        if embed is not None:
            raise UserError(f"backend={backend!r} compares particles as they are only")
        if particles.shape[0] % size:
            raise UserError(
                f"{particles.shape[0]} particles do not split over mesh axis {axis}="
                f"{size}; num_particles wants a multiple"
            )
        info = {"bandwidth": Spec()}
        if noise is not None:
            info["noise"] = Spec(axis)
        return jax.shard_map(
            partial(body, field),
            mesh=mesh,
            in_specs=(Spec(), Spec(axis), Spec(axis), Spec(axis)),
            out_specs=(Spec(axis), Spec(), info),
            check_vma=False,
        )(state, particles, grad_log_p, noise)

    return apply


def _gather(axis: str) -> Callable[[Array], Array]:
    return partial(jax.lax.all_gather, axis_name=axis, tiled=True)


def _split_rows(num_rows: int, axis: str, size: int, inner, product) -> Pairs:
    """How rows here meet all of them, given the two products."""
    return Pairs(
        num_particles=size * num_rows,
        rows=jax.lax.axis_index(axis) * num_rows + jnp.arange(num_rows),
        inner=inner,
        product=product,
        gather=_gather(axis),
        mean=lambda x: jax.lax.pmean(jnp.mean(x, 0, keepdims=True), axis),
        columns=lambda x: x.shape[1],
    )


def _replicated(field, state, particles, grad_log_p, noise, *, axis, size):
    """Every device computes every pair and keeps its own rows."""
    num_rows = particles.shape[0]
    rows = jax.lax.axis_index(axis) * num_rows + jnp.arange(num_rows)
    particles, grad_log_p, noise = jax.tree.map(
        _gather(axis), (particles, grad_log_p, noise)
    )
    moved, state, info = fields.velocity(
        field, state, particles, grad_log_p, noise=noise
    )
    if noise is not None:
        info = {**info, "noise": info["noise"][rows]}
    return moved[rows], state, info


def _rows(field, state, particles, grad_log_p, noise, *, axis, size):
    """Every device computes its rows against all gathered particles."""
    whole = _gather(axis)
    pairs = _split_rows(
        particles.shape[0],
        axis,
        size,
        inner=lambda x, y: pairing.matmul(x, whole(y).T),
        product=lambda matrix, y: pairing.matmul(matrix, whole(y)),
    )
    return fields.velocity(field, state, particles, grad_log_p, pairs, noise=noise)


def _ring(field, state, particles, grad_log_p, noise, *, axis, size):
    """Blocks of particles travel around; nobody ever holds them all."""
    num_rows = particles.shape[0]
    here = jax.lax.axis_index(axis)
    onward = [(device, (device + 1) % size) for device in range(size)]

    def around(block: Array, start: Array, visit: Callable) -> Array:
        """Folds `visit(total, block, its first row)` over all blocks."""

        def turn(carry, number):
            total, block = carry
            owner = (here - number) % size
            total = visit(total, block, owner * num_rows)
            return (total, jax.lax.ppermute(block, axis, onward)), None

        (total, _), _ = jax.lax.scan(turn, (start, block), jnp.arange(size))
        return total

    def inner(x: Array, y: Array) -> Array:
        def visit(total, block, first):
            part = pairing.matmul(x, block.T)
            return jax.lax.dynamic_update_slice(total, part, (0, first))

        return around(y, jnp.zeros((num_rows, size * num_rows), x.dtype), visit)

    def product(matrix: Array, y: Array) -> Array:
        def visit(total, block, first):
            part = jax.lax.dynamic_slice_in_dim(matrix, first, num_rows, axis=1)
            return total + pairing.matmul(part, block)

        return around(y, jnp.zeros_like(y), visit)

    pairs = _split_rows(num_rows, axis, size, inner, product)
    return fields.velocity(field, state, particles, grad_log_p, pairs, noise=noise)


def _feature(field, state, particles, grad_log_p, noise, *, axis, size):
    """Every device holds a slice of every particle; partial gram matrices are added."""
    width = particles.shape[1]
    padding = -width % size

    def to_columns(x: Array) -> Array:
        # Columns of zeros change no distance and are cut off again.
        padded = jnp.pad(x, ((0, 0), (0, padding)))
        return jax.lax.all_to_all(padded, axis, 1, 0, tiled=True)

    def to_rows(x: Array) -> Array:
        return jax.lax.all_to_all(x, axis, 0, 1, tiled=True)[:, :width]

    pairs = pairing.local(size * particles.shape[0])._replace(
        inner=lambda x, y: jax.lax.psum(pairing.matmul(x, y.T), axis),
        columns=lambda x: width,
    )
    if field.metric is not None:
        part = (width + padding) // size
        whole = jnp.pad(state.metric, (0, padding))
        first = jax.lax.axis_index(axis) * part
        state = state._replace(metric=jax.lax.dynamic_slice(whole, (first,), (part,)))
    particles, grad_log_p, noise = jax.tree.map(
        to_columns, (particles, grad_log_p, noise)
    )
    moved, state, info = fields.velocity(
        field, state, particles, grad_log_p, pairs, noise=noise
    )
    if field.metric is not None:
        state = state._replace(metric=_gather(axis)(state.metric)[:width])
    if noise is not None:
        info = {**info, "noise": to_rows(info["noise"])}
    return to_rows(moved), state, info

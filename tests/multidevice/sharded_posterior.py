"""Particles on 1, 2, 4, 8 simulated devices walk the path of one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from jaxanom.contracts import Method, Phase
from jaxanom.parallel import mesh as meshes
from jaxanom.parallel import placement
from jaxanom.posterior import (
    bandwidths,
    fields,
    kernels,
    sharded,
    svgd,
    transport,
    wgf,
)
from jaxanom.training import loop

NUM_PARTICLES, WIDTH, NUM_STEPS = 16, 21, 4  # 21 columns: no number of devices divides
FIELDS = {
    "svgd": fields.Field(svgd.flow()),
    "scaled": fields.Field(svgd.flow(), metric=fields.Metric()),
    "imq": fields.Field(svgd.flow(), between=kernels.radial(kernels.imq())),
    "linear": fields.Field(svgd.flow(), between=kernels.linear),
    "gfsd": fields.Field(wgf.gfsd(), bandwidth=bandwidths.heat_equation()),
    "blob": fields.Field(wgf.blob(), bandwidth=bandwidths.median(mode="lagged")),
    "gfsf": fields.Field(wgf.gfsf()),
    "still": fields.Field(wgf.gfsd(), temperature=0.0),
}
START = np.random.default_rng(0).normal(size=(NUM_PARTICLES, WIDTH)).astype(np.float32)
NOISE = np.random.default_rng(1).normal(size=(NUM_STEPS, *START.shape))
NOISE = NOISE.astype(np.float32)
PRECISION = np.linspace(0.5, 2.0, WIDTH).astype(np.float32)


def walk(velocity, field, noisy=False):
    """Four steps up a Gaussian's density, with its own noise if asked for."""

    def step(carry, noise):
        x, state = carry
        grads = -(x - 1.0) * PRECISION
        extra = {"noise": noise} if noisy else {}
        moved, state, info = velocity(field, state, x, grads, **extra)
        x = x + 0.1 * moved + (0.1 * info["noise"] if noisy else 0.0)
        return (x, state), info["bandwidth"]

    start = (jnp.asarray(START), fields.init(field, jnp.asarray(START)))
    (x, _), bandwidth = jax.lax.scan(step, start, jnp.asarray(NOISE))
    return x, bandwidth


def walks(velocity):
    """All flows in one program."""
    found = {name: walk(velocity, field) for name, field in FIELDS.items()}
    found["noisy"] = walk(velocity, FIELDS["svgd"], noisy=True)
    return found


@functools.cache
def alone():
    return jax.tree.map(np.asarray, jax.jit(lambda: walks(fields.velocity))())


def mesh_of(size):
    sizes = {"data": 1, "particle": size}
    return meshes.make_mesh(**sizes, devices=jax.devices()[:size])


def largest_gap(found, wanted):
    gaps = jax.tree.map(
        lambda a, b: np.abs(a - b).max() / np.abs(b).max(), found, wanted
    )
    return max(jax.tree.leaves(gaps))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("backend", sharded.BACKENDS)
def test_every_backend_walks_the_path_of_one_device(backend, size):
    velocity = sharded.velocity(mesh_of(size), meshes.PARTICLE_AXIS, backend)
    found = jax.tree.map(np.asarray, jax.jit(lambda: walks(velocity))())
    # Sums in another order: 1e-7 a step, raised by matrix inverses and line searches.
    assert largest_gap(found, alone()) < 1e-5


def test_particles_that_do_not_meet_are_noticed():
    """Negative control: two devices that keep to themselves walk elsewhere."""
    half = NUM_PARTICLES // 2
    field = FIELDS["svgd"]

    def separate(field, state, x, grads):
        parts = [
            fields.velocity(field, state, x[rows], grads[rows])
            for rows in (slice(0, half), slice(half, None))
        ]
        moved = jnp.concatenate([part[0] for part in parts])
        return moved, parts[0][1], parts[0][2]

    found, _ = jax.jit(lambda: walk(separate, field))()
    assert largest_gap(np.asarray(found), alone()["svgd"][0]) > 1e-3


def test_nobody_gathers_what_the_ring_passes_on():
    """In the ring no program holds all particles; in the rows backend one does."""
    whole = f"{NUM_PARTICLES},{WIDTH}]"

    def text(backend):
        velocity = sharded.velocity(mesh_of(8), meshes.PARTICLE_AXIS, backend)
        field = FIELDS["svgd"]
        state = fields.init(field, jnp.asarray(START))
        lowered = jax.jit(lambda x: velocity(field, state, x, x)[0]).lower(START)
        return lowered.compile().as_text()

    def gathers(text):
        lines = [line for line in text.splitlines() if " all-gather(" in line]
        return [line for line in lines if whole in line.split(" all-gather(")[0]]

    assert gathers(text("rows")) and not gathers(text("ring"))


def train(directory, velocity, **sizes):
    """The trainer on a loss whose particles have one target each to share."""
    field = fields.Field(svgd.flow(), temperature=0.1)
    moves = transport.only("particles", transport.of_flow(field, velocity))

    def init(key):
        return {"particles": {"x": jnp.asarray(START)}}, {}

    def loss_fn(params, frozen, batch, key):
        gaps = params["particles"]["x"][:, None] - batch["y"]
        return jnp.sum(jnp.mean(gaps**2, axis=(1, 2))), {}

    def make_batches(phase, step):
        while True:
            y = np.random.default_rng(step).normal(size=(8, WIDTH))
            yield {"y": y.astype(np.float32)}
            step += 1

    devices = jax.devices()[: int(np.prod(list(sizes.values()) or [1]))]
    phase = common.PHASE | {"num_steps": 6, "optimizer": "sgd", "learning_rate": 0.5}
    phase |= {"clip_norm": 0.0}
    params, _ = loop.run(
        Method(init=init, phases=(Phase("fit", loss_fn, transport=moves),)),
        {"fit": phase},
        common.TRAIN | {"log_every": 3},
        make_batches,
        meshes.make_mesh(**{"data": 1, **sizes}, devices=devices),
        directory,
    )
    return placement.to_host(params)["particles"]["x"]


def test_the_trainer_gives_the_same_particles_on_every_mesh(tmp_path):
    wanted = train(tmp_path / "alone", fields.velocity)
    for backend in ("auto", "feature"):
        mesh = meshes.make_mesh(data=2, particle=4)
        velocity = fields.velocity
        if backend != "auto":
            velocity = sharded.velocity(mesh, meshes.PARTICLE_AXIS, backend)
        found = train(tmp_path / backend, velocity, data=2, particle=4)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_particles_that_do_not_split_are_refused():
    velocity = sharded.velocity(mesh_of(8), meshes.PARTICLE_AXIS, "rows")
    x = jnp.ones((6, 3))
    field = FIELDS["svgd"]
    with pytest.raises(ValueError, match=r"6 particles.*particle=8.*num_particles"):
        velocity(field, fields.init(field, x), x, x)
    with pytest.raises(ValueError, match="'tree'"):
        sharded.velocity(mesh_of(8), meshes.PARTICLE_AXIS, "tree")


def test_optax_is_handed_descent_directions():
    x = jnp.asarray(START)
    tx = transport.of_flow(FIELDS["still"])
    updates, _ = tx.update({"x": x}, tx.init({"x": x}), {"x": x})
    moved = optax.apply_updates({"x": x}, jax.tree.map(lambda u: -0.5 * u, updates))
    np.testing.assert_allclose(moved["x"], 0.5 * START, rtol=1e-6)

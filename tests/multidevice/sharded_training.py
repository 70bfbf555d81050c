"""Checks on eight simulated devices; started by `test_in_own_process.py`."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import common
from jaxanom.contracts import Method, Phase
from jaxanom.parallel import mesh, placement, rules
from jaxanom.training import checkpoint, loop, optimizer, state, step

WIDTH = 128  # a square of it is the smallest weight that fsdp splits
BATCH_SIZE = 16


def init(key):
    key_up, key_down, key_particles = jax.random.split(key, 3)
    return {
        "block": {
            "fc1": {"kernel": jax.random.normal(key_up, (8, WIDTH)) / 3},
            "middle": {"kernel": jnp.eye(WIDTH)},
            "fc2": {"kernel": jax.random.normal(key_down, (WIDTH, 2)) / 12},
        },
        "particles": {"shift": jax.random.normal(key_particles, (4, 2))},
    }, {}


def loss_fn(params, frozen, batch, key):
    block = params["block"]
    noise = 0.01 * jax.random.normal(key, batch["x"].shape)
    hidden = jnp.tanh((batch["x"] + noise) @ block["fc1"]["kernel"])
    hidden = jnp.tanh(hidden @ block["middle"]["kernel"])
    found = hidden @ block["fc2"]["kernel"]  # [B, 2]
    shifted = found + params["particles"]["shift"][:, None]  # [P, B, 2]
    return jnp.sum(jnp.mean((shifted - batch["y"]) ** 2, axis=(1, 2))), {}


def batch_at(position):
    x = np.random.default_rng(position).normal(size=(BATCH_SIZE, 8)).astype(np.float32)
    return {"x": x, "y": np.sin(x[:, :2])}


def make_batches(phase_name, start_step):
    while True:
        yield batch_at(start_step)
        start_step += 1


def train(directory, checkpoint_every=0, on_log=None, **sizes):
    losses = []

    def collect(row):
        if row["kind"] == "train":
            losses.append(row["loss"])
        if on_log is not None:
            on_log(row)

    devices = jax.devices() if sizes else jax.devices()[:1]
    params, info = loop.run(
        Method(init=init, phases=(Phase("fit", loss_fn),)),
        {"fit": common.PHASE | {"num_steps": 8, "learning_rate": 1e-2}},
        common.TRAIN
        | {"log_every": 1, "checkpoint_every": checkpoint_every, "ema_decay": 0.5},
        make_batches,
        mesh.make_mesh(**sizes, devices=devices),
        directory,
        on_log=collect,
    )
    return params, info, losses


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run on one device."""
    return train(tmp_path_factory.mktemp("alone"))


def assert_close(tree, other):
    # Devices add their parts in another order: 1e-7 a step, which Adam's division by
    # small gradients raises to some 1e-5 over eight steps.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        placement.to_host(tree),
        placement.to_host(other),
    )


def test_eight_devices_are_there():
    assert len(jax.devices()) == 8


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 8},
        {"data": 2, "fsdp": 4},
        {"data": 2, "model": 2, "particle": 2},
    ],
    ids=str,
)
def test_a_mesh_gives_the_loss_curve_of_one_device(tmp_path, alone, sizes):
    params, info, losses = train(tmp_path, **sizes)
    np.testing.assert_allclose(losses, alone[2], rtol=1e-4)
    assert_close(params, alone[0])
    assert_close(info["ema_params"], alone[1]["ema_params"])
    # The curve moves, so that agreeing means something.
    assert losses[-1] < 0.8 * losses[0]
    middle = params["block"]["middle"]["kernel"]
    rows_held = WIDTH // sizes.get("fsdp", 1)
    assert middle.addressable_shards[0].data.shape == (rows_held, WIDTH)


def test_splitting_a_batch_for_accumulation_sends_nothing():
    layout = mesh.make_mesh(data=4, fsdp=2)
    placed = placement.place_batch(batch_at(0), layout, accumulate=2)
    split = jax.jit(step.microbatches, static_argnums=1)
    text = split.lower(placed, 2).compile().as_text()
    assert not re.search("all-gather|all-to-all|collective-permute|all-reduce", text)
    found = split(placed, 2)["x"]
    assert found.addressable_shards[0].data.shape == (2, BATCH_SIZE // 16, 8)
    # Negative control: microbatches of neighbouring rows live on few devices each, so
    # spreading them over all takes communication.
    spread = jax.sharding.NamedSharding(layout, P(None, mesh.BATCH_AXES))
    naive = jax.jit(lambda x: x.reshape(2, -1, 8), out_shardings=spread)
    text = naive.lower(placed["x"]).compile().as_text()
    assert re.search("all-gather|all-to-all|collective-permute|all-reduce", text)


def test_weights_and_moments_are_split_as_the_table_says():
    layout = mesh.make_mesh(data=1, fsdp=2, model=2, particle=2)
    params, _ = init(jax.random.key(0))
    params = placement.place(params, rules.shardings(params, layout))
    shards = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data.shape, params)
    assert shards["block"]["fc1"]["kernel"] == (8, WIDTH // 2)
    assert shards["block"]["middle"]["kernel"] == (WIDTH // 2, WIDTH)
    assert shards["block"]["fc2"]["kernel"] == (WIDTH // 2, 2)
    assert shards["particles"]["shift"] == (2, 2)


def test_rows_of_a_batch_are_spread_over_data_and_fsdp():
    layout = mesh.make_mesh(data=2, fsdp=4)
    placed = placement.place_batch(batch_at(0), layout)
    assert placed["x"].addressable_shards[0].data.shape == (BATCH_SIZE // 8, 8)
    np.testing.assert_array_equal(placement.to_host(placed)["x"], batch_at(0)["x"])


def test_a_batch_that_does_not_divide_says_which_key_to_change():
    layout = mesh.make_mesh(data=4, fsdp=2)
    batch = {"x": np.zeros((30, 2), np.float32)}
    with pytest.raises(ValueError) as error:
        placement.place_batch(batch, layout)
    assert str(error.value) == (
        "batch_size=30 is not a multiple of mesh axes data*fsdp=8; "
        "set config.data.batch_size"
    )


def test_a_mesh_of_too_many_devices_is_refused():
    with pytest.raises(ValueError, match=r"config\.mesh\.data=16.*8 devices"):
        mesh.make_mesh(data=16)


class KilledError(Exception):
    pass


def test_a_run_goes_on_on_another_mesh(tmp_path, alone):
    def on_log(row):
        if row["kind"] == "train" and row["step"] == 6:
            raise KilledError

    with pytest.raises(KilledError):
        train(tmp_path, data=2, fsdp=4, checkpoint_every=4, on_log=on_log)
    params, info, _ = train(tmp_path, data=4, model=2)
    assert info["resumed_from"] == 4
    assert_close(params, alone[0])


def test_a_checkpoint_restores_bit_equal_onto_any_mesh(tmp_path):
    def targets(layout):
        params, _ = init(jax.random.key(0))
        tx = optimizer.make(optimizer.read(common.PHASE, "phase"))
        tree = state.init(params, tx, jax.random.key(3), True)
        return tree, state.shardings(tree, layout)

    first = mesh.make_mesh(data=1, fsdp=4, particle=2)
    tree, places = targets(first)
    with_keys = placement.place(tree, places)
    saved = checkpoint.Checkpoints(tmp_path)
    saved.save(1, with_keys, {}, wait=True)
    for layout in (
        mesh.make_mesh(data=4, model=2),
        mesh.make_mesh(devices=jax.devices()[:1]),
    ):
        _, places = targets(layout)
        found = saved.restore(1, checkpoint.abstract(tree, places))
        assert jax.random.bits(found.key) == jax.random.bits(tree.key)
        for wanted, leaf, place in zip(
            jax.tree.leaves(tree.params),
            jax.tree.leaves(found.params),
            jax.tree.leaves(places.params),
            strict=True,
        ):
            np.testing.assert_array_equal(wanted, placement.to_host(leaf))
            assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    saved.close()

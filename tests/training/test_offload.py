"""Frozen towers in the host's memory: the same training, and other memory."""

import jax
import jax.numpy as jnp
import linear
import numpy as np
import pytest

from configs import common
from jaxanom.contracts import Method, Phase
from jaxanom.jobs import dry_run
from jaxanom.parallel import mesh, placement, rules
from jaxanom.training import forecast, loop, optimizer, plan, step

MESH = mesh.make_mesh(devices=jax.devices()[:1])
SIDE = 64
TOWER, UNUSED = 4 * 3 * SIDE, 4 * SIDE * SIDE  # bytes


def init(key):
    rng = np.random.default_rng(0)
    frozen = {
        "tower": rng.normal(size=(3, SIDE)).astype(np.float32),
        "unused": rng.normal(size=(SIDE, SIDE)).astype(np.float32),
    }
    return {"head": jnp.zeros((SIDE, 1))}, frozen


def loss_fn(params, frozen, batch, key):
    error = jnp.tanh(batch["x"] @ frozen["tower"]) @ params["head"] - batch["y"]
    return jnp.mean(error**2), {}


METHOD = Method(init=init, phases=(Phase("fit", loss_fn),))


def train(directory, offload, **keywords):
    return loop.run(
        METHOD,
        linear.phases_config(6),
        common.TRAIN | {"log_every": 2, "offload_frozen": offload, "ema_decay": 0.9},
        linear.make_batches,
        MESH,
        directory,
        **keywords,
    )


def kinds(tree):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


def forecast_of(offload):
    stage = plan.Stage(METHOD.phases[0], optimizer.read(common.PHASE, "phase"), 0, 0)
    params, frozen = METHOD.init(None)
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, linear.batch_at(0)))
    return forecast.of_step(stage, params, frozen, batch, MESH, 0.0, offload)


def test_frozen_towers_wait_in_the_memory_that_is_asked_for():
    _, frozen = init(None)
    waiting = placement.place_frozen(frozen, MESH, offload=True)
    assert kinds(waiting) == {placement.HOST_MEMORY}
    assert kinds(placement.place_frozen(frozen, MESH)) == {"device"}
    back = placement.place_frozen(waiting, MESH)
    assert kinds(back) == {"device"}
    jax.tree.map(np.testing.assert_array_equal, back, frozen)


def test_training_ends_in_the_same_bits_and_sees_its_towers_on_the_device(tmp_path):
    wanted, _ = train(tmp_path / "plain", False)
    found, info = train(tmp_path / "moved", True)
    # One program with a copy in front of it: the arithmetic is the same.
    np.testing.assert_array_equal(found["head"], wanted["head"])
    assert np.any(np.asarray(wanted["head"]) != 0)  # something was learnt
    assert kinds(info["frozen"]) == {"device"}


def test_the_compiled_step_takes_its_towers_from_the_host_and_drops_the_unused_one():
    found = forecast_of(True)
    kept = found.program.input_shardings[0]
    names = [leaf.memory_kind for leaf in jax.tree.leaves(kept) if leaf is not None]
    assert names.count(placement.HOST_MEMORY) >= 1
    # Negative control: otherwise nothing comes from there.
    found = forecast_of(False)
    kept = found.program.input_shardings[0]
    names = [leaf.memory_kind for leaf in jax.tree.leaves(kept) if leaf is not None]
    assert placement.HOST_MEMORY not in names


def test_a_step_that_is_not_told_to_fetch_refuses_towers_on_the_host():
    # What makes the option safe: jax mixes no memories in silence.
    tx = optimizer.make(
        optimizer.read(common.PHASE, "phase"), METHOD.phases[0].transport
    )
    args = forecast_of(True).args
    blind = step.make_step(loss_fn, tx)
    with pytest.raises(ValueError, match="memory"):
        blind.apply.lower(*args)


def test_the_forecast_counts_the_hosts_bytes_apart():
    plain, moved = forecast_of(False).forecast, forecast_of(True).forecast
    assert (plain.frozen, plain.host) == (TOWER + UNUSED, 0)
    assert (moved.frozen, moved.host) == (0, TOWER + UNUSED)
    parts = moved.params + moved.optimizer + moved.batch + moved.working
    assert moved.total == parts
    for one, told in ((plain, False), (moved, True)):
        shown = dry_run.text(dry_run.DryRun(MESH, linear.BATCH_SIZE, (one,), None))
        assert ("on the host" in shown) == told


def test_devices_without_such_a_memory_are_refused_by_the_key(monkeypatch):
    monkeypatch.setattr(placement, "HOST_MEMORY", "elsewhere")
    with pytest.raises(ValueError, match=r"config\.train\.offload_frozen.*'device'"):
        placement.place_frozen(init(None)[1], MESH, offload=True)


def test_nothing_is_fetched_where_everything_is_on_the_device():
    _, frozen = init(None)
    assert placement.fetched_shardings({}, MESH) is None
    placed = placement.place_frozen(frozen, MESH)
    assert placement.fetched_shardings(placed, MESH) is None
    waiting = placement.place_frozen(frozen, MESH, offload=True)
    fetched = placement.fetched_shardings(waiting, MESH)
    assert fetched == rules.shardings(frozen, MESH)

import os
import signal

import jax
import jax.numpy as jnp
import linear
import numpy as np
import pytest

from configs import common
from jaxanom import record
from jaxanom.contracts import Method, Phase
from jaxanom.parallel import mesh
from jaxanom.training import loop, preemption

MESH = mesh.make_mesh(devices=jax.devices()[:1])


def train(directory, num_steps=20, method=None, batches=None, extra=None, **settings):
    """Trains the linear method; `settings` go to config.train."""
    keywords = {
        key: settings.pop(key)
        for key in ("on_log", "identity", "initial")
        if key in settings
    }
    return loop.run(
        method or linear.make(linear.noisy_loss_fn),
        linear.phases_config(num_steps, **(extra or {})),
        common.TRAIN
        | {"log_every": 5, "checkpoint_every": 5, "ema_decay": 0.9}
        | settings,
        batches or linear.make_batches,
        MESH,
        directory,
        **keywords,
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The directory, parameters and info of a run that nothing disturbed."""
    directory = tmp_path_factory.mktemp("unbroken")
    return directory, *train(directory)


def rows(directory, kind=None):
    found = list(record.read_metrics(directory / "metrics.jsonl"))
    return [row for row in found if kind in (None, row["kind"])]


def assert_bit_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def stop_at(step, action):
    """Returns an `on_log` that acts once, at the training row of a step."""

    def on_log(row):
        if row["kind"] == "train" and row["step"] == step:
            action()

    return on_log


class KilledError(Exception):
    pass


def kill():
    raise KilledError


def test_linear_regression_finds_the_weights_that_made_the_data(tmp_path):
    params, info = train(
        tmp_path, 300, linear.make(), log_every=100, checkpoint_every=0
    )
    # Exact data have a zero-loss solution; Adam at 0.1 still jitters by 1e-5 there.
    weights = params["linear"]
    np.testing.assert_allclose(weights["kernel"], linear.TRUE_WEIGHTS, atol=1e-4)
    np.testing.assert_allclose(weights["bias"], linear.TRUE_BIAS, atol=1e-4)
    assert info["global_step"] == 300 and info["resumed_from"] is None
    logged = rows(tmp_path, "train")
    assert [row["step"] for row in logged] == [100, 200, 300]
    assert logged[-1]["loss"] < 1e-6 < logged[0]["loss"]
    assert {"steps_per_s", "images_per_s_per_device", "eta_s"} <= logged[0].keys()
    # One compilation for the whole phase.
    assert len(rows(tmp_path, "compile")) == 1


def test_an_interrupted_run_ends_in_the_same_bits(tmp_path, unbroken):
    _, params, whole = unbroken
    # Dies at step 15 before that step's checkpoint is written: 10 is the newest.
    with pytest.raises(KilledError):
        train(tmp_path, on_log=stop_at(15, kill))
    resumed, info = train(tmp_path)
    assert info["resumed_from"] == 10
    assert_bit_equal(params, resumed)
    assert_bit_equal(whole["ema_params"], info["ema_params"])


def test_resuming_on_other_batches_would_be_noticed(tmp_path, unbroken):
    """Negative control of the test above."""
    with pytest.raises(KilledError):
        train(tmp_path, on_log=stop_at(15, kill))

    def forgetful(phase_name, start_step):
        return linear.make_batches(phase_name, 0)

    resumed, _ = train(tmp_path, batches=forgetful)
    wanted = unbroken[1]["linear"]["kernel"]
    assert not np.array_equal(wanted, resumed["linear"]["kernel"])


def test_a_resumed_log_holds_every_row_once(tmp_path, unbroken):
    with pytest.raises(KilledError):
        train(tmp_path, on_log=stop_at(15, kill))
    assert [row["step"] for row in rows(tmp_path, "train")] == [5, 10, 15]
    train(tmp_path)
    whole, resumed = rows(unbroken[0], "train"), rows(tmp_path, "train")
    assert [row["step"] for row in resumed] == [5, 10, 15, 20]
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]


def test_a_finished_run_returns_its_parameters_at_once(unbroken):
    directory, params, _ = unbroken

    def never(phase_name, start_step):
        raise AssertionError("a finished run needs no batches")

    again, info = train(directory, batches=never)
    assert_bit_equal(params, again)
    assert info["resumed_from"] == 20


def test_sigterm_saves_and_the_next_start_goes_on(tmp_path, unbroken):
    before = signal.getsignal(signal.SIGTERM)
    terminate = stop_at(10, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(preemption.Preempted, match=r"after step 10.*checkpoints/10"):
        train(tmp_path, checkpoint_every=0, on_log=terminate)
    assert signal.getsignal(signal.SIGTERM) is before
    resumed, info = train(tmp_path, checkpoint_every=0)
    assert info["resumed_from"] == 10
    assert_bit_equal(unbroken[1], resumed)


def poisoned_from(first, count):
    def batches(phase_name, start_step):
        for n, batch in enumerate(linear.make_batches(phase_name, start_step)):
            if first <= start_step + n < first + count:
                batch["y"] = np.full_like(batch["y"], np.nan)
            yield batch

    return batches


def test_a_few_bad_batches_are_skipped_and_counted(tmp_path):
    params, info = train(tmp_path, batches=poisoned_from(6, 3), nan_patience=4)
    assert info["skipped"] == {"fit": 3}
    assert np.isfinite(params["linear"]["kernel"]).all()
    logged = rows(tmp_path, "train")
    assert [row["skipped"] for row in logged] == [0, 3, 3, 3]
    # The mean leaves the skipped steps out and says how many there were.
    assert np.isfinite(logged[1]["loss"])
    assert logged[1]["finite"] == pytest.approx(2 / 5)


def test_too_many_bad_batches_stop_the_run_with_its_last_good_parameters(tmp_path):
    _, good = train(tmp_path / "good", 7, checkpoint_every=0)
    with pytest.raises(FloatingPointError) as error:
        train(tmp_path / "bad", batches=poisoned_from(7, 100), nan_patience=4)
    saved = tmp_path / "bad" / "checkpoints" / "15"
    message = str(error.value)
    assert "phase 'fit', step 15" in message and str(saved) in message
    assert "8 steps in a row" in message
    # Starting again goes on from there, with the parameters of step 7.
    with pytest.raises(FloatingPointError):
        train(tmp_path / "bad", batches=poisoned_from(7, 100), nan_patience=4)
    _, again = train(tmp_path / "bad", batches=poisoned_from(7, 100), nan_patience=99)
    assert_bit_equal(again["ema_params"], good["ema_params"])


def test_a_run_that_failed_on_its_last_step_does_not_pass_for_finished(tmp_path):
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="step 20"):
            train(tmp_path, batches=poisoned_from(16, 100), nan_patience=4)


def two_phases():
    def init(key):
        return {"a": jnp.zeros(()), "b": jnp.zeros(())}, {}

    def pull_a(params, frozen, batch, key):
        return (params["a"] - 2.0) ** 2 + (params["b"] - 5.0) ** 2, {}

    def pull_b(params, frozen, batch, key):
        return (params["b"] - 10.0 * params["a"]) ** 2, {}

    phases = (Phase("first", pull_a, ("a",)), Phase("second", pull_b, ("b",)))
    return Method(init=init, phases=phases)


def run_two(directory, first, second, **keywords):
    settings = common.PHASE | {"optimizer": "sgd", "momentum": 0.0}
    settings |= {"learning_rate": 0.25}
    settings |= {"clip_norm": 0.0}
    config = {
        "first": settings | {"num_steps": first},
        "second": settings | {"num_steps": second},
    }
    train_config = common.TRAIN | {"log_every": 5, "checkpoint_every": 5}
    return loop.run(
        two_phases(), config, train_config, linear.make_batches, MESH, directory,
        **keywords,
    )  # fmt: skip


def test_phases_train_their_own_parameters_in_order(tmp_path):
    params, info = run_two(tmp_path, 30, 30)
    # Halving the error 30 times leaves 1e-9 of it, below float32's spacing.
    assert float(params["a"]) == pytest.approx(2.0, rel=1e-6)
    assert float(params["b"]) == pytest.approx(20.0, rel=1e-6)
    assert info["global_step"] == 60
    assert [row["global_step"] for row in rows(tmp_path, "train")][-1] == 60


def test_a_phase_resumes_with_what_the_earlier_phase_trained(tmp_path):
    unbroken, _ = run_two(tmp_path / "a", 10, 10)

    def on_log(row):
        if row["phase"] == "second" and row["step"] == 10:
            raise KilledError

    with pytest.raises(KilledError):
        run_two(tmp_path / "b", 10, 10, on_log=on_log)
    resumed, info = run_two(tmp_path / "b", 10, 10)
    assert info["resumed_from"] == 15
    assert_bit_equal(unbroken, resumed)


def test_a_phase_of_no_steps_is_left_out(tmp_path):
    params, _ = run_two(tmp_path, 0, 30)
    assert float(params["a"]) == 0.0
    assert {row["phase"] for row in rows(tmp_path)} == {"second"}


def test_settings_and_phases_must_match(tmp_path):
    def start(config):
        loop.run(
            two_phases(), config, common.TRAIN, linear.make_batches, MESH, tmp_path
        )

    with pytest.raises(ValueError, match=r"did you mean config\.phases\.second"):
        start({"first": common.PHASE, "secnd": {}})
    with pytest.raises(ValueError, match=r"config\.phases\.second is missing"):
        start({"first": common.PHASE})
    with pytest.raises(
        ValueError, match=r"config\.train has unknown keys .*log_evry.*log_every"
    ):
        train(tmp_path, log_evry=3)
    with pytest.raises(ValueError, match=r"ema_decay=1\.5"):
        train(tmp_path, ema_decay=1.5)


def test_a_checkpoint_of_other_settings_or_another_method_is_refused(tmp_path):
    run = {"method": "linear", "data": {"categories": ("a", "b")}}
    train(tmp_path, identity=run, checkpoint_every=0)
    with pytest.raises(ValueError, match=r"learning_rate: now 0\.2, then 0\.1"):
        train(tmp_path, identity=run, extra={"learning_rate": 0.2})
    with pytest.raises(ValueError, match="method: now 'other', then 'linear'"):
        train(tmp_path, identity=run | {"method": "other"})
    # How often one logs decides nothing.
    train(tmp_path, identity=run, log_every=7)


def test_a_checkpoint_of_another_model_names_paths_and_shapes(unbroken):

    def wider(key):
        params, frozen = linear.init(key)
        params["linear"]["kernel"] = jnp.zeros((4, 1))
        return params, frozen

    other = linear.make(linear.noisy_loss_fn)._replace(init=wider)
    with pytest.raises(ValueError, match=r"linear/kernel: wanted float32\[4, 1\]"):
        train(unbroken[0], method=other)


def test_batches_that_end_early_say_so(tmp_path):
    def short(phase_name, start_step):
        return iter([linear.batch_at(0)] * 3)

    with pytest.raises(ValueError, match=r"ended before step 3.*num_steps=20"):
        train(tmp_path, batches=short)


def test_given_initial_parameters_are_used_and_left_alone(tmp_path):
    initial = linear.init(jax.random.key(9))
    copy = jax.tree.map(np.array, initial)

    def no_init(key):
        raise AssertionError("init was called although parameters were given")

    method = linear.make()._replace(init=no_init)
    train(tmp_path, method=method, initial=initial)
    assert_bit_equal(initial, copy)


def test_one_row_batches_and_one_step_work(tmp_path):
    def single(phase_name, start_step):
        return iter([linear.batch_at(0, batch_size=1)])

    initial = linear.init(jax.random.key(9))
    params, _ = train(tmp_path, 1, batches=single, initial=initial)
    # Adam's first step is the learning rate along the sign of the gradient.
    grads = jax.grad(
        lambda p: linear.loss_fn(p, initial[1], linear.batch_at(0, 1), None)[0]
    )
    moved = params["linear"]["kernel"] - initial[0]["linear"]["kernel"]
    signs = np.sign(grads(initial[0])["linear"]["kernel"])
    np.testing.assert_allclose(moved, -0.1 * signs, rtol=1e-4)

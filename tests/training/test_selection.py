"""A phase that ends in its best parameters: by what rule, and after a kill too."""

import jax
import linear
import numpy as np
import pytest
from test_loop import MESH, KilledError, rows

from configs import common
from jaxanom import record
from jaxanom.contracts import Method, Phase
from jaxanom.training import loop, selection

VALUES = [0.1, 0.5, 0.3, 0.5, 0.2, 0.4, 0.9]


def chosen(directory, values=VALUES, every=5, patience=4):
    """Measures what a list says, by step; keeps the kernels it was shown."""
    seen = {}

    def measure(params, frozen, phase):
        step = 5 * (len(seen.setdefault(phase, [])) + 1)
        seen[phase].append(np.array(params["linear"]["kernel"]))
        return values[step // 5 - 1]

    return selection.by_measure(directory, measure, every, patience), seen


def train(directory, found, num_steps=35, **settings):
    return loop.run(
        linear.make(linear.noisy_loss_fn),
        linear.phases_config(num_steps),
        common.TRAIN | {"log_every": 5, "checkpoint_every": 5} | settings,
        linear.make_batches,
        MESH,
        directory,
        selection=found,
    )


def test_the_best_of_all_measured_is_kept_and_patience_ends_the_phase(tmp_path):
    found, seen = chosen(tmp_path)
    params, info = train(tmp_path, found)
    # Best at step 10; an equal value is no growth; the fourth failure is step 30.
    assert len(seen["fit"]) == 6
    np.testing.assert_array_equal(params["linear"]["kernel"], seen["fit"][1])
    np.testing.assert_array_equal(
        info["ema_params"]["linear"]["kernel"], seen["fit"][1]
    )
    assert [row["value"] for row in rows(tmp_path, "selection")] == VALUES[:6]
    assert rows(tmp_path, "train")[-1]["step"] == 30
    # Negative control: without a selection the last step is another.
    last, _ = train(tmp_path / "last", None)
    assert np.abs(last["linear"]["kernel"] - seen["fit"][1]).max() > 1e-3


def test_with_more_patience_a_later_best_is_found(tmp_path):
    found, seen = chosen(tmp_path, patience=5)
    params, _ = train(tmp_path, found)
    assert len(seen["fit"]) == 7
    np.testing.assert_array_equal(params["linear"]["kernel"], seen["fit"][6])


def test_a_killed_run_chooses_the_same(tmp_path):
    found, _ = chosen(tmp_path / "a")
    unbroken, _ = train(tmp_path / "a", found)

    broken, seen = chosen(tmp_path / "b")

    def killing(params, frozen, phase, step):
        if step == 15:
            raise KilledError
        return broken.add(params, frozen, phase, step)

    with pytest.raises(KilledError):
        train(tmp_path / "b", broken._replace(add=killing), checkpoint_every=8)
    del seen["fit"][1:]  # the checkpoint of step 8: step 10 is measured again
    resumed, info = train(tmp_path / "b", broken, checkpoint_every=8)
    assert info["resumed_from"] == 8 and len(seen["fit"]) == 6
    jax.tree.map(np.testing.assert_array_equal, unbroken, resumed)


def test_a_finished_run_returns_the_chosen_parameters_at_once(tmp_path):
    found, seen = chosen(tmp_path)
    first, _ = train(tmp_path, found)
    again, _ = train(tmp_path, found)
    assert len(seen["fit"]) == 6  # nothing was measured again
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_the_next_phase_starts_from_the_chosen_parameters(tmp_path):
    def loss(params, frozen, batch, key):
        return 0.0 * params["other"] ** 2 + params["linear"]["bias"][0] * 0, {}

    def init(key):
        params, frozen = linear.init(key)
        return {**params, "other": np.float32(1.0)}, frozen

    method = Method(
        init=init,
        phases=(
            Phase("fit", linear.noisy_loss_fn, ("linear/.*",)),
            Phase("rest", loss, ("other",)),
        ),
    )
    found, seen = chosen(tmp_path, values=[0.1, 0.9, 0.2, 0.3])
    config = linear.phases_config(20)
    config["rest"] = {**config["fit"], "num_steps": 5}
    params, _ = loop.run(
        method,
        config,
        common.TRAIN | {"log_every": 5, "checkpoint_every": 5},
        linear.make_batches,
        MESH,
        tmp_path,
        selection=found,
    )
    np.testing.assert_array_equal(params["linear"]["kernel"], seen["fit"][1])
    np.testing.assert_array_equal(seen["rest"][0], seen["fit"][1])


def test_an_undefined_measure_is_an_error(tmp_path):
    found, _ = chosen(tmp_path, values=[float("nan")])
    with pytest.raises(ValueError, match="need both classes"):
        train(tmp_path, found)
    assert not (tmp_path / selection.FOLDER).exists()


SECTION = {
    "rule": "authors",
    "categories": ("pill",),
    "every": 3,
    "patience": 4,
    "metrics": {"fit": "pixel_ap"},
}


def test_settings_are_read_and_checked():
    assert selection.read(None).rule == "last"
    assert selection.read(SECTION).categories == ("pill",)
    for change, message in (
        ({"rule": "first"}, "choose one of"),
        ({"every": 0}, "wants 1 or more"),
        ({"categories": ()}, "wants 1 or more"),
        ({"metrics": {"fit": "accuracy"}}, "known are"),
        ({"patient": 3}, "unknown keys"),
    ):
        with pytest.raises(ValueError, match=message):
            selection.read(SECTION | change)


def test_measurements_are_written_down(tmp_path):
    found, _ = chosen(tmp_path)
    train(tmp_path, found)
    wanted = [[5 * (n + 1), value] for n, value in enumerate(VALUES[:6])]
    assert selection.history(tmp_path, "fit") == wanted
    assert record.read_json(tmp_path / "selection" / "fit.json")["measured"] == wanted


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="set it to 'last'"):
        chosen(tmp_path)

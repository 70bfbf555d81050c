"""The grid against scikit-learn, the rule that chooses, and how much it flatters."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxanom
from jaxanom.data import images
from jaxanom.jobs import config_file
from jaxanom.methods.adp.channels import fusion
from jaxanom.methods.adp.tuning import choose, grid

RNG = np.random.default_rng(6)
SIDE = 8


def synthetic(count=80, cells=3, gain=1.0, rng=RNG):
    """Half normal noise, half with a brighter square in the first cell's maps."""
    source = np.where(np.arange(count) < count // 2, 0, 1 + np.arange(count) % 3)
    masks = np.zeros((count, SIDE, SIDE), np.float32)
    maps = rng.normal(size=(cells, count, SIDE, SIDE)).astype(np.float32)
    for n in np.flatnonzero(source):
        top, left = rng.integers(0, SIDE - 3, 2)
        masks[n, top : top + 3, left : left + 3] = 1
    maps[0] += gain * masks
    whole = rng.normal(size=(1, count)).astype(np.float32)
    return grid.Synthetic(maps, whole, masks, source)


def default(num_channels=2):
    return fusion.default((1.0,) * num_channels, has_language=False)


def test_image_auroc_equals_scikit_learn_with_ties():
    metrics = pytest.importorskip("sklearn.metrics")
    values = RNG.integers(0, 6, 60).astype(np.float32)
    positive = RNG.random((2, 3, 60)) < 0.3
    negative = RNG.random((2, 60)) < 0.4
    found = grid.pair_auroc(
        jnp.asarray(values),
        jnp.asarray(positive, jnp.float32),
        jnp.asarray(negative, jnp.float32),
    )
    for f in range(2):
        for s in range(3):
            rows = np.concatenate([values[positive[f, s]], values[negative[f]]])
            truth = np.r_[np.ones(positive[f, s].sum()), np.zeros(negative[f].sum())]
            # Counts are exact in float32; one division.
            assert found[f, s] == pytest.approx(
                metrics.roc_auc_score(truth, rows), abs=1e-6
            )


def test_pixel_precision_is_within_its_binning_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    data = synthetic(40)
    fold = grid.folds(data.source)
    found = grid.source_precision(
        jnp.asarray(data.maps[0]),
        jnp.asarray(data.masks),
        jnp.asarray(data.source * grid.NUM_FOLDS + fold),
        3,
        grid.NUM_FOLDS,
    )
    for f in range(grid.NUM_FOLDS):
        for s in (1, 2, 3):
            rows = (fold == f) & ((data.source == s) | (data.source == 0))
            truth, values = data.masks[rows].ravel(), data.maps[0][rows].ravel()
            if truth.any():
                wanted = metrics.average_precision_score(truth > 0, values)
                # 1024 equal bins; the bound that the method asks for.
                assert found[f, s - 1] == pytest.approx(wanted, abs=5e-3)


def test_folds_hold_every_source_evenly():
    source = np.repeat([0, 1, 2, 3], [20, 10, 10, 7])
    fold = grid.folds(source)
    for number in range(4):
        counts = np.bincount(fold[source == number], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_the_grid_starts_with_the_default_and_stays_on_the_simplex():
    first = default()
    listed = choose.grid((2, 3), first, has_language=False, side=32, most=100)
    assert len(listed.sigma) == 101
    np.testing.assert_allclose(listed.weights.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(listed.weights[0], first.weights)
    assert int(listed.cells[:, 1].max()) == 2 and int(listed.cells[:, 0].max()) == 1
    whole = choose.grid((1, 1), first, has_language=True, side=32, most=4096)
    assert len(whole.sigma) == 1 + 11 * 3 * 4 * 4
    small = choose.grid((1, 1), first, has_language=True, side=16, most=4096)
    assert len(small.sigma) == 1 + 11 * 3 * 3 * 4  # two shares average the same there


def test_one_shot_tunes_nothing_that_weighs_the_memory_against_the_text():
    """Its synthetic images all show what the memory has seen: it would always win."""
    first = fusion.default((1.0, 1.0), has_language=True)
    listed = choose.grid((3, 4), first, True, 32, fits_memory=False)
    assert len(listed.sigma) == 1 + 3 * 3 * 4
    np.testing.assert_allclose(listed.weights, 0.5)
    np.testing.assert_array_equal(listed.image_weight, first.image_weight)
    assert int(listed.cells[:, 1].max()) == 0 and int(listed.cells[:, 0].max()) == 2


def test_a_default_of_another_width_is_scored_by_its_own():
    """Widths of defaults need not be among those that are tried."""
    data = synthetic(60, 2, gain=1.0)
    narrow = fusion.default((1.0, 1.0), has_language=False, sigma=0.0)
    listed = choose.grid((1, 1), narrow, False, SIDE, most=20)
    found = grid.objectives(data, (1, 1), listed)
    alone = jax.tree.map(lambda leaf: leaf[None], narrow)
    wanted = grid.objectives(data, (1, 1), alone)
    # float32, other batches
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-5)
    # Negative control: another width is another score.
    wide = alone._replace(sigma=jnp.full(1, 40.0))
    others = grid.objectives(data, (1, 1), wide)
    assert np.abs(others[0] - wanted[0]).max() > 1e-3


def test_the_informative_channel_is_found():
    tuned = choose.tune(synthetic(120, 2, gain=3.0), (1, 1), default(), False, 200)
    assert tuned.settings.weights[0] > 0.7 and not tuned.kept_default
    assert tuned.objective > tuned.default_objective


def test_on_noise_two_standard_errors_keep_the_default_and_one_often_does_not():
    """No setting is better than another there: whatever replaces the default is luck.

    Twelve draws; on others too one error keeps about half of them, two most.
    """
    kept = {1.0: 0, 2.0: 0}
    for seed in range(12):
        noise = synthetic(120, 2, gain=0.0, rng=np.random.default_rng(seed))
        settings = choose.grid((1, 1), default(), False, SIDE, 200)
        per_fold = np.asarray(grid.objectives(noise, (1, 1), settings))
        for errors in kept:
            chosen = choose.choose(settings, per_fold, 120, errors)
            kept[errors] += chosen.kept_default
    assert kept[1.0] <= 7 and kept[2.0] >= 9


def test_fewer_than_64_images_are_refused():
    with pytest.raises(ValueError, match="fewer than 64"):
        choose.tune(synthetic(63), (2, 1), default(), False)
    with pytest.raises(ValueError, match="no normal or no anomalous"):
        only = synthetic(64)._replace(source=np.ones(64, int))
        choose.tune(only, (2, 1), default(), False)


def test_the_one_standard_error_rule():
    settings = fusion.Settings(*(np.arange(3),) * 5)
    per_fold = np.array([[0.76, 0.80, 0.84], [0.78, 0.82, 0.86], [0.1, 0.2, 0.3]])
    kept = choose.choose(settings, per_fold, 64)
    assert kept.kept_default and kept.settings.sigma == 0
    clear = choose.choose(settings, np.add(per_fold, [[0], [0.2], [0]]), 64)
    assert not clear.kept_default and clear.settings.sigma == 1
    # Ahead by 0.2 + 0.02, standard error 0.023: nine of them, and no tenth.
    ahead = np.add(per_fold, [[0], [0.2], [0]])
    assert not choose.choose(settings, ahead, 64, standard_errors=9).kept_default
    assert choose.choose(settings, ahead, 64, standard_errors=10).kept_default


def test_optimism_shrinks_with_the_number_of_images_and_matches_a_simulation():
    """V13: six Gaussian channels, 512 weightings; the choice flatters itself.

    The reference simulation gives 0.09 at 32 images and less than 0.03 at 128; bounds
    are loose as 20 repeats leave an error of 0.01.
    """
    found = {}
    for count in (32, 128, 256):
        gaps = []
        for repeat in range(20):
            rng = np.random.default_rng(repeat)
            gains = np.array([0.9, 0.5, 0.3, 0.1, 0.0, 0.0])
            weights = rng.dirichlet(np.ones(6), 512)
            label = np.arange(count) % 2
            values = rng.normal(size=(6, count)) + gains[:, None] * label
            fold = grid.folds(label)
            per_fold = np.asarray(
                [
                    _auroc(weights @ values[:, fold == f], label[fold == f])
                    for f in range(5)
                ]
            ).T
            gaps.append(choose.optimism(per_fold))
        found[count] = float(np.mean(gaps))
    # Falls about as one over the root of the count: more than halved from 32 to 256.
    assert found[32] > found[128] > found[256] > 0
    assert found[256] < 0.5 * found[32]
    assert 0.03 < found[32] < 0.2 and found[256] < 0.04


def _auroc(values, label):
    above = values[:, label == 1][:, :, None] > values[:, label == 0][:, None]
    return above.mean((1, 2))


def test_completing_a_run_reads_no_image_of_a_test_split(
    tiny_folder, tiny_backbone, tmp_path, monkeypatch
):
    """With every test file made unreadable, training and tuning do the same."""
    folder = tmp_path / "images"
    shutil.copytree(tiny_folder, folder)
    config = config_file.load("configs/adp/folder.py")
    config.data.directory, config.data.image_size = str(folder), 16
    config.model.directory = str(tiny_backbone)
    config.adp.feature_layers, config.adp.windows = (0, 1), (1, 2)
    config.adp.num_synthetic, config.adp.num_settings = 4, 8
    config.adp.walk_steps, config.adp.pyramid = 2, (1, 2)
    config.phases.invert.num_steps = 2
    read = []

    def noting(path):
        read.append(Path(path))
        return load(path)

    load = images.load_image
    monkeypatch.setattr(images, "load_image", noting)
    jaxanom.train(config, tmp_path / "run")
    assert read, "the shots are read through this"
    assert all("test" not in path.parts for path in read), read
    # Negative control: an evaluation does read them.
    jaxanom.evaluate(tmp_path / "run", num_examples=0)
    assert any("test" in path.parts for path in read)

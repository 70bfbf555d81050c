"""Features kept on disk are those a run would compute, view by view."""

import jax
import numpy as np
import pytest
from tiny_bayes_pfl import SIZE, config

import jaxanom
from jaxanom.jobs import prepare


def settings(backbone, directory):
    found = config(backbone)
    found.data.image_size = SIZE
    found.data.num_views = 2
    found.data.flips = ("horizontal",)
    found.data.feature_cache = str(directory)
    return found


def rows_of(config):
    """The defect pool as training draws it."""
    made = prepare.prepare(config)
    sources, mixtures = prepare.pools_of(made)
    _, frozen = made.method.init(jax.random.key(0))
    make = prepare.batch_maker(made, frozen, sources, mixtures)
    return next(make("stage1", 0))


def test_a_kept_feature_is_the_computed_one(tiny_backbone, tmp_path):
    computed = rows_of(settings(tiny_backbone, ""))
    first = rows_of(settings(tiny_backbone, tmp_path / "kept"))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    second = rows_of(settings(tiny_backbone, tmp_path / "kept"))
    assert set(first) == set(second) == set(computed)
    for name in computed:
        np.testing.assert_array_equal(second[name], first[name], err_msg=name)
        # Three compiled runs of one program; float32.
        np.testing.assert_allclose(first[name], computed[name], atol=1e-5)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert files and after == files  # nothing was computed and written again


def test_a_method_that_encodes_in_every_step_keeps_nothing(tiny_backbone, tmp_path):
    asked = settings(tiny_backbone, tmp_path)
    asked.bayes_pfl.cache_features = False
    asked.data.num_views, asked.data.flips = 1, ()
    with pytest.raises(ValueError, match=r"feature_cache=.*encodes no images ahead"):
        prepare.prepare(asked)


def test_training_on_device_rows_ends_in_the_same_bits(tiny_backbone, tmp_path):
    runs = {}
    for place in ("host", "device"):
        asked = settings(tiny_backbone, "")
        asked.data.feature_memory = place
        runs[place] = jaxanom.train(asked, tmp_path / place).params
    jax.tree.map(np.testing.assert_array_equal, runs["host"], runs["device"])

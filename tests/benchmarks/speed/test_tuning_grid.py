"""Self-tuning: the loop that is timed scores settings as the grid does."""

import numpy as np
import pytest

from benchmarks.speed import tuning_grid
from jaxanom.methods.adp.tuning import grid


def test_the_loop_gives_the_objective_of_the_grid_and_of_its_own_settings():
    pytest.importorskip("sklearn")
    data = tuning_grid.synthetic(num_images=40, side=16)
    ours, loop = tuning_grid.cases_of(data, 12, 4)
    assert (ours.work, loop.work) == (12, 4)
    found, wanted = np.asarray(ours.call()), loop.call()
    assert found.shape == (12, grid.NUM_FOLDS)
    # Values that share one of 1024 bins count as tied.
    np.testing.assert_allclose(found[:4], wanted, atol=5e-3)
    assert ours.facts["difference"] < 5e-3
    assert np.abs(found[4:8] - wanted).max() > 0.02  # other settings, other values

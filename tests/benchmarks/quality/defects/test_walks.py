"""Walks move by move are the scanned ones."""

import jax
import numpy as np

from benchmarks.quality.defects import walks
from jaxanom.diffusion import inversion, schedules


def test_walks_taken_move_by_move_are_the_scanned_walks(subject):
    levels = walks.levels_of(subject, 6, "log_snr")
    found, trajectory = walks.inverted(subject, levels, 2)

    @jax.jit
    def scanned(latents):
        table = schedules.inversion_table(subject.alphas_cumprod, levels)
        return inversion.masked_invert(
            subject.background_fn, latents, subject.mask, table, 2, True
        )

    wanted, whole = scanned(subject.latents)
    # The same sums in other programs, on latents below 10.
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(trajectory, whole, atol=1e-5)
    plain, _ = walks.inverted(subject, levels, 0)
    assert np.abs(plain - wanted).max() > 1e-3  # negative control

"""Round trips through noise and back with denoisers that are known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.diffusion import ddim, inversion, schedules
from jaxanom.losses import disentanglement

SIZE, DRAWS = 16, 24  # 24 channels stand for 6 draws of 4 channels
ALPHAS = np.append(1.0, schedules.alphas_cumprod())  # index 0 is the clean level

# Background error over background RMS, from the specification: a mean of 6 draws that
# scatter by about 10 %.
PUBLISHED = {
    ("source", 0): {10: 0.197, 50: 0.057, 200: 0.026},
    ("target", 0): {10: 0.174, 50: 0.046, 200: 0.019},
    ("target", 3): {10: 0.034, 50: 0.018, 200: 0.0070},
    ("target", 10): {10: 0.025, 50: 0.011, 200: 0.0015},
}


class Toy:
    """Gaussian latents, and the exact noise given background pixels only.

    Channels are independent with mean 0.5 sin(x/3) + 0.3 cos(y/2) and an RBF covariance
    of length 2 plus 1e-3 I. The posterior mean of the noise is diagonal in the
    eigenvectors of the background's covariance.
    """

    def __init__(self):
        y, x = np.mgrid[:SIZE, :SIZE]
        places = np.stack([y.ravel(), x.ravel()], 1).astype(float)
        squares = ((places[:, None] - places[None]) ** 2).sum(-1)
        covariance = np.exp(-squares / 8) + 1e-3 * np.eye(SIZE**2)
        mean = (0.5 * np.sin(x / 3) + 0.3 * np.cos(y / 2)).ravel()
        hole = np.zeros((SIZE, SIZE), bool)
        hole[5:11, 6:12] = True
        background = np.flatnonzero(~hole)
        values, vectors = np.linalg.eigh(covariance[np.ix_(background, background)])
        basis = np.zeros((SIZE**2, background.size))
        basis[background] = vectors
        noise = np.random.default_rng(0).standard_normal((SIZE**2, DRAWS))
        clean = np.linalg.cholesky(covariance) @ noise + mean[:, None]
        self.clean = jnp.asarray(clean.reshape(1, SIZE, SIZE, DRAWS), jnp.float32)
        self.mask = jnp.asarray(hole[None, :, :, None], jnp.float32)
        self.mean, self.values, self.basis = (
            jnp.asarray(a, jnp.float32) for a in (mean, values, basis)
        )
        self.alpha = jnp.asarray(ALPHAS, jnp.float32)
        self.sigma = jnp.asarray(np.sqrt(1 / ALPHAS - 1), jnp.float32)

    def background_fn(self, latents, timesteps):
        sigma, alpha = self.sigma[timesteps[0]], self.alpha[timesteps[0]]
        rows = latents.reshape(SIZE**2, DRAWS) / jnp.sqrt(alpha) - self.mean[:, None]
        gain = sigma / (self.values + sigma**2)
        noise_pred = self.basis @ (gain[:, None] * (self.basis.T @ rows))
        return noise_pred.reshape(latents.shape)

    def pair_fn(self, latents, background_latents, timesteps):
        """The defect does not matter here: it predicts nothing."""
        if background_latents is None:
            return jnp.zeros_like(latents), None
        noise_pred = self.background_fn(background_latents, timesteps)
        return jnp.zeros_like(latents), noise_pred


def background_error(toy, num_steps, inversion_time, iterations, replay=False):
    """Returns the background error of Algorithm 1, relative to the background."""
    levels = schedules.levels(1001, num_steps)
    up = schedules.inversion_table(ALPHAS, levels, inversion_time)
    down = schedules.sampling_table(ALPHAS, levels)

    @jax.jit
    def run(clean):
        noised, trajectory = inversion.masked_invert(
            toy.background_fn, clean, toy.mask, up, iterations, keep_trajectory=replay
        )
        return inversion.compose_sample(
            toy.pair_fn,
            inversion.start_latents(
                noised, toy.mask, jax.random.normal(jax.random.key(0), noised.shape)
            ),
            toy.mask,
            down,
            trajectory,
        )

    gap = inversion.hide_defect(run(toy.clean) - toy.clean, toy.mask)
    whole = inversion.hide_defect(toy.clean, toy.mask)
    return float(jnp.sqrt(jnp.sum(gap**2) / jnp.sum(whole**2)))


@pytest.fixture(scope="module")
def toy():
    return Toy()


@pytest.fixture(scope="module")
def errors(toy):
    return {
        method: {steps: background_error(toy, steps, *method) for steps in row}
        for method, row in PUBLISHED.items()
    }


def test_round_trip_errors_match_the_published_table(errors):
    for method, row in PUBLISHED.items():
        for steps, published in row.items():
            # Twice the published scatter: both sides are draws.
            assert errors[method][steps] == pytest.approx(published, rel=0.2), (
                method,
                steps,
            )


def test_round_trip_error_falls_with_the_number_of_steps(errors):
    for row in errors.values():
        found = [row[steps] for steps in sorted(row)]
        assert found == sorted(found, reverse=True)
        assert found[0] > 2 * found[-1]


def test_target_time_beats_source_time_and_fixed_points_beat_both(errors):
    order = [("source", 0), ("target", 0), ("target", 3), ("target", 10)]
    for steps in (10, 50, 200):
        found = [errors[method][steps] for method in order]
        assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("num_steps", [10, 50])
def test_replay_has_no_round_trip_error_at_all(toy, num_steps):
    assert background_error(toy, num_steps, "source", 0, replay=True) == 0


# A point mass has the exact noise e*(z, t) = (z - sqrt(alpha) z_0) / sqrt(1 - alpha).


@pytest.fixture
def point():
    rng = np.random.default_rng(1)
    mask = np.zeros((2, 6, 6, 1))
    mask[:, 1:4, 2:5] = 1
    return {
        "clean": rng.standard_normal((2, 6, 6, 4)) + 0.3,
        "noise": rng.standard_normal((2, 6, 6, 4)),
        "mask": mask,
    }


@pytest.mark.parametrize("timestep", [1, 300, 1000])
def test_point_mass_oracle_has_no_loss_and_recovers_the_background(point, timestep):
    """Lemma 3.1, in float64; then the library's loss on the same predictions."""
    signal, spread = np.sqrt(ALPHAS[timestep]), np.sqrt(1 - ALPHAS[timestep])
    noised = signal * point["clean"] + spread * point["noise"]
    seen = (1 - point["mask"]) * noised
    clean_seen = (1 - point["mask"]) * point["clean"]
    defect = (noised - signal * point["clean"]) / spread
    background = (seen - signal * clean_seen) / spread
    recovered = (1 - point["mask"]) * (seen - spread * background) / signal
    assert np.abs(recovered - clean_seen).max() < 1e-12
    arrays = [
        jnp.asarray(a, jnp.float32)
        for a in (point["noise"], defect, background, point["mask"])
    ]
    total, _ = disentanglement.loss(*arrays)
    assert total < 1e-10
    # Negative control: swapped branches do not have a small loss.
    swapped, _ = disentanglement.loss(arrays[0], arrays[2], arrays[1] * 0, arrays[3])
    assert swapped > 0.1


def test_joint_minus_masked_inversion_is_the_noise_of_the_hole(point):
    """Theorem 3.2: zero outside the mask, and closer to m * eps as alpha falls."""
    mask = jnp.asarray(point["mask"], jnp.float32)
    clean = jnp.asarray(point["clean"], jnp.float32)
    noise = jnp.asarray(point["noise"], jnp.float32)
    alpha = jnp.asarray(ALPHAS[1:], jnp.float32)

    def oracle(latents, timesteps, truth):
        level = alpha[timesteps][:, None, None, None]
        return (latents - jnp.sqrt(level) * truth) / jnp.sqrt(1 - level)

    def background_fn(latents, timesteps):
        return oracle(latents, timesteps, inversion.hide_defect(clean, mask))

    def composed(latents, timesteps):
        seen = background_fn(inversion.hide_defect(latents, mask), timesteps)
        return jnp.where(mask > 0.5, oracle(latents, timesteps, clean), seen)

    gaps = []
    for top in (300, 600, 999):
        levels = np.linspace(0, top, 31).round().astype(int)
        up = schedules.inversion_table(ALPHAS[1:], levels, "source", "first")
        # Start at the first level, where the oracle is defined, on the noised latents.
        first = np.sqrt(up.alpha_from[0]), np.sqrt(1 - up.alpha_from[0])
        start = first[0] * clean + first[1] * noise
        joint = ddim.walk(composed, start, up)
        alone, _ = inversion.masked_invert(background_fn, start, mask, up)
        apart = joint - alone
        assert jnp.all(inversion.hide_defect(apart, mask) == 0)
        last = np.sqrt(up.alpha_to[-1]), np.sqrt(1 - up.alpha_to[-1])
        wanted = mask * (last[0] * clean + last[1] * noise)
        # The oracle divides by sqrt(1 - alpha_0) = 0.03: 30 * 6e-8, times sigma = 14.6.
        np.testing.assert_allclose(apart, wanted, atol=1e-4)
        gaps.append(float(jnp.abs(apart - mask * noise).max()))
    assert gaps[0] > gaps[1] > gaps[2]
    # What is left at the end is the share of the clean latents, sqrt(alpha) = 0.068.
    assert gaps[2] < 0.1 * float(jnp.abs(clean).max())

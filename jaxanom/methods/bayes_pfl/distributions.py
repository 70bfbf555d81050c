"""Distributions over prompts: diagonal Gaussians pushed through planar flows.

One for the context tokens, which depends on the image ("image-specific", amortised),
and two for the state tokens, normal and abnormal, which do not ("image-agnostic").
The KL term is a one-sample estimate, log q_0(z_0) - log p(z_K) - log |det|, against the
standard normal p.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxanom.losses import denoising
from jaxanom.posterior import flows, gaussian
from jaxanom.types import Array, PRNGKey

VARIANCES = {"author": lambda h: jnp.exp(h / 2), "exact": jnp.exp}
"""How the encoder's second output becomes a variance; see the method's table."""


class Noise(NamedTuple):
    """Standard normal draws behind the R prompts of each of N images.

    Attributes:
      context: [N, R, D].
      normal, abnormal: [N or 1, R, D]; 1 shares them among the images.
    """

    context: Array
    normal: Array
    abnormal: Array


class Draw(NamedTuple):
    """R draws of one distribution; N is 1 where it does not depend on the image.

    Attributes:
      mean, variance: [N, 1, D] of the Gaussian.
      start: [N, R, D], z_0.
      end: [N, R, D], z_K.
      logdet: [N, R].
    """

    mean: Array
    variance: Array
    start: Array
    end: Array
    logdet: Array


class Draws(NamedTuple):
    """The three distributions' draws."""

    context: Draw
    normal: Draw
    abnormal: Draw


def noise(
    key: PRNGKey, num_rows: int, num_draws: int, width: int, shared_state: bool = True
) -> Noise:
    """Draws the noise of a training step."""
    key_context, key_normal, key_abnormal = jax.random.split(key, 3)
    state = (1 if shared_state else num_rows, num_draws, width)
    return Noise(
        jax.random.normal(key_context, (num_rows, num_draws, width)),
        jax.random.normal(key_normal, state),
        jax.random.normal(key_abnormal, state),
    )


def row_noise(
    key: PRNGKey, seeds: Array, num_draws: int, width: int, shared_state: bool = True
) -> Noise:
    """Draws the noise of a prediction, a function of (key, the row's own seed).

    Args:
      key: The run's key.
      seeds: [N] uint32, from `features.row_seeds`; rows do not feel their neighbours.
      num_draws: R.
      width: D.
      shared_state: One draw of the state noise for the whole run, as the authors cache
        it; else one per image.
    """
    key_context, key_normal, key_abnormal = jax.random.split(key, 3)
    shape = (num_draws, width)

    def rows(key: PRNGKey, shared: bool = False) -> Array:
        if shared:
            return jax.random.normal(key, shape)[None]
        keys = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(seeds)
        return jax.vmap(lambda one: jax.random.normal(one, shape))(keys)

    states = (rows(key, shared_state) for key in (key_normal, key_abnormal))
    return Noise(rows(key_context), *states)


class Mlp(nn.Module):
    """Three dense layers with softplus between them."""

    hidden: int
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., D] -> [..., width]."""
        for i in range(2):
            x = jax.nn.softplus(nn.Dense(self.hidden, name=f"layers_{i}")(x))
        return nn.Dense(self.width, name="layers_2")(x)


class Encoder(nn.Module):
    """Mean and variance of a diagonal Gaussian, by two networks."""

    hidden: int
    width: int
    variance: str

    def setup(self):
        """Names the two networks."""
        self.mean = Mlp(self.hidden, self.width)
        self.spread = Mlp(self.hidden, self.width)

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """[..., D] -> mean [..., D], variance [..., D]."""
        return self.mean(x), VARIANCES[self.variance](self.spread(x))


class AmortisedFlow(nn.Module):
    """Planar flow whose parameters are linear in the image feature."""

    num_steps: int

    @nn.compact
    def __call__(self, x: Array) -> flows.Planar:
        """[N, D] -> Planar over [N]."""
        shape = (x.shape[0], self.num_steps, x.shape[-1])
        u, w = (
            nn.Dense(shape[1] * shape[2], name=name)(x).reshape(shape)
            for name in ("u", "w")
        )
        return flows.Planar(u, w, nn.Dense(self.num_steps, name="b")(x))


class FreeFlow(nn.Module):
    """Planar flow and encoder input that are parameters themselves."""

    num_steps: int
    width: int

    @nn.compact
    def __call__(self) -> tuple[Array, flows.Planar]:
        """Returns the encoder's input [1, D] and a Planar over [1]."""
        init, shape = nn.initializers.normal(1.0), (self.num_steps, self.width)
        state = self.param("state", init, (self.width,))
        u, w = self.param("u", init, shape), self.param("w", init, shape)
        b = self.param("b", init, (self.num_steps,))
        return state[None], flows.Planar(u[None], w[None], b[None])


def draw(
    gaussian_of: tuple[Array, Array], flow: flows.Planar, eps: Array, constraint: Any
) -> Draw:
    """Draws by reparameterisation and pushes through the flow.

    Args:
      gaussian_of: (mean, variance), [N or 1, D] each.
      flow: Planar steps over [N or 1].
      eps: [N, R, D].
      constraint: What keeps the flow invertible, see `flows.push`.
    """
    mean, variance = (x[:, None] for x in gaussian_of)  # [N, 1, D]
    start = gaussian.draw(mean, variance, eps)  # [N, R, D]
    per_draw = flows.Planar(flow.u[:, None], flow.w[:, None], flow.b[:, None])
    end, logdet = flows.push(start, per_draw, constraint)
    return Draw(mean, variance, start, end, logdet)


def no_draw(eps: Array) -> Draw:
    """Returns a draw that shifts nothing and has no divergence, like eps [N, R, D]."""
    zeros = jnp.zeros_like(eps)
    first = zeros[:, :1]
    return Draw(first, jnp.ones_like(first), zeros, zeros, zeros[..., 0])


def kl_image_specific(drawn: Draw, valid: Array | None = None) -> Array:
    """Mean of the KL estimate over images and draws, a scalar.

    Args:
      drawn: Draws of N images.
      valid: [N] bool, False on padding rows.
    """
    per_image = jnp.mean(_excess(drawn) - drawn.logdet, -1)  # [N]
    return denoising.row_mean(per_image, valid)


def kl_image_agnostic(drawn: Draw, num_images: Array | int, logdet: str) -> Array:
    """The KL estimate of a distribution that N images share, a scalar.

    Args:
      drawn: One row of draws; where each image has its own, the KL is the above.
      num_images: N, the valid rows of the batch.
      logdet: "author" divides the log-determinant by N, as the released code's
        broadcasting does; "exact" does not.
    """
    share = 1.0 / num_images if logdet == "author" else 1.0
    return jnp.mean(_excess(drawn) - share * drawn.logdet)


def _excess(drawn: Draw) -> Array:
    """log q_0(z_0) - log p(z_K), [N, R]."""
    inside = gaussian.logdensity(drawn.start, drawn.mean, drawn.variance)
    return inside - gaussian.standard_logdensity(drawn.end)

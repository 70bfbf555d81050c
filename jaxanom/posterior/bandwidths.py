"""Bandwidth rules: squared distances -> h, as pairs (init, update).

Rules see the whole [P, P] matrices, so they say the same wherever the particles live.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxanom.errors import UserError
from jaxanom.posterior import kernels
from jaxanom.posterior.pairs import matmul
from jaxanom.types import Array

FLOOR = 1e-10
"""Least h: where particles coincide the median is 0, and forces go with 1/h."""

MEDIANS = ("midpoint", "upper", "offdiag")
MODES = ("exact", "subsample", "histogram", "lagged")
MISFITS = ("scale_free", "released")


class Rule(NamedTuple):
    """A bandwidth rule.

    Attributes:
      init: dtype -> state.
      update: (squared distances [P, P], inner products [P, P] of the centred particles,
        columns D, state) -> (h, state).
    """

    init: Callable[[Any], Any]
    update: Callable[[Array, Array, int, Any], tuple[Array, Any]]


def fixed(value: float) -> Rule:
    """The same h always.

    Raises:
      UserError: It is not positive.
    """
    if value <= 0:
        raise UserError(f"bandwidth={value}; wanted a positive number")
    return Rule(
        init=lambda dtype: (),
        update=lambda r2, inner, columns, state: (jnp.asarray(value, r2.dtype), state),
    )


def median(rule: str = "midpoint", mode: str = "exact", num_pairs: int = 4096) -> Rule:
    """h = median(r2) / (2 log(P + 1)), so that a row of the gram matrix sums to ~1.

    Args:
      rule: Which median, see `median_of`.
      mode: "exact" sorts all of them; "subsample" the same `num_pairs` places every
        time; "histogram" counts bins and refines once; "lagged" uses the exact value of
        the step before (of the first step, its own), so that nothing waits for it.
      num_pairs: How many places "subsample" looks at.

    Raises:
      UserError: An unknown rule or mode.
    """
    if rule not in MEDIANS or mode not in MODES:
        raise UserError(
            f"median rule {rule!r}, mode {mode!r}; choose one of {MEDIANS} and one of "
            f"{MODES}"
        )

    def update(r2, inner, columns, state):
        own = scaled(median_of(r2, rule, mode, num_pairs), r2.shape[0])
        if mode != "lagged":
            return own, state
        return jnp.where(state > 0, state, own), own

    def init(dtype):
        return jnp.zeros((), dtype) if mode == "lagged" else ()

    return Rule(init, update)


def scaled(median_r2: Array, num_particles: int) -> Array:
    """Returns h of a median; 1 for a single particle, never below `FLOOR`."""
    if num_particles == 1:
        return jnp.ones_like(median_r2)
    return jnp.maximum(median_r2 / (2 * jnp.log(num_particles + 1.0)), FLOOR)


def median_of(
    r2: Array, rule: str = "midpoint", mode: str = "exact", num_pairs: int = 4096
) -> Array:
    """Returns a median of squared distances [P, P].

    Args:
      r2: [P, P] with its zero diagonal.
      rule: "midpoint" over all P^2 entries (the script of arXiv 1608.04471); "upper",
        the upper of the two middle entries (that of arXiv 1807.01750); "offdiag",
        midpoint over pairs of different particles. For two particles the first is half
        of the others.
      mode, num_pairs: How it is found, see `median`.
    """
    entries = r2.reshape(-1)
    if rule == "offdiag" and r2.shape[0] > 1:  # one particle has no pair
        entries = r2[jnp.triu_indices(r2.shape[0], 1)]
    count = entries.shape[0]
    if mode == "subsample" and count > num_pairs:
        places = jax.random.randint(jax.random.key(0), (num_pairs,), 0, count)
        entries, count = entries[places], num_pairs
    if mode == "histogram":
        entry = lambda rank: _ranked(entries, rank)  # noqa: E731
    else:
        entry = jnp.sort(entries).__getitem__
    upper = entry(count // 2)
    if rule == "upper" or count % 2:
        return upper
    return (upper + entry(count // 2 - 1)) / 2


def _ranked(entries: Array, rank: int, num_bins: int = 512) -> Array:
    """Entry above `rank` others, to 1 / num_bins^2 of the range: counts, then again."""
    low, high = jnp.zeros((), entries.dtype), jnp.max(entries)
    below = jnp.zeros((), jnp.int32)
    for _ in range(2):
        width = jnp.maximum((high - low) / num_bins, jnp.finfo(entries.dtype).tiny)
        places = jnp.floor((entries - low) / width).astype(jnp.int32)
        inside = (entries >= low) & (entries <= high)
        counts = jnp.zeros(num_bins, jnp.int32)
        counts = counts.at[jnp.clip(places, 0, num_bins - 1)].add(inside)
        reached = below + jnp.cumsum(counts)
        number = jnp.argmax(reached > rank)
        below = reached[number] - counts[number]
        low, high = low + number * width, low + (number + 1) * width
    return (low + high) / 2


def heat_equation(
    factor: float = 1.1, rule: str = "upper", form: str = "scale_free"
) -> Rule:
    """Lets the smoothed density follow the heat equation (arXiv 1807.01750, sec. 4).

    One line-search step an iteration in kappa = 1/h, from the last one (first: of the
    median): try kappa times or over `factor`, against the slope's sign; fit a parabola
    through value, slope and trial; keep the best of the three.

    A density in many dimensions wants a narrow kernel: four normal particles in 4096
    end at h = 250 with k = 1e-7 between two of them, so that they hardly push.

    Args:
      factor: What kappa is multiplied with or divided by on trial.
      rule: Which median the first step starts at.
      form: How the misfit is scaled, see `heat_misfit`.

    Raises:
      UserError: An unknown form.
    """
    if form not in MISFITS:
        raise UserError(f"heat equation with form={form!r}; choose one of {MISFITS}")

    def update(r2, inner, columns, state):
        first = scaled(median_of(r2, rule), r2.shape[0])
        if r2.shape[0] == 1:
            return first, first
        start = jnp.where(state > 0, state, first)
        kappa = _line_search(
            lambda kappa: heat_misfit(r2, inner, columns, kappa, form),
            1 / start,
            factor,
        )
        bandwidth = jnp.maximum(1 / kappa, FLOOR)
        return bandwidth, bandwidth

    # What the search found last; 0 before the first step.
    return Rule(lambda dtype: jnp.zeros((), dtype), update)


def heat_misfit(
    r2: Array, inner: Array, columns: int, kappa: Array, form: str = "scale_free"
) -> Array:
    """Logarithm of how far the smoothed density is from the heat equation.

    The sum over particles of (d/dt - Laplacian)^2, which goes with kappa^(D + 2) where
    particles and kernel are enlarged together. Its factor kappa^D stays in logarithms,
    or D in the thousands would overflow.

    Args:
      r2: [P, P].
      inner: [P, P], G = x x^T of the centred particles (any origin gives the same).
      columns: D.
      kappa: 1/h.
      form: "scale_free" divides by kappa^(D + 2); "released" by kappa^4, as a slip of
        precedence makes the authors' code do whatever it is asked: the least is then
        sought by a wide kernel rather than by a good one, and for D well above 2 h
        grows without end.
    """
    chex.assert_equal_shape([r2, inner])
    gram = kernels.rbf(r2, 1 / kappa).value
    density = gram.sum(1)  # S
    shares = gram / density[None, :]  # W_ik = K_ik / S_k
    mixed = (gram * inner).sum(1)  # K o G 1
    terms = (
        (r2 * gram).sum(1)
        - mixed
        + matmul(gram, jnp.diagonal(inner))
        + (matmul(inner, gram) * shares).sum(1)
        - matmul(shares, mixed)
    )
    left = kappa**2 * terms - kappa * columns * density
    power = {"scale_free": -2, "released": columns - 4}[form]
    return jnp.log(jnp.sum(left**2)) + power * jnp.log(kappa)


def _line_search(log_misfit, start: Array, factor: float) -> Array:
    """One step on exp(log_misfit), all of it relative to the value at `start`."""
    reference = log_misfit(start)
    misfit = lambda kappa: jnp.exp(log_misfit(kappa) - reference)  # noqa: E731
    slope = jax.grad(misfit)(start)
    trial = jnp.where(slope < 0, start * factor, start / factor)
    value = misfit(trial)
    gap = trial - start
    curvature = 2 * (value - 1 - slope * gap) / gap**2
    fitted = start - slope / jnp.where(curvature > 0, curvature, 1.0)
    usable = (curvature > 0) & (fitted > 0) & jnp.isfinite(slope)
    fitted = jnp.where(usable, fitted, start)
    choices = jnp.stack([start, trial, fitted])
    values = jnp.stack([jnp.ones_like(value), value, misfit(fitted)])
    return choices[jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))]

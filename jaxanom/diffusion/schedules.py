"""Noise schedules, and the tables of moves that a run of DDIM makes over them.

Everything here is float64 numpy on the host and is cast once, into a `Table`. One array
of levels tau_0 < ... < tau_S feeds both directions, so that sampling visits exactly the
noise levels which inversion visited; nothing else in the library does index arithmetic.
"""

from typing import NamedTuple

import numpy as np

from jaxanom.errors import UserError, check_choice
from jaxanom.types import Array

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("linspace", "leading", "trailing")
INVERSION_TIMES = ("source", "target")
FINAL_ALPHAS = ("one", "first")


class Table(NamedTuple):
    """The moves of a walk, one row per move; `lax.scan` takes it row by row.

    Attributes:
      timesteps: [S] int32, what the network is told when it leaves a level.
      alpha_from, alpha_to: [S] float32, cumulative products at both ends of the move.
      sigma_from, sigma_to: [S] float32, sqrt(1 / alpha - 1), computed in float64.
      timesteps_to: [S] int32, the level that the move arrives at; only fixed-point
        iterations of the inversion read it.
    """

    timesteps: Array | np.ndarray
    alpha_from: Array | np.ndarray
    alpha_to: Array | np.ndarray
    sigma_from: Array | np.ndarray
    sigma_to: Array | np.ndarray
    timesteps_to: Array | np.ndarray


def betas(
    num_train_timesteps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    beta_schedule: str = "scaled_linear",
) -> np.ndarray:
    """Returns the variances of the forward steps, float64 [T].

    "linear" is arXiv 2006.11239; "scaled_linear" is linear in sqrt(beta), as latent
    diffusion models use it; "squaredcos_cap_v2" is arXiv 2102.09672, eq. 17, capped at
    0.999, and reads neither `beta_start` nor `beta_end`.
    """
    check_choice("beta_schedule", beta_schedule, BETA_SCHEDULES)
    if num_train_timesteps < 1:
        raise UserError(f"num_train_timesteps={num_train_timesteps} must be at least 1")
    if beta_schedule == "squaredcos_cap_v2":
        edges = np.arange(num_train_timesteps + 1) / num_train_timesteps
        alpha_bar = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    if not 0 < beta_start <= beta_end < 1:
        raise UserError(
            f"beta_start={beta_start}, beta_end={beta_end}: "
            "wanted 0 < beta_start <= beta_end < 1"
        )
    power = 0.5 if beta_schedule == "scaled_linear" else 1.0
    ends = beta_start**power, beta_end**power
    return np.linspace(*ends, num_train_timesteps, dtype=np.float64) ** (1 / power)


def alphas_cumprod(
    num_train_timesteps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    beta_schedule: str = "scaled_linear",
) -> np.ndarray:
    """Returns the cumulative products of 1 - beta, float64 [T]; see `betas`."""
    steps = betas(num_train_timesteps, beta_start, beta_end, beta_schedule)
    return np.cumprod(1 - steps)


def levels(
    num_train_timesteps: int,
    num_steps: int,
    spacing: str = "linspace",
    steps_offset: int = 0,
) -> np.ndarray:
    """Returns the noise levels of a run, int32 [S + 1], strictly increasing.

    tau_0 is the clean end, whose alpha the tables take from `final_alpha`. Spacings
    (arXiv 2305.08891, Table 2, names the last two):

    - "linspace": S equal moves from index 0 to index T - 1; the full grid.
    - "leading": tau_1 = `steps_offset` and a stride of T // S; stops short of T - 1.
    - "trailing": counts back from T - 1 in strides of T / S.

    The last two start at tau_0 = -1, one place before the first training index.

    Raises:
      UserError: the grid would repeat a level or leave [0, T - 1].
    """
    check_choice("spacing", spacing, SPACINGS)
    most = num_train_timesteps - 1 if spacing == "linspace" else num_train_timesteps
    _check_steps(num_steps, most, spacing, num_train_timesteps)
    if steps_offset and spacing != "leading":
        raise UserError(
            f"steps_offset={steps_offset} has no meaning with spacing={spacing!r}; "
            "set steps_offset=0 or spacing='leading'"
        )
    if spacing == "linspace":
        grid = np.linspace(0, num_train_timesteps - 1, num_steps + 1).round()
    elif spacing == "leading":
        stride = num_train_timesteps // num_steps
        grid = np.append(-1, np.arange(num_steps) * stride + steps_offset)
    else:
        stride = num_train_timesteps / num_steps
        down = np.round(num_train_timesteps - np.arange(num_steps) * stride) - 1
        grid = np.append(-1, down[::-1])
    if steps_offset < 0 or grid[-1] >= num_train_timesteps:
        raise UserError(
            f"steps_offset={steps_offset} puts the last level at {int(grid[-1])}; "
            f"wanted levels within [0, {num_train_timesteps - 1}]"
        )
    return grid.astype(np.int32)


def log_snr_levels(alphas_cumprod: np.ndarray, num_steps: int) -> np.ndarray:
    """Returns noise levels that are even in log sigma, int32 [S + 1], for few moves.

    arXiv 2206.00927, Sec. 3.4: half the log of the signal-to-noise ratio, -log sigma,
    is the time in which a solver's error is even. From index 1 to T - 1, each level at
    the nearest index; where the training indices lie wider apart than the levels, at
    the clean end, one after the other. tau_0 is index 0, as with "linspace".

    Args:
      alphas_cumprod: Float64 [T], decreasing.
      num_steps: S, at most T - 1.
    """
    last = len(alphas_cumprod) - 1
    _check_steps(num_steps, last, "log_snr", last + 1)
    alphas = np.asarray(alphas_cumprod, np.float64)[1:]
    log_sigma = 0.5 * np.log(1 / alphas - 1)  # of indices 1 to T - 1
    even = np.linspace(log_sigma[-1], log_sigma[0], num_steps)[::-1]
    nearest = 1 + np.abs(log_sigma - even[:, None]).argmin(1)
    number = np.arange(1, num_steps + 1)
    # No level twice, and room for those that follow.
    grid = np.maximum.accumulate(nearest - number) + number
    grid = np.minimum(grid, last - num_steps + number)
    return np.append(0, grid).astype(np.int32)


def inversion_table(
    alphas_cumprod: np.ndarray,
    levels: np.ndarray,
    inversion_time: str = "source",
    final_alpha: str = "one",
) -> Table:
    """Returns the moves tau_0 -> tau_S, from clean latents to noise.

    Args:
      alphas_cumprod: Float64 [T].
      levels: Int [S + 1], strictly increasing, from `levels`.
      inversion_time: The end of a move that the network is told of. "source" is eq. 8
        of arXiv 2411.16767; "target" is what inverse schedulers commonly do, and has
        the smaller round-trip error.
      final_alpha: Alpha at tau_0; "one" for exactly 1, "first" for alphas_cumprod[0].
    """
    check_choice("inversion_time", inversion_time, INVERSION_TIMES)
    alpha, sigma = _noise_levels(alphas_cumprod, levels, final_alpha)
    steps = _network_timesteps(levels)
    seen = steps[:-1] if inversion_time == "source" else steps[1:]
    return Table(seen, alpha[:-1], alpha[1:], sigma[:-1], sigma[1:], steps[1:])


def sampling_table(
    alphas_cumprod: np.ndarray, levels: np.ndarray, final_alpha: str = "one"
) -> Table:
    """Returns the moves tau_S -> tau_0, from noise to clean latents.

    Arguments are as in `inversion_table`; the network is told of the level it leaves.
    """
    alpha, sigma = _noise_levels(alphas_cumprod, levels, final_alpha)
    alpha, sigma = alpha[::-1], sigma[::-1]
    steps = _network_timesteps(levels)[::-1]
    return Table(steps[:-1], alpha[:-1], alpha[1:], sigma[:-1], sigma[1:], steps[1:])


def _check_steps(num_steps: int, most: int, spacing: str, total: int) -> None:
    if not 1 <= num_steps <= most:
        raise UserError(
            f"num_steps={num_steps} with spacing={spacing!r} and num_train_timesteps="
            f"{total}: wanted 1 <= num_steps <= {most}"
        )


def check_direction(table: Table, direction: str, caller: str) -> None:
    """Refuses a table that walks the other way; traced tables pass unseen.

    `direction` is "inversion" (noise grows) or "sampling" (noise falls), and `caller`
    is named in the message.
    """
    if not isinstance(table.sigma_from, np.ndarray):
        return
    first, last = table.sigma_from[0], table.sigma_to[-1]
    actual = "inversion" if last > first else "sampling"
    if actual != direction and first != last:
        raise UserError(
            f"{caller} walks a table of {direction} and was given one of {actual} "
            f"(sigma {first:.4g} -> {last:.4g}); build it with "
            f"schedules.{direction}_table"
        )


def _noise_levels(
    alphas_cumprod: np.ndarray, levels: np.ndarray, final_alpha: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns alpha and sigma at every level, float32 [S + 1] each."""
    check_choice("final_alpha", final_alpha, FINAL_ALPHAS)
    alphas = np.asarray(alphas_cumprod, np.float64)
    grid = np.asarray(levels)
    if alphas.ndim != 1 or np.any(alphas <= 0) or np.any(alphas > 1):
        raise UserError(
            f"alphas_cumprod of shape {alphas.shape} must be one row within (0, 1]"
        )
    rises = grid.ndim == 1 and grid.size > 1 and np.all(np.diff(grid) > 0)
    if not rises or grid[1] < 0 or grid[-1] >= alphas.size:
        raise UserError(
            f"levels={grid.tolist()} must be at least two, strictly increasing and, "
            f"after tau_0, within 0 to {alphas.size - 1}; see schedules.levels"
        )
    alpha = alphas[np.maximum(grid, 0)]
    alpha[0] = 1.0 if final_alpha == "one" else alphas[0]
    if np.any(np.diff(alpha) > 0):
        raise UserError("alphas_cumprod must not increase along the levels")
    sigma = np.sqrt(1 / alpha - 1)
    return alpha.astype(np.float32), sigma.astype(np.float32)


def _network_timesteps(levels: np.ndarray) -> np.ndarray:
    # tau_0 may lie before the first training index, which no network knows.
    return np.maximum(levels, 0).astype(np.int32)

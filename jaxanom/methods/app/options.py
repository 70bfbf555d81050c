"""`config.app`, read and checked; configs/app/base.py explains each key."""

import operator
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxanom import sections
from jaxanom.errors import UserError
from jaxanom.posterior import bandwidths, kernels, sharded, svgd, transport, wgf

TASKS = {"category": "category_id", "defect": "defect_id", "state": "label"}
"""Task -> the batch entry that holds its answer."""


class Particles(NamedTuple):
    """Keys of `config.app.particles`: how particles move."""

    update: str
    integrator: str
    rkhs: str
    space: str
    bandwidth: float
    bandwidth_rule: str
    median: str
    bandwidth_mode: str
    normalise: str
    ridge: float
    form: str
    preconditioned: bool
    temperature: float
    num_data: float
    step_size: float
    step_offset: float
    step_decay: float
    noise_seed: int
    backend: str


class Prior(NamedTuple):
    """Keys of `config.app.prior`: the density that pulls particles together."""

    support: str
    center: str
    layout: str
    train: str
    lambda_rule: str
    reg: float
    sigma2: float
    weight_decay: float


class Predict(NamedTuple):
    """Keys of `config.app.predict`: how particles and prior answer together."""

    average: str
    mix: str
    alpha: float
    reshuffled: bool


class Options(NamedTuple):
    """Keys of `config.app`."""

    task: str
    good_name: str
    bad_name: str
    defect_name: str
    template: str
    num_vectors: int
    num_particles: int
    init_std: float
    prompt_chunk: int
    class_chunk: int
    particles: Particles
    prior: Prior
    predict: Predict


CHOICES = {
    "task": tuple(TASKS),
    "particles.update": transport.FLOWS + transport.SAMPLERS,
    "particles.integrator": ("plain", "decay", "rms", "wag", "wnes", "polyak"),
    "particles.rkhs": tuple(kernels.NAMES),
    "particles.space": ("ctx", "token_mean", "text_features"),
    "particles.bandwidth_rule": ("median", "heat_equation", "heat_equation_released"),
    "particles.median": bandwidths.MEDIANS,
    "particles.bandwidth_mode": bandwidths.MODES,
    "particles.normalise": svgd.NORMALISATIONS,
    "particles.form": wgf.GFSF_FORMS,
    "particles.backend": ("auto", *sharded.BACKENDS),
    "prior.support": ("token_mean", "per_token"),
    "prior.center": ("batch", "dataset", "ema"),
    "prior.layout": ("per_image", "reference_reshuffle"),
    "prior.train": ("separate", "joint", "frozen_random"),
    "prior.lambda_rule": ("shots", "shots_squared", "sigma2"),
    "predict.average": ("logits", "probs", "features"),
    "predict.mix": ("logits", "probs"),
}
RANGES = {
    "num_particles": ("1 or more", lambda value: value >= 1),
    "particles.temperature": ("0 or more", lambda value: value >= 0),
    "particles.num_data": ("0 or more", lambda value: value >= 0),
    "prior.sigma2": ("above 0", lambda value: value > 0),
    "predict.alpha": ("0 to 1", lambda value: 0 <= value <= 1),
}


def read(section: Mapping[str, Any]) -> Options:
    """Reads `config.app`.

    Raises:
      UserError: A key that is unknown or missing, or a value that does not fit.
    """
    options = sections.read(section, Options, "config.app")
    kinds = {"particles": Particles, "prior": Prior, "predict": Predict}
    parts = {
        name: sections.read(section[name], kind, f"config.app.{name}")
        for name, kind in kinds.items()
    }
    options = options._replace(**parts)
    for key, known in CHOICES.items():
        value = operator.attrgetter(key)(options)
        if value not in known:
            raise UserError(f"config.app.{key}={value!r}; choose one of {known}")
    for key, (words, fits) in RANGES.items():
        value = operator.attrgetter(key)(options)
        if not fits(value):
            raise UserError(f"config.app.{key}={value}; wanted {words}")
    return options


def makes_whole_moves(particles: Particles) -> bool:
    """Returns whether the moves are more than directions for the optimiser."""
    return particles.update in transport.SAMPLERS or particles.integrator != "plain"


def check_moves(particles: Particles, phase: Mapping[str, Any], prior: Prior) -> None:
    """Refuses what does not fit together.

    Args:
      particles: How particles move.
      phase: `config.phases.particles`; whole moves must reach the particles as they
        are.
      prior: What is fitted at the same learning rate.

    Raises:
      UserError: Names the key.
    """
    update, space, backend = particles.update, particles.space, particles.backend
    apart, scaled = backend != "auto", particles.preconditioned
    for wrong, why in (
        (space != "ctx" and apart, f"space={space!r} needs backend='auto'"),
        (
            update not in transport.COUPLED and (scaled or apart),
            f"preconditioned={scaled}, backend={backend!r}: update={update!r} heeds "
            f"neither, only {transport.COUPLED} do; set them to False and 'auto'",
        ),
        (
            update == "noisy_svgd" and (space != "ctx" or scaled),
            "update='noisy_svgd' needs space='ctx' and preconditioned=False: its noise "
            "belongs to that kernel",
        ),
        (
            update in transport.SAMPLERS and particles.integrator != "plain",
            f"integrator={particles.integrator!r}: update={update!r} has steps of its "
            "own; set it to 'plain'",
        ),
    ):
        if wrong:
            raise UserError(f"config.app.particles.{why}")
    if makes_whole_moves(particles):
        _check_optimiser(particles, phase, prior)


def _check_optimiser(particles: Particles, phase: Any, prior: Prior) -> None:
    """Refuses an optimiser that bends whole moves, or whose rate bends others."""
    moves = f"update={particles.update!r}, integrator={particles.integrator!r}"
    settings = {"warmup_steps": 0, **phase}
    needed = transport.WHOLE_MOVES
    wrong = {k: settings.get(k) for k, v in needed.items() if settings.get(k) != v}
    if wrong:
        raise UserError(
            f"config.app.particles: {moves} makes its own steps, so "
            f"config.phases.particles must hold {needed}; it holds {wrong}"
        )
    factors = [
        factor
        for pattern, factor in settings.get("rate_factors", ())
        if re.fullmatch(pattern, "particles/context")
    ]
    if factors and factors[0] != 1:  # the first match holds
        raise UserError(
            f"config.phases.particles.rate_factors: {factors[0]} would scale the moves "
            f"of {moves}; set config.app.particles.step_size"
        )
    for key, value, other in (
        ("train", "joint", "separate"),
        ("center", "ema", "dataset"),
    ):
        if getattr(prior, key) == value:
            raise UserError(
                f"config.app.prior.{key}={value!r} learns at the learning rate of "
                f"phase particles, which is 1 with {moves}; set it to {other!r}"
            )

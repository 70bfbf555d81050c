"""`config.app.particles` -> the transport between gradient and optimiser.

Losses are per datum (`objective`), so the posterior of n data has temperature 1 / n:
`temperature / num_data` is what the transports are given, and the length of a step does
not depend on n.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from jaxanom.errors import UserError
from jaxanom.methods.app import model
from jaxanom.parallel import mesh as meshes
from jaxanom.posterior import (
    bandwidths,
    fields,
    kernels,
    sgld,
    sharded,
    svgd,
    transport,
    wgf,
)

FLOWS = ("svgd", "gfsd", "blob", "gfsf", "map")
SAMPLERS = ("noisy_svgd", "sgld", "psgld", "langevin")
UPDATES = FLOWS + SAMPLERS
COUPLED = ("svgd", "gfsd", "blob", "gfsf", "noisy_svgd")
"""Those in which particles feel one another, through an RKHS."""
KERNELS = tuple(kernels.NAMES)
OF_SAMPLERS = {
    "optimizer": "sgd",
    "momentum": 0.0,
    "learning_rate": 1.0,
    "schedule": "constant",
    "weight_decay": 0.0,
    "clip_norm": 0.0,
    "warmup_steps": 0,
}
"""Optimiser settings under which a sampler's moves reach the particles as they are."""
SPACES = ("ctx", "token_mean", "text_features")
BACKENDS = ("auto", *sharded.BACKENDS)
RULES = {
    "median": lambda options: bandwidths.median(options.median, options.bandwidth_mode),
    "heat_equation": lambda options: bandwidths.heat_equation(),
    "heat_equation_released": lambda options: bandwidths.heat_equation(form="released"),
}


class Options(NamedTuple):
    """Keys of `config.app.particles`.

    Attributes:
      update: a flow, whose directions the phase's optimiser follows, or a sampler,
        which makes its own steps.
      rkhs: "rbf", "imq" or "linear".
      space: where distances are measured: flattened vectors ("ctx"), their mean over
        tokens, or the normalised text features they lead to.
      bandwidth: h, or 0 for the rule.
      bandwidth_rule: "median", "heat_equation", or "heat_equation_released", whose h
        grows without end in many dimensions, see `bandwidths.heat_misfit`.
      median: see `bandwidths.median_of`.
      bandwidth_mode: see `bandwidths.median`.
      normalise: of SVGD, "mean" or "sum".
      ridge, form: of GFSF.
      preconditioned: scale by a running mean of squared gradients.
      temperature: of the posterior; 1 is the posterior, 0 leaves the push out.
      num_data: n; 0 is the number of training images, 1 the per-datum scale.
      step_size, step_offset, step_decay: a (b + k)^(-gamma) of samplers, per datum.
      noise_seed: of samplers.
      backend: how particles on several devices meet; "auto" leaves it to the compiler.
    """

    update: str = "svgd"
    rkhs: str = "rbf"
    space: str = "ctx"
    bandwidth: float = 0.0
    bandwidth_rule: str = "median"
    median: str = "midpoint"
    bandwidth_mode: str = "exact"
    normalise: str = "mean"
    ridge: float = 1e-2
    form: str = "compact"
    preconditioned: bool = False
    temperature: float = 1.0
    num_data: float = 0.0
    step_size: float = 1e-3
    step_offset: float = 1.0
    step_decay: float = 0.0
    noise_seed: int = 0
    backend: str = "auto"


def check(options: Options, phase: Any, prior: Any) -> None:
    """Refuses what does not fit together.

    Args:
      options: of the particles.
      phase: `config.phases.particles`; a sampler's moves must reach the particles as
        they are.
      prior: `config.app.prior`.

    Raises:
      UserError: names the key.
    """
    for key, known in (
        ("update", UPDATES),
        ("rkhs", KERNELS),
        ("space", SPACES),
        ("backend", BACKENDS),
        ("bandwidth_rule", tuple(RULES)),
        ("median", bandwidths.MEDIANS),
        ("bandwidth_mode", bandwidths.MODES),
        ("normalise", svgd.NORMALISATIONS),
        ("form", wgf.GFSF_FORMS),
    ):
        if getattr(options, key) not in known:
            raise UserError(
                f"config.app.particles.{key}={getattr(options, key)!r}; choose one of "
                f"{known}"
            )
    if options.temperature < 0 or options.num_data < 0:
        raise UserError(
            f"config.app.particles.temperature={options.temperature}, num_data="
            f"{options.num_data}; neither can be negative"
        )
    if options.space != "ctx" and options.backend != "auto":
        raise UserError(
            f"config.app.particles.space={options.space!r} needs backend='auto'"
        )
    if options.update not in COUPLED and (
        options.preconditioned or options.backend != "auto"
    ):
        raise UserError(
            f"config.app.particles.preconditioned={options.preconditioned}, backend="
            f"{options.backend!r}: update={options.update!r} heeds neither, they are "
            f"of {COUPLED}; set them to False and 'auto'"
        )
    if options.update == "noisy_svgd" and (
        options.space != "ctx" or options.preconditioned
    ):
        raise UserError(
            "config.app.particles.update='noisy_svgd' needs space='ctx' and "
            "preconditioned=False: its noise belongs to that kernel"
        )
    if options.update in SAMPLERS:
        _check_optimiser(options.update, phase, prior)


def _check_optimiser(update: str, phase: Any, prior: Any) -> None:
    """Refuses an optimiser that bends a sampler's moves, or whose rate bends others."""
    found = {"warmup_steps": 0, **phase}
    wrong = {k: found.get(k) for k, v in OF_SAMPLERS.items() if found.get(k) != v}
    if wrong:
        raise UserError(
            f"config.app.particles.update={update!r} makes its own steps, so "
            f"config.phases.particles must hold {OF_SAMPLERS}; found {wrong}"
        )
    factors = [
        factor
        for pattern, factor in found.get("rate_factors", ())
        if re.fullmatch(pattern, "particles/context")
    ]
    if factors and factors[0] != 1:  # the first match holds
        raise UserError(
            f"config.phases.particles.rate_factors: {factors[0]} would scale the moves "
            f"of update={update!r}, drift and noise alike; set "
            "config.app.particles.step_size"
        )
    if prior.train == "joint":
        raise UserError(
            f"config.app.prior.train='joint': with update={update!r} the learning rate "
            "is 1, at which its network diverges; set it to 'separate'"
        )
    if prior.center == "ema" and not 0 < prior.center_rate < 1:
        raise UserError(
            f"config.app.prior.center_rate={prior.center_rate}: with update={update!r} "
            "the learning rate is 1, so that this is a batch's share in the moving "
            "average; wanted above 0 and below 1"
        )


def temperature(options: Options, num_data: int) -> float:
    """Returns T such that exp(-L_i / T) is the density that particle i targets."""
    return options.temperature / (options.num_data or num_data)


def make(
    options: Options,
    num_data: int,
    tower: model.TextTower,
    mesh_config: Any,
) -> optax.GradientTransformation:
    """Builds the transport of phase "particles".

    Args:
      options: see above.
      num_data: number of training images.
      tower: for distances between text features.
      mesh_config: `config.mesh`, where a backend is asked for.
    """
    target_temperature = temperature(options, num_data)
    if options.update == "map":
        return optax.identity()
    noise = transport.noise_of(options.noise_seed)
    step_size = functools.partial(
        sgld.step_size,
        scale=options.step_size,
        offset=options.step_offset,
        decay=options.step_decay,
    )
    if options.update == "sgld":
        made = transport.langevin(step_size, noise, target_temperature)
    elif options.update == "langevin":
        made = transport.langevin(lambda k: 2 * step_size(k), noise, target_temperature)
    elif options.update == "psgld":
        made = transport.preconditioned_langevin(
            sgld.Preconditioner(), step_size, noise, target_temperature
        )
    else:
        made = _coupled(
            options, target_temperature, tower, mesh_config, step_size, noise
        )
    return transport.only("particles", made)


def _coupled(options, temperature, tower, mesh_config, step_size, noise):
    """Flows, and SVGD with its noise."""
    if options.bandwidth:
        rule = bandwidths.fixed(options.bandwidth)
    else:
        rule = RULES[options.bandwidth_rule](options)
    flow = {
        "svgd": lambda: svgd.flow(options.normalise),
        "noisy_svgd": lambda: svgd.flow(options.normalise),
        "gfsd": wgf.gfsd,
        "blob": wgf.blob,
        "gfsf": lambda: wgf.gfsf(options.ridge, options.form),
    }[options.update]
    field = fields.Field(
        flow=flow(),
        between=kernels.NAMES[options.rkhs](),
        bandwidth=rule,
        temperature=temperature,
        metric=fields.Metric() if options.preconditioned else None,
    )
    velocity = fields.velocity
    if options.backend != "auto":
        sizes = {axis: mesh_config[axis] for axis in meshes.AXES}
        mesh = meshes.make_mesh(**sizes)
        velocity = sharded.velocity(mesh, meshes.PARTICLE_AXIS, options.backend)
    if options.update == "noisy_svgd":
        return transport.noisy(field, step_size, noise, velocity)
    return transport.of_flow(field, velocity, _embedding(options.space, tower))


def _embedding(space: str, tower: model.TextTower) -> Callable | None:
    """Returns where particles are compared, or None for their own space."""
    if space == "ctx":
        return None

    def embed(tree, *, frozen=None, **_):
        (context,) = jax.tree.leaves(tree)  # [P, N, d]
        if space == "token_mean":
            return context.mean(1)
        found = model.text_features(tower, frozen["text"], context)
        return found.reshape(context.shape[0], -1)

    return embed

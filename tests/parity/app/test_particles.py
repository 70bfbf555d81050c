"""Flows, integrators and Stein discrepancies against AWGF (arXiv 1807.01750)."""

import ast
import functools

import app_goldens as goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from densities import trajectory

from jaxanom.posterior import (
    bandwidths,
    fields,
    integrators,
    kernels,
    ksd,
    sgld,
    svgd,
    wgf,
)

RUNS = [
    key.removesuffix("/params")
    for key in goldens.names_in("parvi")
    if key.endswith("/params")
]
TARGETS = sorted({run.split("/")[0] for run in RUNS})
# The line search of the heat-equation rule compares nearly equal numbers and may turn
# the other way in float32: it is repeatable in float64 alone.
CASES = [
    pytest.param(run, precise, id=f"{run}-{'f64' if precise else 'f32'}")
    for run in RUNS
    for precise in (True, False)
    if precise or "_he" not in run
]


def grad_log_p(arrays, target, dtype):
    if f"{target}_precision" in arrays:
        mean, precision = (
            np.asarray(arrays[f"{target}_{key}"], dtype) for key in ("mu", "precision")
        )
        return lambda x: -(x - mean) @ precision
    weights, means, variances = (
        np.asarray(arrays[f"{target}_{key}"], dtype) for key in ("w", "mu", "var")
    )

    def log_p(x):
        exponent = -0.5 * jnp.sum((x - means) ** 2, -1) / variances
        norms = np.log(weights) - 0.5 * x.shape[0] * np.log(variances)
        return jax.nn.logsumexp(norms + exponent)

    return jax.vmap(jax.grad(log_p))


def field_of(said):
    rules = {
        "med": lambda: bandwidths.median("upper"),
        "fix": lambda: bandwidths.fixed(said["bwVal"]),
        "he": lambda: bandwidths.heat_equation(form="released"),
    }
    flows = {
        "SVGD": lambda: svgd.flow(normalised_density=said.get("dnNormalize", False)),
        "Blob": wgf.blob,
        "GFSD": wgf.gfsd,
        "GFSF": lambda: wgf.gfsf(said["dnRidge"], form="reference"),
    }
    return fields.Field(flows[said["dnType"]](), bandwidth=rules[said["bwType"]]())


def integrator_of(said):
    step_size = said["stepsize"]
    scaling = {
        "gd": lambda: integrators.constant(step_size),
        "sgd": lambda: integrators.decay(step_size, said["optExpo"], said["optIter0"]),
        "adag": lambda: integrators.rms(step_size, said["optRemem"], said["optFudge"]),
    }[said["optType"]]()
    return {
        "wgd": lambda: integrators.plain(scaling),
        "wnag": lambda: integrators.wag(scaling, said["accRemem"]),
        "wnes1": lambda: integrators.wnes(
            scaling, said["accHessBnd"], said["accShrink"]
        ),
        "po": lambda: integrators.polyak(
            scaling, said["accRemem"], said["accNoise"], said["accExpo"]
        ),
    }[said["accType"]]()


def langevin(grads, said, start, noise):
    def step(x, xi):
        moved = x + sgld.langevin_move(grads(x), said["stepsize"], xi)
        return moved, (moved, (moved - x) / said["stepsize"])

    return jax.lax.scan(step, start, noise)[1]


def flow(grads, said, start, noise):
    field = field_of(said)

    def velocity(x, state):
        return fields.velocity(field, state, x, grads(x))

    return trajectory(
        velocity,
        fields.init(field, start),
        integrator_of(said),
        start,
        noise.shape[0],
        noise,
    )


@pytest.mark.parametrize(("run", "precise"), CASES)
def test_a_run_of_the_released_code_is_walked_again(run, precise):
    arrays = goldens.load("parvi")
    target = run.split("/")[0]
    said = ast.literal_eval(str(arrays[f"{run}/params"]))
    with goldens.precision(precise) as dtype:
        start = np.asarray(arrays[f"{target}_x0"], dtype)
        num_steps = arrays[f"{run}/v"].shape[0]
        noise = np.asarray(arrays[f"{target}_noise"][:num_steps], dtype)
        grads = grad_log_p(arrays, target, dtype)
        walk = langevin if said["dnType"] == "LD" else flow
        found = jax.jit(functools.partial(walk, grads, said))(start, noise)
    # The README's: float64 1e-9, with the line search 1e-6; float32 1e-5, and 1e-4
    # where a matrix is inverted.
    limit = 1e-9 if said["bwType"] != "he" else 1e-6
    if not precise:
        limit = 1e-4 if said["dnType"] == "GFSF" else 1e-5
    walked, reported = found
    goldens.assert_within(walked, arrays[f"{run}/x"][1:], limit)
    if said["dnType"] == "LD":
        if precise:  # a float32 move over eps has 1e-7 / eps left of it
            goldens.assert_within(reported, arrays[f"{run}/v"], limit)
        return
    velocity, info = reported
    # Recorded bandwidths, and velocities where no later scaling changed them.
    wanted = arrays[f"{run}/bandwidth"]
    relative = 1e-4 if said["bwType"] == "he" else max(limit, 1e-9)
    np.testing.assert_allclose(info["bandwidth"], wanted, rtol=relative)
    if said["optType"] == "adag":  # recorded after the scaling
        x = arrays[f"{run}/x"][:1]
        velocity = np.diff(np.concatenate([x, walked]), axis=0) / said["stepsize"]
    if precise:
        goldens.assert_within(velocity, arrays[f"{run}/v"], limit)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["rbf", "imq"])
def test_stein_discrepancies_are_the_derived_ones(target, name):
    arrays = goldens.load("parvi")
    goldens.wanted(arrays, f"{target}_ksd_{name}")
    profile, h = {"rbf": (kernels.rbf, 0.7), "imq": (kernels.imq(1.0, -0.5), 1.0)}[name]
    with goldens.precision(True) as dtype:
        x = np.asarray(arrays[f"{target}_x0"], dtype)
        grads = grad_log_p(arrays, target, dtype)(x)
        found = ksd.stein_matrix(jnp.asarray(x), grads, h, profile)
        squared = ksd.statistics(found)
    goldens.assert_within(grads, arrays[f"{target}_score0"], 1e-9)
    goldens.assert_within(found, arrays[f"{target}_ksd_{name}_matrix"], 1e-9)
    goldens.assert_within(np.stack(squared), arrays[f"{target}_ksd_{name}"], 1e-9)


def test_another_median_is_noticed():
    """Negative control: the rule over pairs is far from these files."""
    arrays = goldens.load("parvi")
    runs = [r for r in RUNS if r.endswith("/svgd_med")]
    if not runs:
        pytest.skip("this set has no svgd_med")
    run, target = runs[0], runs[0].split("/")[0]
    with goldens.precision(True) as dtype:
        x = jnp.asarray(arrays[f"{target}_x0"], dtype)
        field = fields.Field(svgd.flow(), bandwidth=bandwidths.median("offdiag"))
        grads = grad_log_p(arrays, target, dtype)(x)
        found, _, _ = fields.velocity(field, fields.init(field, x), x, grads)
        found = np.asarray(found)
    assert np.abs(found - arrays[f"{run}/v"][0]).max() > 1e-6

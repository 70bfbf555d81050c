import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from densities import starts

from jaxanom.posterior import bandwidths, pairs


@functools.partial(jax.jit, static_argnums=(0, 2))
def walk(rule, x, steps):
    r2 = pairs.squared_distances(x)
    centred = x - x.mean(0)

    def step(state, _):
        found, state = rule.update(r2, centred @ centred.T, x.shape[1], state)
        return state, found

    return jax.lax.scan(step, rule.init(x.dtype), None, length=steps)[1][-1]


def bandwidth_of(rule, x, steps=1):
    return float(walk(rule, x, steps))


def test_two_particles_have_two_medians():
    r2 = jnp.array([[0.0, 4.0], [4.0, 0.0]])
    assert float(bandwidths.median_of(r2, "midpoint")) == 2.0
    assert float(bandwidths.median_of(r2, "upper")) == 4.0
    assert float(bandwidths.median_of(r2, "offdiag")) == 4.0


def test_the_median_rule_makes_a_typical_row_sum_to_about_two():
    # k at the median distance is 1 / (P + 1): P of them and the particle itself.
    x = starts(9, 5)
    r2 = pairs.squared_distances(x)
    found = bandwidth_of(bandwidths.median("upper"), x)
    typical = jnp.exp(-bandwidths.median_of(r2, "upper") / (2 * found))
    assert float(typical) == pytest.approx(1 / 10, rel=1e-5)


RULES = [
    *(
        bandwidths.median(rule, mode)
        for rule in bandwidths.MEDIANS
        for mode in bandwidths.MODES
    ),
    *(bandwidths.heat_equation(form=form) for form in bandwidths.MISFITS),
]


@pytest.mark.parametrize("rule", RULES)
def test_one_particle_has_bandwidth_one(rule):
    assert bandwidth_of(rule, jnp.array([[3.0, 4.0]])) == 1.0


@pytest.mark.parametrize("rule", RULES)
def test_coincident_particles_have_a_positive_bandwidth(rule):
    assert 0 < bandwidth_of(rule, jnp.ones((4, 6))) < 1e-6


def test_all_modes_agree_on_a_cloud():
    x = starts(40, 6, seed=3)
    exact = bandwidth_of(bandwidths.median(), x)
    assert bandwidth_of(bandwidths.median(mode="lagged"), x) == exact
    near = bandwidth_of(bandwidths.median(mode="histogram"), x)
    assert near == pytest.approx(exact, rel=5e-3)  # the gap between neighbours
    some = bandwidth_of(bandwidths.median(mode="subsample", num_pairs=400), x)
    # The median of 400 draws lies within 2 / sqrt(400) of rank one half.
    assert some == pytest.approx(exact, rel=0.15)


@pytest.mark.parametrize("rule", bandwidths.MEDIANS)
@pytest.mark.parametrize("num_particles", [4, 5])
def test_a_histogram_finds_the_median_of_its_rule(float64, rule, num_particles):
    """A few particles have wide gaps between the middle entries."""
    x = starts(num_particles, 6, seed=3)
    r2 = pairs.squared_distances(x)
    found = bandwidth_of(bandwidths.median(rule, "histogram"), x)
    wanted = bandwidth_of(bandwidths.median(rule), x)
    # One bin of the second count, over 2 log(P + 1) > 2.
    assert found == pytest.approx(wanted, abs=float(r2.max()) / 512**2)


def test_a_lagged_median_is_that_of_the_step_before():
    rule = bandwidths.median(mode="lagged")
    near, far = (pairs.squared_distances(s * starts(5, 2)) for s in (1.0, 3.0))
    first, state = rule.update(near, near, 2, rule.init(jnp.float32))
    second, state = rule.update(far, far, 2, state)
    third, _ = rule.update(far, far, 2, state)
    assert float(second) == float(first) != float(third)


def test_the_heat_equation_misfit_does_not_see_where_the_origin_is(float64):
    x = starts(6, 3)
    r2 = pairs.squared_distances(x)
    found = [
        float(bandwidths.heat_misfit(r2, y @ y.T, 3, jnp.asarray(1.3)))
        for y in (x, x + np.array([3.0, -1.0, 2.0]))
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-9)


def test_the_line_search_walks_to_a_minimum(float64):
    x = starts(20, 2)
    r2, inner = pairs.squared_distances(x), (x - x.mean(0)) @ (x - x.mean(0)).T
    misfit = jax.jit(lambda h: bandwidths.heat_misfit(r2, inner, 2, 1 / h))
    start = bandwidth_of(bandwidths.median("upper"), x)
    found = bandwidth_of(bandwidths.heat_equation(), x, steps=60)
    assert misfit(found) < misfit(start)
    assert misfit(found) <= min(misfit(0.99 * found), misfit(1.01 * found)) + 1e-6


@pytest.mark.parametrize("spread", [0.02, 1.0])
def test_the_heat_equation_settles_in_thousands_of_dimensions(spread):
    x = jnp.asarray(starts(4, 4096, spread=spread), jnp.float32)
    earlier, later = (
        bandwidth_of(bandwidths.heat_equation(), x, steps) for steps in (150, 200)
    )
    assert later == pytest.approx(earlier, rel=1e-2)
    typical = float(bandwidths.median_of(pairs.squared_distances(x), "offdiag"))
    assert 1 < typical / later < 100
    # Negative control: the released form grows by its trial's factor at each step.
    released = bandwidths.heat_equation(form="released")
    grown = bandwidth_of(released, x, 200) / bandwidth_of(released, x, 150)
    assert grown > 1.1**49


def test_the_heat_equation_knows_no_unit_of_length(float64):
    x = starts(6, 5)
    small, large = (
        bandwidth_of(bandwidths.heat_equation(), scale * x, 100) for scale in (1, 100)
    )
    # At a minimum the misfit is flat: half of the digits.
    assert large == pytest.approx(1e4 * small, rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: bandwidths.fixed(0.0),
        lambda: bandwidths.median("mean"),
        lambda: bandwidths.median(mode="guess"),
        lambda: bandwidths.heat_equation(form="a"),
    ],
)
def test_unknown_rules_are_refused(make):
    with pytest.raises(ValueError):
        make()

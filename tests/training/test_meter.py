import jax
import jax.numpy as jnp
import pytest

from jaxanom.training import meter


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_rates_follow_from_steps_rows_and_seconds():
    clock = Clock()
    watch = meter.Meter(num_devices=2, peak_flops=1e9, clock=clock)
    for _ in range(10):
        watch.tick(8)
    clock.now += 5.0
    found = watch.read(steps_left=20, flops=1e8)
    assert found == pytest.approx(
        {
            "steps_per_s": 2.0,
            "images_per_s_per_device": 8.0,
            "eta_s": 10.0,
            "flop_utilisation": 0.2,
        }
    )


def test_paused_time_is_left_out():
    clock = Clock()
    watch = meter.Meter(num_devices=1, clock=clock)
    watch.tick(1)
    clock.now += 1.0
    with watch.paused():
        clock.now += 60.0
    assert watch.read(0)["steps_per_s"] == pytest.approx(1.0)


@pytest.mark.parametrize(("seconds", "ahead"), [(0.01, 4), (0.8, 2)])
def test_fewer_long_steps_than_short_ones_are_on_their_way(seconds, ahead):
    clock = Clock()
    watch = meter.Meter(num_devices=1, clock=clock)
    with watch.paused():
        clock.now += 60.0  # compiling is no step
    watch.tick(1)
    assert watch.ahead() == 1, "nobody knows yet how long they are"
    # The first is waited for; some are handed over at once, and waited for later.
    for step in (seconds, 0.0, seconds, 0.0, 0.0):
        clock.now += step
        watch.tick(1)
    assert watch.ahead() == ahead


def test_utilisation_is_left_out_unless_both_numbers_are_known():
    known = meter.Meter(1, peak_flops=1e9)
    known.tick(1)
    assert "flop_utilisation" not in known.read(0, flops=None)
    unknown = meter.Meter(1)
    unknown.tick(1)
    assert "flop_utilisation" not in unknown.read(0, flops=1e9)


def test_compiling_ahead_counts_the_flops_of_a_product():
    n = 64
    found = meter.compile_ahead(jax.jit(jnp.matmul), jnp.ones((n, n)), jnp.ones((n, n)))
    assert found.seconds > 0
    # A product of n x n matrices is n^3 multiplications and additions each.
    assert found.flops == pytest.approx(2 * n**3, rel=0.01)
    assert float(found.call(jnp.ones((n, n)), jnp.ones((n, n)))[0, 0]) == n


def test_shapes_tell_batches_apart_by_shape_and_type_only():
    one, same = {"x": jnp.zeros((2, 3))}, {"x": jnp.ones((2, 3))}
    assert meter.shapes_of(one) == meter.shapes_of(same)
    assert meter.shapes_of(one) != meter.shapes_of({"x": jnp.zeros((2, 4))})
    assert meter.shapes_of(one) != meter.shapes_of({"x": jnp.zeros((2, 3), int)})

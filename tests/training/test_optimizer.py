import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from configs import common
from jaxanom.training import optimizer

PARAMS = {"layer": {"kernel": jnp.array([[2.0, -4.0]]), "bias": jnp.array([1.0])}}
GRADS = {"layer": {"kernel": jnp.array([[0.3, 0.4]]), "bias": jnp.array([0.0])}}


def first_update(transport=None, **settings):
    config = optimizer.read({**common.PHASE, **settings}, "phase")
    tx = optimizer.make(config, transport)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    return updates["layer"]


def rates(count, **settings):
    schedule = optimizer.schedule(optimizer.read({**common.PHASE, **settings}, "phase"))
    return [float(schedule(n)) for n in range(count)]


def test_plain_sgd_is_minus_learning_rate_times_gradient():
    found = first_update(optimizer="sgd", learning_rate=0.5, clip_norm=0.0)
    np.testing.assert_array_equal(found["kernel"], jnp.array([[-0.15, -0.2]]))


def test_clipping_scales_the_gradient_to_the_norm():
    # The norm is 0.5, so a limit of 0.05 divides by ten; 1e-6 is float32 rounding.
    found = first_update(optimizer="sgd", learning_rate=1.0, clip_norm=0.05)
    np.testing.assert_allclose(found["kernel"], [[-0.03, -0.04]], rtol=1e-6)
    loose = first_update(optimizer="sgd", learning_rate=1.0, clip_norm=5.0)
    np.testing.assert_array_equal(loose["kernel"], -GRADS["layer"]["kernel"])


def test_transport_acts_between_clipping_and_optimizer():
    double = optax.stateless(lambda grads, _: jax.tree.map(lambda g: 2 * g, grads))
    found = first_update(double, optimizer="sgd", learning_rate=1.0, clip_norm=0.05)
    # Clipping first and doubling then: clipping last would undo the doubling.
    np.testing.assert_allclose(found["kernel"], [[-0.06, -0.08]], rtol=1e-6)


def test_first_adam_step_has_the_size_of_the_learning_rate():
    found = first_update(optimizer="adam", learning_rate=0.1)
    # eps = 1e-8 against gradients of 0.3 shifts the ratio by 1e-7.
    np.testing.assert_allclose(found["kernel"], [[-0.1, -0.1]], rtol=1e-5)


def test_decoupled_decay_shrinks_weights_and_spares_biases():
    settings = {"optimizer": "adamw", "learning_rate": 0.1, "weight_decay": 0.5}
    plain = first_update(**settings | {"weight_decay": 0.0})
    decayed = first_update(**settings)
    everything = first_update(**settings, decay_all=True)
    shrink = -0.1 * 0.5 * PARAMS["layer"]["kernel"]
    # Differences of numbers of size 0.3: float32 leaves 1e-7 of them.
    difference = decayed["kernel"] - plain["kernel"]
    np.testing.assert_allclose(difference, shrink, atol=1e-7)
    np.testing.assert_array_equal(decayed["bias"], plain["bias"])
    np.testing.assert_allclose(everything["bias"], [-0.05], atol=1e-7)


def test_sgd_decay_is_added_to_the_gradient():
    found = first_update(
        optimizer="sgd", learning_rate=1.0, weight_decay=0.1, clip_norm=0.0
    )
    np.testing.assert_allclose(found["kernel"], [[-0.5, 0.0]], atol=1e-7)


def test_a_stacked_bias_is_still_a_bias():
    stacked = {"bias": jnp.zeros((4, 8)), "kernel": jnp.zeros((4, 8, 8))}
    assert optimizer.decayed(stacked) == {"bias": False, "kernel": True}


def test_lion_moves_by_sign():
    found = first_update(optimizer="lion", learning_rate=0.1)
    np.testing.assert_allclose(found["kernel"], [[-0.1, -0.1]], rtol=1e-6)


def test_warm_up_rises_linearly_to_the_peak_and_never_starts_at_zero():
    found = rates(6, num_steps=6, learning_rate=4.0, warmup_steps=4)
    assert found == [1.0, 2.0, 3.0, 4.0, 4.0, 4.0]


def test_step_schedule_drops_at_its_fractions():
    found = rates(10, num_steps=10, learning_rate=1.0, schedule="step")
    # x0.2 at 80 % and again at 90 %; float32 powers.
    np.testing.assert_allclose(found, [1.0] * 8 + [0.2, 0.04], rtol=1e-6)


def test_cosine_and_linear_are_half_way_in_the_middle():
    for schedule in ("cosine", "linear"):
        settings = {"learning_rate": 1.0, "schedule": schedule, "final_fraction": 0.2}
        found = rates(101, num_steps=100, **settings)
        # cos is rounded to float32.
        assert found[0] == pytest.approx(1.0, rel=1e-6)
        assert found[50] == pytest.approx(0.6, rel=1e-6)
        assert found[100] == pytest.approx(0.2, rel=1e-6)


def test_unknown_key_names_the_nearest_setting():
    with pytest.raises(ValueError, match=r"did you mean config\.phases\.fit\.learning"):
        optimizer.read({**common.PHASE, **({"learning_rat": 1})}, "config.phases.fit")


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"learning_rate": "1e-3"}, "learning_rate='1e-3' is a str; want a float"),
        ({"num_steps": 1.5}, "num_steps=1.5 is a float; want a int"),
        ({"nesterov": 1}, "nesterov=1 is a int; want a bool"),
        ({"accumulate": 0}, "accumulate=0; want 1 or more"),
        ({"optimizer": "adamm"}, "optimizer='adamm'; choose one of"),
        ({"schedule": "warm"}, "schedule='warm'; choose one of"),
    ],
)
def test_bad_values_are_named(settings, wanted):
    with pytest.raises(ValueError, match=wanted):
        optimizer.read({**common.PHASE, **settings}, "phase")


def test_config_dicts_are_read_and_numbers_become_floats():
    config = ml_collections.ConfigDict({"learning_rate": 1, "step_at": [0.5]})
    found = optimizer.read({**common.PHASE, **config}, "phase")
    assert (found.learning_rate, found.step_at, found.eps) == (1.0, (0.5,), 1e-8)


def test_warm_up_from_zero_starts_at_rest():
    settings = {"num_steps": 6, "learning_rate": 4.0, "warmup_steps": 4}
    assert rates(6, **settings, warmup_from_zero=True) == [0, 1, 2, 3, 4, 4]
    assert rates(6, **settings) == [1, 2, 3, 4, 4, 4]
    assert rates(2, learning_rate=4.0, warmup_from_zero=True) == [4, 4]


def test_rate_factors_scale_the_first_pattern_that_matches():
    settings = {"optimizer": "sgd", "learning_rate": 1.0, "clip_norm": 0.0}
    factors = (("layer/kernel", 10.0), ("layer/.*", 2.0))
    grads = {"layer": {"kernel": jnp.array([[0.3, 0.4]]), "bias": jnp.array([0.5])}}
    config = optimizer.read(
        {**common.PHASE, **(settings | {"rate_factors": factors})}, "phase"
    )
    tx = optimizer.make(config)
    found = tx.update(grads, tx.init(PARAMS), PARAMS)[0]["layer"]
    np.testing.assert_allclose(found["kernel"], [[-3.0, -4.0]], rtol=1e-6)
    np.testing.assert_allclose(found["bias"], [-1.0], rtol=1e-6)
    adam = optimizer.make(
        optimizer.read(
            {
                **common.PHASE,
                **(settings | {"optimizer": "adam", "rate_factors": factors}),
            },
            "phase",
        )
    )
    found = adam.update(grads, adam.init(PARAMS), PARAMS)[0]["layer"]
    # A factor before Adam would be divided out again.
    np.testing.assert_allclose(found["kernel"], [[-10.0, -10.0]], rtol=1e-5)


def test_a_rate_factor_that_reaches_nothing_is_refused():
    factors = (("layer/.*", 1.0), ("layer/kernel", 2.0))
    tx = optimizer.make(
        optimizer.read({**common.PHASE, **dict(rate_factors=factors)}, "phase")
    )
    with pytest.raises(ValueError, match=r"rate_factors.*layer/kernel"):
        tx.init(PARAMS)

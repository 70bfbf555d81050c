"""Both losses: what enters them, what does not, and the same in every form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_bayes_pfl import Made, batch

from jaxanom import trees
from jaxanom.methods import bayes_pfl
from jaxanom.methods.bayes_pfl import distributions, objective


@pytest.fixture(scope="module")
def made(tiny_backbone):
    return Made(tiny_backbone)


@pytest.fixture(scope="module")
def usual(made):
    return made.loss_and_grads(batch())


def close(found, wanted, tolerance=1e-4):
    """Leaf by leaf, relative to the largest of all gradients: float32 sums."""
    top = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * top),
        found,
        wanted,
    )


def test_the_total_is_the_weighted_sum_of_its_terms(usual):
    value, terms, _ = usual
    kl = terms["kl_isd"] + terms["kl_normal"] + terms["kl_abnormal"]
    rest = sum(terms[k] for k in ("ce", "focal", "dice", "orthogonality"))
    assert value == pytest.approx(rest + 0.01 * kl, rel=1e-5)


def test_the_released_form_has_the_same_loss_and_gradient(tiny_backbone, usual):
    plain = Made(tiny_backbone, shortcuts=False)
    value, terms, grads = plain.loss_and_grads(batch())
    assert terms == pytest.approx(usual[1], rel=1e-4)
    close(grads, usual[2])
    # Negative control: the other bank entry is another loss.
    other = plain.loss_and_grads(batch(), entry=0)[0]
    assert abs(other - value) > 1e-3


def test_images_and_their_cached_features_give_one_loss(made, usual):
    rows, key = batch(), jax.random.key(0)
    loss_fn = jax.jit(made.method.phases[0].loss_fn)
    encoded = jax.jit(made.method.encode)(made.frozen, rows)
    one, terms = loss_fn(made.params, made.frozen, rows, key)
    two, _ = loss_fn(made.params, made.frozen, encoded, key)
    assert float(one) == pytest.approx(float(two), rel=1e-5)
    assert set(terms) == set(usual[1])


def test_padding_rows_do_not_enter(made):
    """Two rows twice and two rows with padding: the same means, another N."""
    order = np.array([0, 1, 0, 1])
    noise = made.noise(4)
    noise = noise._replace(context=noise.context[order])
    twice = {name: value[order] for name, value in batch().items()}
    padded = {name: value.at[:2].set(value[:2]) for name, value in batch().items()}
    padded["valid"] = jnp.array([True, True, False, False])
    _, wanted, _ = made.loss_and_grads(twice, noise=noise)
    value, found, _ = made.loss_and_grads(padded, noise=noise)
    for name, term in found.items():
        if name not in ("kl_normal", "kl_abnormal"):  # divided by N, which is 2 now
            # Dice: its smoothing of 1e-5 beside twice the pixels.
            assert term == pytest.approx(wanted[name], rel=1e-4), name
    for name in ("kl_normal", "kl_abnormal"):
        # The share of the log-determinant; float32 leaves 1e-5 of 40.
        assert abs(found[name] - wanted[name]) > 1e-3, name
    other = padded | {"image": padded["image"].at[2:].set(0.5)}
    other["mask"] = other["mask"].at[2:].set(1.0)
    assert made.loss_and_grads(other, noise=noise)[0] == pytest.approx(value, rel=1e-5)
    # Negative control: as valid rows they would.
    counted = other | {"valid": jnp.ones(4, bool)}
    assert made.loss_and_grads(counted, noise=noise)[0] != pytest.approx(
        value, rel=1e-3
    )


def test_training_on_all_pairs_is_the_mean_over_entries(tiny_backbone, made):
    rows = batch()
    every = Made(tiny_backbone, train_pairs="all").loss_and_grads(rows)
    ones = [made.loss_and_grads(rows, entry=entry) for entry in (0, 1)]
    for term in ("ce", "focal", "dice"):
        mean = np.mean([one[1][term] for one in ones])
        assert every[1][term] == pytest.approx(mean, rel=1e-4), term
        assert ones[0][1][term] != pytest.approx(ones[1][1][term], rel=1e-4)


def test_gradients_reach_what_a_stage_trains_and_nothing_else(made, usual):
    rows = batch()
    for stage, patterns in (
        (1, bayes_pfl.trainable_1(made.options)),
        (2, objective.STAGE_2),
    ):
        grads = usual[2] if stage == 1 else made.loss_and_grads(rows, 2)[2]
        trained, rest = trees.split(grads, patterns)
        for path, leaf in trees.flatten(trained).items():
            # A shift of all attention scores is no change.
            assert np.any(leaf) or path == "fuse/weigh/bias", (stage, path)
        if stage == 1:
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(rest))


def test_a_reconstruction_and_a_fused_input_are_options(tiny_backbone, usual):
    made = Made(tiny_backbone, reconstruction_weight=0.5, isd_input="fused")
    value, terms, grads = made.loss_and_grads(batch())
    kl = terms["kl_isd"] + terms["kl_normal"] + terms["kl_abnormal"]
    rest = sum(terms[k] for k in ("ce", "focal", "dice", "orthogonality"))
    weighted = 0.5 * terms["reconstruction"]
    assert terms["reconstruction"] > 0
    assert value == pytest.approx(rest + 0.01 * kl + weighted, rel=1e-5)
    assert terms["kl_isd"] != pytest.approx(usual[1]["kl_isd"], rel=1e-3)
    trained, _ = trees.split(grads, bayes_pfl.trainable_1(made.options))
    for path in ("fuse/out/kernel", "context_decoder/layers_0/kernel"):
        assert np.any(trees.flatten(trained)[path]), path


def test_the_estimated_kl_of_equal_gaussians_is_the_exact_one():
    """Without a flow, the mean over many draws is the closed form."""
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=(1, 1, 4)), rng.uniform(0.3, 2, size=(1, 1, 4))
    noise = rng.normal(size=(1, 40_000, 4))
    start = mean + np.sqrt(variance) * noise
    draw = distributions.Draw(mean, variance, start, start, np.zeros(start.shape[:2]))
    exact = 0.5 * np.sum(variance + mean**2 - 1 - np.log(variance))
    # One draw spreads by about 2: the mean of 40,000 by 0.01.
    found = distributions.kl_image_agnostic(draw, 3, "author")
    assert float(found) == pytest.approx(exact, abs=0.05)
    assert float(distributions.kl_image_specific(draw)) == pytest.approx(float(found))
    bent = draw._replace(logdet=np.full(start.shape[:2], 3.0))
    by_three = distributions.kl_image_agnostic(bent, 3, "author")
    whole = distributions.kl_image_agnostic(bent, 3, "exact")
    assert float(found - by_three) == pytest.approx(1.0, abs=1e-4)
    assert float(found - whole) == pytest.approx(3.0, abs=1e-4)


def test_draws_of_each_image_count_their_divergence_once_and_without_padding():
    """Two images with the draw that both may share, beside a padding row."""
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=(1, 1, 4)), rng.uniform(0.3, 2, size=(1, 1, 4))
    start = rng.normal(size=(1, 5, 4))
    shared = distributions.Draw(mean, variance, start, 2 * start, start[..., 0])
    rows = np.array([1.0, 1.0, 9.0])[:, None, None]
    own = shared._replace(
        start=rows * start, end=rows * shared.end, logdet=rows[..., 0] * shared.logdet
    )
    valid = np.array([True, True, False])
    found = objective.kl_terms(distributions.Draws(own, own, own), valid, "author")
    # With one draw for all "exact" is the mean over images.
    exact = objective.kl_terms(distributions.Draws(own, shared, shared), valid, "exact")
    for name in ("kl_normal", "kl_abnormal"):
        assert float(found[name]) == pytest.approx(float(exact[name]), rel=1e-5)
    author = objective.kl_terms(
        distributions.Draws(own, shared, shared), valid, "author"
    )
    assert author["kl_normal"] != pytest.approx(float(exact["kl_normal"]), rel=1e-3)

"""APP as functions: classes, losses, coupling, predictions, on a tiny random CLIP."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.app import base
from jaxanom.methods.app import classes, coupling, model, objective, options, predict
from jaxanom.models.clip import prompts, shared_prefix, towers
from jaxanom.models.ops import initialise
from jaxanom.posterior import transport

CONFIG = towers.TextConfig(
    vocab_size=20,
    hidden_size=8,
    intermediate_size=16,
    projection_dim=6,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=10,
    bos_token_id=18,
    eos_token_id=19,
    pad_token_id=0,
)
NUM_VECTORS, NUM_CLASSES, BATCH = 3, 4, 6
SPACES = options.CHOICES["particles.space"]
FLOWS, SAMPLERS = transport.FLOWS, transport.SAMPLERS


def of(section, **changes):
    """Options of one section: the recipes' defaults but for some."""
    config = base.config()
    config.app[section].update(changes)
    return getattr(options.read(config.app), section)


def prior_of(**changes):
    return of("prior", **changes)


def particles_of(**changes):
    return of("particles", **changes)


class Special:
    bos_id, eos_id, pad_id = 18, 19, 0


@functools.cache
def world(num_particles=3):
    """(network, params, frozen, batch)."""
    template = (~0, ~1, ~2, prompts.NAME, 2)
    laid = prompts.make_layout(
        template, [[3], [4, 5], [6], [7, 8]], Special, NUM_VECTORS
    )
    tower = model.TextTower(CONFIG, shared_prefix.cut(laid))
    network = objective.Network(tower, NUM_VECTORS, "category_id")
    module = towers.TextTower(CONFIG)
    text = initialise.parameters(
        module, jax.random.key(0), jnp.zeros((1, 4), jnp.int32)
    )
    params = model.init(jax.random.key(1), num_particles, NUM_VECTORS, 8, 6, std=0.5)
    rng = np.random.default_rng(2)
    features = towers.normalise(jnp.asarray(rng.normal(size=(BATCH, 6)), jnp.float32))
    frozen = {
        "text": text,
        "logit_scale": jnp.asarray(2.0),
        "columns": jnp.tile(jnp.arange(NUM_CLASSES), (NUM_CLASSES, 1)),
        "train_features": features[:4],
    }
    batch = {
        "image_features": features,
        "category_id": jnp.asarray(rng.integers(0, NUM_CLASSES, BATCH)),
        "valid": jnp.ones(BATCH, bool),
    }
    return network, params, frozen, batch


@pytest.fixture(autouse=True)
def made():
    world()


def test_particles_do_not_depend_on_how_many_there_are():
    few, many = (
        model.init(jax.random.key(1), n, 2, 4, 32)["particles"]["context"]
        for n in (2, 5)
    )
    assert np.array_equal(few, many[:2])
    assert np.std(many) == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("chunks", [(0, 3), (2, 2)])
def test_chunks_change_neither_features_nor_gradients(chunks):
    network, params, frozen, _ = world(3)
    chunked = network.tower._replace(prompt_chunk=chunks[0], class_chunk=chunks[1])
    weights = np.random.default_rng(0).normal(size=(3, NUM_CLASSES, 6))

    def summed(tower, context):
        found = model.text_features(tower, frozen["text"], context)
        return jnp.sum(weights * found), found

    results = [
        jax.jit(jax.value_and_grad(functools.partial(summed, tower), has_aux=True))(
            params["particles"]["context"]
        )
        for tower in (network.tower, chunked)
    ]
    (_, features), grads = results[0]
    (_, other), other_grads = results[1]
    for wanted, found in ((features, other), (grads, other_grads)):
        # Float32 sums in another order, on the scale of the largest entry.
        scale = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(found, wanted, atol=2e-6 * scale)


def loss_and_grads(prior, params, batch, weight=0.0, num_particles=3):
    network, _, frozen, _ = world(num_particles)
    loss_fn = objective.particle_loss(network, prior, weight)
    return jax.jit(
        jax.value_and_grad(lambda p: loss_fn(p, frozen, batch, None), has_aux=True)
    )(params)


def test_the_gradient_of_the_sum_is_the_stack_of_each_particles_own():
    _, params, _, batch = world()
    prior = prior_of(weight_decay=0.1)
    _, grads = loss_and_grads(prior, params, batch, 0.3)
    for i in range(3):
        alone = {
            **params,
            "particles": {"context": params["particles"]["context"][i:][:1]},
        }
        _, own = loss_and_grads(prior, alone, batch, 0.3)
        found = grads["particles"]["context"][i]
        np.testing.assert_allclose(found, own["particles"]["context"][0], atol=1e-5)


def test_the_prior_pulls_the_token_mean_or_every_token():
    context = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    center = jnp.ones(4)
    shift = jnp.asarray([1.0, -1.0, 0.0])[None, :, None]  # keeps the mean over tokens
    for support, moves in (("token_mean", False), ("per_token", True)):
        before, after = (
            objective.energy(c, center, support) for c in (context, context + shift)
        )
        assert np.allclose(before, after, rtol=1e-5) != moves
    grads = jax.grad(lambda c: objective.energy(c, center, "token_mean").sum())(context)
    wanted = 2 * (context.mean(1) - center) / 3
    np.testing.assert_allclose(grads, np.repeat(wanted[:, None], 3, 1), rtol=1e-5)


def test_only_joint_training_moves_the_prior_network():
    _, params, _, batch = world()
    for train, moves in (("separate", False), ("joint", True)):
        prior = prior_of(train=train)
        _, grads = loss_and_grads(prior, params, batch, 0.3)
        leaves = jax.tree.leaves(grads["prior"])
        assert any(np.any(np.asarray(leaf) != 0) for leaf in leaves) == moves
        assert ("prior/.*" in objective.trainable(prior)) == moves


def test_a_dataset_center_does_not_move_with_the_batch():
    _, params, _, batch = world()
    other = {**batch, "image_features": batch["image_features"][::-1] * 0 + 1.0}
    for center, same in (("dataset", True), ("batch", False)):
        prior = prior_of(center=center)
        energies = [
            float(loss_and_grads(prior, params, rows, 1.0)[0][1]["prior_energy"])
            for rows in (batch, other)
        ]
        assert (energies[0] == pytest.approx(energies[1], rel=1e-6)) == same


def test_a_moving_average_is_fitted_and_not_felt_by_the_particles():
    _, params, _, batch = world()
    average = jnp.full(8, 0.5)
    params = {**params, "center": {"average": average}}
    (_, metrics), grads = loss_and_grads(prior_of(center="ema"), params, batch, 0.7)
    mean = objective.batch_center(params, batch["image_features"], batch["valid"])
    np.testing.assert_allclose(grads["center"]["average"], average - mean, rtol=1e-5)
    context = params["particles"]["context"]
    wanted = objective.energy(context, average, "token_mean").sum()
    assert float(metrics["prior_energy"]) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("make", ["prior_loss", "particle_loss"])
def test_a_single_class_is_not_trained_on(make):
    network, params, frozen, batch = world()
    weight = (1.0,) if make == "particle_loss" else ()
    loss_fn = getattr(objective, make)(network, prior_of(), *weight)
    one = {**frozen, "columns": frozen["columns"][:, :1]}
    with pytest.raises(ValueError, match=r"app\.task has a single class"):
        jax.eval_shape(lambda p: loss_fn(p, one, batch, None), params)


def test_padding_rows_change_no_loss():
    _, params, _, batch = world()
    padded = {
        "image_features": jnp.concatenate([batch["image_features"], jnp.ones((2, 6))]),
        "category_id": jnp.concatenate([batch["category_id"], jnp.zeros(2, int)]),
        "valid": jnp.arange(BATCH + 2) < BATCH,
    }
    first, second = (
        loss_and_grads(prior_of(), params, rows, 0.3)[0][0] for rows in (batch, padded)
    )
    assert float(first) == pytest.approx(float(second), rel=1e-6)


def test_the_weight_of_the_prior_by_each_rule():
    def weight(shots, num_data, **changes):
        return objective.prior_weight(prior_of(**changes), shots, num_data)

    assert weight(16, 320) == 1 / 16
    assert weight(4, 20, lambda_rule="shots_squared") == 1 / 16
    # sigma^2 = 1 / (2 C) is the shots rule: n = S C.
    found = weight(16, 320, lambda_rule="sigma2", sigma2=1 / 40)
    assert found == pytest.approx(1 / 16)


def step_of(moves, params, grads, frozen):
    network = world()[0]
    tx = coupling.make(moves, 20, network.tower, None)
    tx = optax.with_extra_args_support(tx)
    only = {"particles": params["particles"]}
    updates, _ = tx.update(
        {"particles": grads["particles"]}, tx.init(only), only, frozen=frozen
    )
    return updates["particles"]["context"]


@pytest.mark.parametrize("update", [u for u in FLOWS if u != "map"])
@pytest.mark.parametrize("space", SPACES)
def test_one_particle_follows_its_gradient_in_every_flow_and_space(update, space):
    _, params, frozen, batch = world(1)
    _, grads = loss_and_grads(prior_of(), params, batch, num_particles=1)
    moves = particles_of(update=update, space=space)
    found = step_of(moves, params, grads, frozen)
    np.testing.assert_allclose(found, grads["particles"]["context"], atol=1e-6)


@pytest.mark.parametrize("rule", options.CHOICES["particles.bandwidth_rule"])
def test_every_bandwidth_rule_pushes(rule):
    _, params, frozen, _ = world()
    zero = jax.tree.map(jnp.zeros_like, params)
    moves = particles_of(bandwidth_rule=rule, temperature=20.0)
    step = step_of(moves, params, zero, frozen)
    fixed = step_of(moves._replace(bandwidth=1.0), params, zero, frozen)
    assert np.any(np.asarray(step) != 0) and np.all(np.isfinite(step))
    assert not np.allclose(step, fixed)


@pytest.mark.parametrize("space", SPACES)
def test_the_push_parts_particles_in_the_space_it_is_found_in(space):
    network, params, frozen, _ = world()
    zero = jax.tree.map(jnp.zeros_like, params)
    moves = particles_of(update="gfsd", space=space, temperature=20.0)
    step = step_of(moves, params, zero, frozen)
    moved = params["particles"]["context"] - 0.01 * step

    def seen(context):
        if space == "token_mean":
            return context.mean(1)
        if space == "text_features":
            found = model.text_features(network.tower, frozen["text"], context)
            return found.reshape(3, -1)
        return context.reshape(3, -1)

    def spread(context):
        x = seen(context)
        return float(jnp.mean(jnp.linalg.norm(x[:, None] - x[None], axis=-1)))

    assert spread(moved) > spread(params["particles"]["context"])


def test_temperature_is_shared_among_the_data():
    """20 data at T = 20 push as one datum does."""
    _, params, frozen, _ = world()
    zero = jax.tree.map(jnp.zeros_like, params)
    first = step_of(particles_of(temperature=20.0), params, zero, frozen)
    second = step_of(particles_of(num_data=1.0), params, zero, frozen)
    third = step_of(particles_of(), params, zero, frozen)
    np.testing.assert_allclose(first, second, rtol=1e-5)
    np.testing.assert_allclose(third, second / 20, rtol=1e-5, atol=1e-9)


WHOLE = [{"update": name} for name in SAMPLERS]
WHOLE += [{"integrator": name} for name in ("decay", "polyak")]


@pytest.mark.parametrize("changes", WHOLE, ids=str)
def test_whole_moves_refuse_an_optimiser_that_would_bend_them(changes):
    phase = {
        "optimizer": "sgd",
        "momentum": 0.0,
        "learning_rate": 1.0,
        "schedule": "constant",
        "weight_decay": 0.0,
        "clip_norm": 0.0,
    }
    moves, prior = particles_of(**changes), prior_of()
    options.check_moves(moves, phase, prior)
    with pytest.raises(ValueError, match=r"phases\.particles.*'momentum': 0\.9"):
        options.check_moves(moves, {**phase, "momentum": 0.9}, prior)
    unsaid = {key: value for key, value in phase.items() if key != "momentum"}
    with pytest.raises(ValueError, match="momentum"):  # its default is 0.9
        options.check_moves(moves, unsaid, prior)
    options.check_moves(particles_of(update="svgd"), {"momentum": 0.9}, prior)
    for pattern, factor in ((".*", 0.5), ("particles/.*", 2.0)):
        factors = {"rate_factors": (("prior/.*", 0.1), (pattern, factor))}
        with pytest.raises(ValueError, match=r"rate_factors.*step_size"):
            options.check_moves(moves, phase | factors, prior)
    others = {"rate_factors": (("particles/.*", 1.0), (".*", 0.1))}
    options.check_moves(moves, phase | others, prior)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"train": "joint"}, "train='joint'"), ({"center": "ema"}, "center='ema'")],
)
def test_samplers_refuse_a_prior_that_learns_at_their_rate(changes, named):
    sampler, whole = particles_of(update="sgld"), transport.WHOLE_MOVES
    with pytest.raises(ValueError, match=named):
        options.check_moves(sampler, whole, prior_of(**changes))
    options.check_moves(particles_of(update="svgd"), {}, prior_of(**changes))
    options.check_moves(sampler, whole, prior_of(center="dataset"))


@pytest.mark.parametrize("update", SAMPLERS)
def test_samplers_make_finite_moves_of_their_own(update):
    _, params, frozen, batch = world()
    _, grads = loss_and_grads(prior_of(), params, batch, 0.1)
    step = step_of(particles_of(update=update), params, grads, frozen)
    assert np.all(np.isfinite(step)) and np.any(np.asarray(step) != 0)
    other = step_of(particles_of(update=update, noise_seed=1), params, grads, frozen)
    assert not np.allclose(step, other)


@pytest.mark.parametrize("update", ["svgd", "map"])
@pytest.mark.parametrize("integrator", options.CHOICES["particles.integrator"])
def test_every_integrator_trains(update, integrator):
    network, params, frozen, batch = world()
    loss_fn = objective.particle_loss(network, prior_of(), 0.1)
    moves = particles_of(update=update, integrator=integrator, step_size=0.02)
    rate = 0.02 if integrator == "plain" else 1.0
    tx = optax.chain(coupling.make(moves, 20, network.tower, None), optax.sgd(rate))
    particles = {"particles": params["particles"]}

    def step(carry, _):
        particles, state = carry
        loss, grads = jax.value_and_grad(
            lambda p: loss_fn({**params, **p}, frozen, batch, None)[0]
        )(particles)
        updates, state = tx.update(grads, state, particles)
        return (optax.apply_updates(particles, updates), state), loss

    start = (particles, tx.init(particles))
    losses = np.asarray(jax.jit(lambda: jax.lax.scan(step, start, length=20)[1])())
    assert losses[-1] < losses[0] - 0.05 and np.all(np.isfinite(losses))


@pytest.mark.parametrize(
    "wrong",
    [
        {"update": "adam"},
        {"rkhs": "cosine"},
        {"space": "logits"},
        {"backend": "tree"},
        {"temperature": -1.0},
        {"space": "token_mean", "backend": "ring"},
        {"space": "token_mean", "update": "noisy_svgd"},
        {"preconditioned": True, "update": "noisy_svgd"},
        {"preconditioned": True, "update": "map"},
        {"preconditioned": True, "update": "sgld"},
        {"backend": "ring", "update": "map"},
        {"form": "compakt"},
        {"integrator": "leapfrog"},
        {"integrator": "wag", "update": "sgld"},
        {"median": "lower"},
        {"bandwidth_mode": "exakt"},
        {"normalise": "max"},
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match=r"config\.app\.particles"):
        options.check_moves(particles_of(**wrong), {}, prior_of())


def logits_of(answers, params=None):
    network, own, frozen, batch = world()
    return jax.jit(
        lambda p: predict.posterior_logits(
            network, p, frozen, batch["image_features"], batch["category_id"], answers
        )
    )(own if params is None else params)


def test_alpha_one_leaves_the_prior_out_and_saves_its_prompts():
    assert logits_of(of("predict", alpha=1.0)).prior is None
    found = logits_of(of("predict", alpha=0.9))
    mixed = predict.mixed_logits(found, of("predict", alpha=0.9))
    wanted = 0.9 * found.particles.mean(0) + 0.1 * found.prior
    np.testing.assert_allclose(mixed, wanted, rtol=1e-5)


@pytest.mark.parametrize("average", options.CHOICES["predict.average"])
@pytest.mark.parametrize("mix", options.CHOICES["predict.mix"])
def test_particles_that_agree_are_averaged_to_themselves(average, mix):
    """And mixed to themselves with a prior that agrees with them."""
    _, params, _, _ = world()
    one = params["particles"]["context"][:1]
    params = {**params, "particles": {"context": jnp.repeat(one, 3, axis=0)}}
    answers = of("predict", average=average, mix=mix, alpha=0.7)
    found = logits_of(answers, params)
    found = found._replace(prior=found.particles[0])
    probability = jax.nn.softmax(predict.mixed_logits(found, answers))
    wanted = jax.nn.softmax(found.particles[0])
    np.testing.assert_allclose(probability, wanted, atol=1e-5)
    measured = predict.uncertainty(found.particles)
    np.testing.assert_allclose(measured["mutual_information"], 0, atol=1e-5)
    np.testing.assert_allclose(measured["logit_variance"], 0, atol=1e-6)


def test_uncertainty_of_two_certain_particles_that_disagree():
    particles = 50.0 * jnp.asarray([[[1.0, 0.0]], [[0.0, 1.0]]])
    found = predict.uncertainty(particles)
    assert float(found["entropy"][0]) == pytest.approx(np.log(2), rel=1e-5)
    assert float(found["mutual_information"][0]) == pytest.approx(np.log(2), rel=1e-5)


def test_mixing_probabilities_is_their_weighted_mean():
    found = logits_of(of("predict", alpha=0.7))
    answers = of("predict", average="probs", mix="probs", alpha=0.7)
    probability = jnp.exp(predict.mixed_logits(found, answers))
    wanted = 0.7 * jax.nn.softmax(found.particles).mean(0)
    wanted = wanted + 0.3 * jax.nn.softmax(found.prior)
    np.testing.assert_allclose(probability, wanted, atol=1e-5)


def test_an_image_is_answered_alike_in_every_batch_but_not_when_reshuffled():
    network, params, frozen, batch = world()
    order = np.array([2, 0, 1, 5, 4, 3])

    def answer(rows, reshuffled):
        found = predict.posterior_logits(
            network,
            params,
            frozen,
            batch["image_features"][rows],
            batch["category_id"][rows],
            of("predict", reshuffled=reshuffled),
        )
        return np.asarray(found.prior)

    whole, turned = answer(np.arange(BATCH), False), answer(order, False)
    np.testing.assert_allclose(turned, whole[order], atol=1e-5)
    assert (
        np.abs(answer(order, True) - answer(np.arange(BATCH), True)[order]).max() > 1e-2
    )


def test_each_image_is_compared_with_its_own_categorys_sentences():
    named = classes.make(
        "defect",
        ("hex_nut", "pill"),
        ("good", "crack"),
        "flawless {category}",
        "damaged {category}",
        "{category} with {defect}",
    )
    assert named.names == (
        "flawless hex nut",
        "hex nut with crack",
        "flawless pill",
        "pill with crack",
    )
    logits = jnp.asarray([[[0.0, 1.0, 2.0, 3.0]] * 2])
    found = model.of_category(logits, jnp.asarray(named.columns), jnp.asarray([1, 0]))
    np.testing.assert_allclose(found, [[[2.0, 3.0], [0.0, 1.0]]])
    shared = classes.make(
        "defect", ("a", "b"), ("good", "crack"), "good", "bad", "{defect}"
    )
    assert shared.names == ("good", "crack")
    assert np.array_equal(shared.columns, [[0, 1], [0, 1]])


def test_the_two_states_and_the_categories_are_classes_too():
    named = classes.make(
        "state", ("pill",), ("good", "crack"), "ok {category}", "bad", ""
    )
    assert named.names == ("ok pill", "bad") and named.targets == ("good", "anomalous")
    named = classes.make("category", ("a_b", "c"), ("good",), "", "", "")
    assert named.names == ("a b", "c")
    assert np.array_equal(named.columns, [[0, 1], [0, 1]])
    with pytest.raises(ValueError, match=r"app\.good_name"):
        classes.make("state", ("a",), ("good",), "{name}", "bad", "")

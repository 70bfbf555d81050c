"""Both training stages, predictions, the SVGD and SGLD steps, and learning rates."""

import functools

import app_goldens as goldens
import app_towers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from jaxanom.losses import classification
from jaxanom.methods.app import model, objective, predict
from jaxanom.models.clip import shared_prefix
from jaxanom.models.clip import towers as clip
from jaxanom.posterior import bandwidths, fields, kernels, pairs, svgd, transport
from jaxanom.training import optimizer

PRECISIONS = pytest.mark.parametrize("precise", [True, False], ids=["f64", "f32"])
LAYOUTS = {"reference": "reference_reshuffle", "intended": "per_image"}


class World:
    """Towers, batches and options of the golden set, in one precision."""

    def __init__(self, precise, shared=True):
        self.precise = precise
        self.dtype = np.float64 if precise else np.float32
        self.said = goldens.settings()
        towers = app_towers.load(self.dtype)
        cut = shared_prefix.cut if shared else shared_prefix.whole
        tower = model.TextTower(towers.text_config, cut(towers.layout), self.dtype)
        self.network = objective.Network(tower, self.said["n_ctx"], "category_id")
        num_classes = len(goldens.load("prompt_learner_init")["name_lens"])
        self.frozen = {
            "text": towers.text_params,
            "logit_scale": towers.logit_scale,
            "columns": np.tile(np.arange(num_classes), (num_classes, 1)),
        }
        arrays = goldens.load("batches")
        features = goldens.wanted(arrays, "img_seq_features").astype(self.dtype)
        self.batches = [
            {
                "image_features": np.asarray(clip.normalise(jnp.asarray(rows[0]))),
                "category_id": labels,
            }
            for rows, labels in zip(features, arrays["labels"], strict=True)
        ]

    def start(self):
        """Initial parameters: both precisions start from the same float32 values."""
        arrays = goldens.load("prompt_learner_init")
        context = np.asarray(arrays["ctx"], self.dtype)
        return {
            "particles": {"context": context},
            "prior": self.prior(goldens.part(arrays, "meta_net.", False)),
        }

    def prior(self, arrays, row=...):
        """Torch's linear layers in our tree."""
        return {
            name: {
                "kernel": np.asarray(arrays[f"{name}.weight"][row], self.dtype).T,
                "bias": np.asarray(arrays[f"{name}.bias"][row], self.dtype),
            }
            for name in ("linear1", "linear2")
        }

    def settings(self, num_steps):
        """Released optimiser: SGD as Dassl sets it up."""
        return optimizer.read(
            {
                **common.PHASE,
                **dict(
                    num_steps=num_steps,
                    optimizer="sgd",
                    learning_rate=self.said["lr"],
                    schedule="epoch_cosine",
                    steps_per_epoch=len(self.batches),
                    num_epochs=self.said["max_epoch"],
                    first_rate=self.said["warmup_lr"],
                    momentum=self.said["momentum"],
                    weight_decay=self.said["weight_decay"],
                    decay_all=True,
                    clip_norm=0.0,
                ),
            },
            "phase",
        )

    def walk(self, loss_fn, params, name, num_steps, tx):
        """Trains one entry of the parameters; yields what each step saw and made."""
        fixed = {key: part for key, part in params.items() if key != name}

        def loss_of(trained, batch):
            return loss_fn({**fixed, **trained}, self.frozen, batch, None)

        @jax.jit
        def step(trained, state, batch):
            (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(
                trained, batch
            )
            updates, state = tx.update(grads, state, trained)
            trained = optax.apply_updates(trained, updates)
            return trained, state, (loss, metrics, grads)

        trained = {name: params[name]}
        state = tx.init(trained)
        rows = []
        for number in range(num_steps):
            batch = self.batches[number % len(self.batches)]
            trained, state, seen = step(trained, state, batch)
            rows.append((trained, state, *seen))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


@functools.cache
def world(precise, shared=True):
    return World(precise, shared)


def assert_prior(found, arrays, prefix, side, precise, row=...):
    for name in ("linear1", "linear2"):
        kernel = np.swapaxes(found["prior"][name]["kernel"], -1, -2)
        for leaf, value in (("weight", kernel), ("bias", found["prior"][name]["bias"])):
            golden = goldens.wanted(arrays, f"{prefix}{name}.{leaf}")[row]
            goldens.assert_near(value, golden, precise, single=1e-4)


@PRECISIONS
@pytest.mark.parametrize("side", LAYOUTS)
def test_stage_one_walks_the_released_path(side, precise):
    arrays = goldens.load(f"stage1_{side}")
    with goldens.precision(precise):
        here = world(precise)
        prior = goldens.prior(layout=LAYOUTS[side])
        loss_fn = objective.prior_loss(here.network, prior)
        num_steps = len(arrays["loss"])
        tx = optimizer.make(here.settings(num_steps))
        found = here.walk(loss_fn, here.start(), "prior", num_steps, tx)
        trained, _, loss, _, grads = found
        vectors = model.prior_vectors(
            here.start()["prior"], here.batches[0]["image_features"]
        )
        num_classes = here.frozen["columns"].shape[1]
        contexts = model.prior_context_by_class(vectors, LAYOUTS[side], num_classes)
        text = model.prior_text_features_by_class(
            here.network.tower, here.frozen["text"], contexts, here.network.num_vectors
        )
        logits = model.particle_logits(
            text, here.batches[0]["image_features"], here.frozen["logit_scale"]
        )[0]
    goldens.assert_near(logits, goldens.wanted(arrays, "logits0"), precise, 1e-4)
    goldens.assert_near(loss, goldens.wanted(arrays, "loss"), precise, 2e-5)
    first = jax.tree.map(lambda leaf: leaf[0], grads)
    assert_prior(first, arrays, "grad0.", side, precise)
    assert_prior(trained, arrays, "meta_net.", side, precise, slice(1, None))
    if "meta_context0" in arrays:  # given in float32 only
        wanted = arrays["meta_context0"]
        repeated = model.repeated(contexts, here.network.num_vectors)
        goldens.assert_near(
            np.broadcast_to(repeated, wanted.shape), wanted, False, single=1e-5
        )


def stage_two(here, arrays):
    params = here.start()
    prior = goldens.part(arrays, "meta_net.", here.precise)
    return {**params, "prior": here.prior(prior)}


@PRECISIONS
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "whole"])
def test_stage_two_walks_the_released_path(shared, precise):
    arrays = goldens.load("stage2_reference")
    with goldens.precision(precise):
        here = world(precise, shared)
        prior = goldens.prior()
        loss_fn = objective.particle_loss(here.network, prior, float(arrays["reg"]))
        num_steps = len(arrays["loss"])
        settings = here.settings(num_steps)
        tx = optimizer.make(settings, transport.only("particles", optax.identity()))
        params = stage_two(here, arrays)
        found = here.walk(loss_fn, params, "particles", num_steps, tx)
        trained, state, loss, metrics, grads = found
        rates = jax.vmap(optimizer.schedule(settings))(np.arange(num_steps))
        batch = here.batches[0]
        text = model.text_features(
            here.network.tower, here.frozen["text"], params["particles"]["context"]
        )
        logits = model.particle_logits(
            text, batch["image_features"], here.frozen["logit_scale"]
        )
        ce = classification.cross_entropy(logits, batch["category_id"])
        center = objective.batch_center(params, batch["image_features"], None)
        energy = objective.energy(
            params["particles"]["context"], center, prior.support
        ).sum()

    def check(value, key, single):
        goldens.assert_near(value, goldens.wanted(arrays, key), precise, single)

    check(logits, "logits0", 1e-4)
    check(center, "meta_mean0", 2e-5)
    check(energy, "regular0", 2e-5)
    check(loss, "loss", 2e-5)
    check(metrics["prior_energy"], "regular", 2e-5)
    check(ce, "ce0", 2e-5)
    golden = goldens.wanted(arrays, "ce").mean(1)
    goldens.assert_near(metrics["ce"], golden, precise, 2e-5)
    # A share of a few images, kept in float32 there and here.
    goldens.assert_within(100 * metrics["accuracy"], arrays["acc"], 1e-4)
    check(grads["particles"]["context"], "grad", 1e-4)
    golden = goldens.wanted(arrays, "ctx")[1:]
    goldens.assert_near(trained["particles"]["context"], golden, precise, 1e-4)
    (momentum,) = [
        leaf for leaf in jax.tree.leaves(state) if leaf.shape == golden.shape
    ]
    check(momentum, "momentum", 1e-4)
    np.testing.assert_allclose(rates, arrays["lr"], rtol=1e-12 if precise else 1e-5)


@PRECISIONS
def test_every_particles_cross_entropy_at_every_step(precise):
    arrays = goldens.load("stage2_reference")
    with goldens.precision(precise):
        here = world(precise)

        @jax.jit
        def measure(context, batch):
            text = model.text_features(here.network.tower, here.frozen["text"], context)
            logits = model.particle_logits(
                text, batch["image_features"], here.frozen["logit_scale"]
            )
            return classification.cross_entropy(logits, batch["category_id"])

        walked = goldens.wanted(arrays, "ctx")[:-1].astype(here.dtype)
        found = [
            measure(context, here.batches[number % len(here.batches)])
            for number, context in enumerate(walked)
        ]
    goldens.assert_near(np.stack(found), goldens.wanted(arrays, "ce"), precise, 2e-5)


@PRECISIONS
def test_the_prior_network_at_its_initial_and_its_trained_weights(precise):
    initial, trained = goldens.load("batches"), goldens.load("stage2_reference")
    with goldens.precision(precise):
        here = world(precise)
        features = [batch["image_features"] for batch in here.batches]
        start = here.start()["prior"]
        before = [model.prior_vectors(start, rows) for rows in features]
        after = model.prior_vectors(stage_two(here, trained)["prior"], features[0])
    golden = goldens.wanted(initial, "meta_feature_init")
    goldens.assert_near(np.stack(before), golden, precise, 2e-5)
    golden = goldens.wanted(trained, "meta_feature0")
    goldens.assert_near(after, golden, precise, 2e-5)


@PRECISIONS
@pytest.mark.parametrize("side", LAYOUTS)
def test_predictions_at_every_alpha(side, precise):
    arrays = goldens.load(f"predict_{side}")
    with goldens.precision(precise):
        here = world(precise)
        context = goldens.wanted(arrays, "ctx") if precise else arrays["ctx"]
        params = {
            "particles": {"context": np.asarray(context, here.dtype)},
            "prior": here.prior(goldens.part(arrays, "meta_net.", precise)),
        }
        batch = here.batches[int(arrays["batch_index"])]
        options = goldens.answers(reshuffled=side == "reference")
        logits = jax.jit(
            lambda params: predict.posterior_logits(
                here.network,
                params,
                here.frozen,
                batch["image_features"],
                batch["category_id"],
                options,
            )
        )(params)
        mixed = {}
        for key in arrays:
            if key.startswith("logits_alpha") and not key.endswith("_f64"):
                alpha = float(key.removeprefix("logits_alpha"))
                mixed[key] = predict.mixed_logits(logits, options._replace(alpha=alpha))
    golden = goldens.wanted(arrays, "logits_particles")
    goldens.assert_near(logits.particles, golden, precise, 1e-4)
    golden = goldens.wanted(arrays, "logits_prior")
    goldens.assert_near(logits.prior, golden, precise, 1e-4)
    assert mixed
    for key, value in mixed.items():
        goldens.assert_near(value, goldens.wanted(arrays, key), precise, 1e-4)


def test_the_reshuffle_is_no_rounding():
    """Negative control: the two layouts answer differently, by whole logits."""
    reference, intended = (
        goldens.wanted(goldens.load(f"predict_{side}"), "logits_prior")
        for side in LAYOUTS
    )
    assert np.abs(reference - intended).max() > 1e-2


def test_the_reshuffle_reads_the_recorded_images():
    arrays = goldens.load("forward")
    index = goldens.wanted(arrays, "reference_image_index")
    assert np.array_equal(model.reshuffled(*index.shape), index)


def composite(here):
    """The loss of the composite runs: stage 2 at the end of stage 1."""
    arrays = goldens.load("stage2_reference")
    loss_fn = objective.particle_loss(
        here.network, goldens.prior(), float(here.said["reg"])
    )
    return loss_fn, stage_two(here, arrays)


def test_svgd_steps_on_the_released_gradient():
    arrays = goldens.load("composite_svgd_sgld")
    goldens.wanted(arrays, "svgd_ctx")
    with goldens.precision(True):
        here = world(True)
        loss_fn, params = composite(here)
        field = fields.Field(svgd.flow(), bandwidth=bandwidths.median("midpoint"))
        coupled = transport.only("particles", transport.of_flow(field))
        tx = optax.chain(coupled, optax.scale(-float(arrays["svgd_eps"])))
        num_steps = len(arrays["svgd_phi_f64"])
        found = here.walk(loss_fn, params, "particles", num_steps, tx)
        walked = found[0]["particles"]["context"]
        start = np.asarray(arrays["svgd_ctx_f64"])[:-1]
        flat = jnp.asarray(start.reshape(*start.shape[:2], -1))
        r2 = jax.vmap(pairs.squared_distances)(flat)
        h = jax.vmap(lambda r: bandwidths.scaled(bandwidths.median_of(r), len(r)))(r2)
        gram = jax.vmap(lambda r, h: kernels.rbf(r, h).value)(r2, h)
    golden = np.asarray(arrays["svgd_ctx_f64"])
    goldens.assert_near(walked, golden[1:], True, 1e-4)
    moved = np.diff(np.concatenate([golden[:1], walked]), axis=0)
    direction = moved / float(arrays["svgd_eps"])
    goldens.assert_near(direction, arrays["svgd_phi_f64"], True, 1e-4)
    # Their bandwidth is a length, ours its square.
    goldens.assert_near(np.sqrt(h), arrays["svgd_h_f64"], True, 1e-4)
    goldens.assert_near(gram, arrays["svgd_K_f64"], True, 1e-4)


def test_sgld_steps_with_the_recorded_noise():
    arrays = goldens.load("composite_svgd_sgld")
    goldens.wanted(arrays, "sgld_ctx")
    with goldens.precision(True):
        here = world(True)
        loss_fn, params = composite(here)
        num_data = float(arrays["sgld_n_data"])
        noise = arrays["sgld_noise"]
        noise = jnp.asarray(noise.reshape(*noise.shape[:2], -1))
        # Per datum: the loss is the energy over n, so steps grow and T shrinks by n.
        sampler = transport.langevin(
            lambda step: jnp.asarray(arrays["sgld_eps"])[step] * num_data,
            lambda step, particles: noise[step],
            temperature=1 / num_data,
        )
        tx = transport.only("particles", sampler)
        tx = optax.chain(tx, optax.sgd(1.0))
        found = here.walk(loss_fn, params, "particles", len(noise), tx)
    walked, loss = found[0]["particles"]["context"], found[2]
    goldens.assert_near(walked, arrays["sgld_ctx_f64"][1:], True, 1e-4)
    goldens.assert_near(loss, arrays["sgld_loss_f64"], True, 1e-4)


TABLES = [key for key in goldens.names_in("lr_schedule") if key.startswith("lr_T")]


@PRECISIONS
@pytest.mark.parametrize("key", TABLES)
def test_learning_rates_of_every_epoch(key, precise):
    wanted = goldens.load("lr_schedule")[key]
    with goldens.precision(precise):
        settings = optimizer.read(
            {
                **common.PHASE,
                **dict(
                    num_steps=3 * len(wanted),
                    learning_rate=0.002,
                    schedule="epoch_cosine",
                    steps_per_epoch=3,
                ),
            },
            "phase",
        )
        found = jax.vmap(optimizer.schedule(settings))(np.arange(3 * len(wanted)))
    # A float32 cosine near pi leaves 1e-7 of the peak.
    found = np.asarray(found).reshape(-1, 3)
    assert np.all(found == found[:, :1])
    np.testing.assert_allclose(found[:, 0], wanted, atol=1e-15 if precise else 1e-9)

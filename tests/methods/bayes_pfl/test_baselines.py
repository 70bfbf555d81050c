"""The baselines inside the method: a bank without draws, and plain CLIP captions."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_bayes_pfl import CATEGORIES, DATASET, SIZE, Made, batch, config

import jaxanom
from jaxanom import trees
from jaxanom.methods import bayes_pfl
from jaxanom.methods.bayes_pfl import distributions
from jaxanom.models.clip import pair as clip_pair

ONE = {"num_prompts": 1, "draws_test": 1}


@pytest.fixture(scope="module")
def learned(tiny_backbone):
    return Made(tiny_backbone, prompts="learned", **ONE)


def test_a_learned_bank_has_no_distributions_and_no_divergence(learned, tiny_backbone):
    parts = set(learned.params)
    assert not {name for name in parts if "flow" in name or "encoder" in name}
    assert {"prompts", "attention", "temperatures"} <= parts
    value, terms, grads = learned.loss_and_grads(batch(), entry=0)
    for name in ("kl_isd", "kl_normal", "kl_abnormal", "orthogonality"):
        assert terms[name] == 0, name
    rest = terms["ce"] + terms["focal"] + terms["dice"]
    assert value == pytest.approx(rest, rel=1e-5)
    trained, _ = trees.split(grads, bayes_pfl.trainable_1(learned.options))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(trained))
    # Negative control: with draws there is a divergence.
    drawn = Made(tiny_backbone, **ONE)
    assert drawn.loss_and_grads(batch(), entry=0)[1]["kl_isd"] > 0


def test_a_learned_bank_ignores_noise_and_key(learned, tiny_backbone):
    first = learned.loss_and_grads(batch(), entry=0, noise=learned.noise(4, seed=1))
    again = learned.loss_and_grads(batch(), entry=0, noise=learned.noise(4, seed=2))
    assert first[0] == again[0]
    predict = jax.jit(learned.method.predict)
    one, two = (
        predict(learned.params, learned.frozen, batch(), jax.random.key(seed))
        for seed in (0, 1)
    )
    np.testing.assert_array_equal(one.anomaly_map, two.anomaly_map)
    assert one.anomaly_map_std is None and one.image_score_std is None
    # Negative control: with draws both differ.
    drawn = Made(tiny_backbone, **ONE)
    other = [
        drawn.loss_and_grads(batch(), entry=0, noise=drawn.noise(4, seed=seed))[0]
        for seed in (1, 2)
    ]
    assert other[0] != other[1]


def test_a_learned_bank_is_the_method_with_shifts_of_zero(learned):
    """The prompt vectors of its draws are the bank itself."""
    noise = distributions.noise(jax.random.key(0), 4, 1, learned.network.width)
    seen = learned.seen(batch()["image"])
    variables = {"params": learned.params}
    draws = learned.network.apply(variables, *seen, noise, method="draw")
    vectors = learned.network.apply(variables, draws, method="prompt_vectors")
    bank = learned.params["prompts"]
    wanted = np.concatenate([bank["context"], bank["abnormal"]], axis=1)
    np.testing.assert_array_equal(vectors[2, 1, 0], wanted)


def captions(backbone, **changes):
    found = config(backbone, prompts="captions", **ONE, **changes)
    found.data.image_size = SIZE
    found.data.num_views, found.data.flips = 1, ()
    for phase in found.phases.values():
        phase.num_steps = 0
    return found


def test_captions_score_by_clips_own_cosines(tiny_backbone):
    """Against the towers' general wrapper, which knows nothing of this method."""
    method = bayes_pfl.make(captions(tiny_backbone, map_weight=0.0, sigma=0.0), DATASET)
    params, frozen = method.init(jax.random.key(0))
    assert params == {} and method.encode is None
    rows = batch()
    found = method.predict(params, frozen, rows, jax.random.key(0))
    assert found.anomaly_map_std is None

    pair = clip_pair.load(tiny_backbone)
    pooled, tokens = pair.encode_image(pair.image_params, rows["image"])
    texts = np.asarray(frozen["captions"])  # [C, 2, D]
    np.testing.assert_allclose(np.linalg.norm(texts, axis=-1), 1, rtol=1e-5)
    scale = np.exp(pair.logit_scale)
    for row, category in enumerate(np.asarray(rows["category_id"])):
        logits = scale * texts[category] @ np.asarray(pooled[row])  # [2]
        wanted = np.exp(logits[1]) / np.exp(logits).sum()
        assert float(found.image_score[row]) == pytest.approx(wanted, rel=1e-4)
        cell = scale * np.asarray(tokens[row, 0, 0]) @ texts[category].T
        corner = np.exp(cell[1]) / np.exp(cell).sum()
        assert found.anomaly_map[row, 0, 0] == pytest.approx(corner, rel=1e-4)


def test_the_abnormal_caption_is_the_second_one(tiny_backbone):
    """Negative control of the sign: exchanged captions turn every score around."""
    one = captions(tiny_backbone, map_weight=0.0)
    two = captions(tiny_backbone, map_weight=0.0)
    two.bayes_pfl.normal_caption = one.bayes_pfl.abnormal_caption
    two.bayes_pfl.abnormal_caption = one.bayes_pfl.normal_caption
    scores = []
    for settings in (one, two):
        method = bayes_pfl.make(settings, DATASET)
        params, frozen = method.init(jax.random.key(0))
        assert frozen["captions"].shape[:2] == (len(CATEGORIES), 2)
        found = method.predict(params, frozen, batch(), jax.random.key(0))
        scores.append(np.asarray(found.image_score))
    np.testing.assert_allclose(scores[0] + scores[1], 1, atol=1e-5)
    assert np.abs(scores[0] - scores[1]).max() > 1e-3


def test_a_share_of_the_captions_is_a_weighted_mean_of_both_answers(tiny_backbone):
    one = {"map_weight": 0.0, "sigma": 0.0}
    plain = bayes_pfl.make(captions(tiny_backbone, **one), DATASET)
    known = plain.predict(*plain.init(jax.random.key(0)), batch(), jax.random.key(0))
    alone, joined = (
        Made(tiny_backbone, caption_share=share, **one) for share in (0.0, 0.25)
    )
    assert "captions" not in alone.frozen
    found = [
        made.method.predict(alone.params, made.frozen, batch(), jax.random.key(0))
        for made in (alone, joined)
    ]
    for name in ("anomaly_map", "image_score"):
        first, both = (getattr(answer, name) for answer in found)
        wanted = 0.75 * first + 0.25 * getattr(known, name)
        np.testing.assert_allclose(both, wanted, atol=1e-6, err_msg=name)
        assert np.abs(both - first).max() > 1e-3, "negative control: it does change"
        # The captions draw nothing: what is left of the spread is the draws' share.
        spread, rest = (getattr(answer, f"{name}_std") for answer in found)
        np.testing.assert_allclose(rest, 0.75 * spread, atol=1e-6)


def test_a_share_of_the_captions_reads_cached_features_alike(tiny_backbone):
    made = Made(tiny_backbone, caption_share=0.5)
    encoded = made.method.encode(made.frozen, batch())
    assert "image" not in encoded
    one, other = (
        made.method.predict(made.params, made.frozen, rows, jax.random.key(0))
        for rows in (batch(), encoded)
    )
    np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, atol=1e-6)


def test_plain_captions_train_evaluate_and_load_as_a_run_does(tiny_backbone, tmp_path):
    settings = captions(tiny_backbone)
    run = jaxanom.train(settings, tmp_path / "run")
    first = jaxanom.evaluate(run, num_examples=0)["mean"]
    again = jaxanom.evaluate(jaxanom.load(tmp_path / "run"), num_examples=0)["mean"]
    assert first == again and np.isfinite(first["pixel_auroc"])


def test_settings_a_baseline_would_not_heed_are_refused(tiny_backbone):
    with pytest.raises(ValueError, match=r"draws_test=3.*set it to 1"):
        bayes_pfl.make(config(tiny_backbone, prompts="learned"), DATASET)
    with pytest.raises(ValueError, match=r"stage1.num_steps=2.*set it to 0"):
        bayes_pfl.make(config(tiny_backbone, prompts="captions", **ONE), DATASET)
    with pytest.raises(ValueError, match=r"\{category\} once"):
        broken = captions(tiny_backbone, normal_caption="a flawless thing")
        bayes_pfl.make(broken, DATASET)
    with pytest.raises(ValueError, match=r"\{category\} once"):
        broken = config(tiny_backbone, caption_share=0.5, abnormal_caption="broken")
        bayes_pfl.make(broken, DATASET)
    with pytest.raises(ValueError, match=r"caption_share=0.5.*set it to 0"):
        bayes_pfl.make(captions(tiny_backbone, caption_share=0.5), DATASET)


def test_a_share_of_the_captions_needs_the_last_layer(tiny_backbone):
    made = Made(tiny_backbone, caption_share=0.5)
    bayes_pfl.check(made.towers, made.options, (SIZE, SIZE))
    image = made.towers.image
    deeper = dataclasses.replace(image.config, num_hidden_layers=2)
    towers = made.towers._replace(image=image.clone(config=deeper))
    with pytest.raises(ValueError, match=r"layers end with 2 .*\(1,\)"):
        bayes_pfl.check(towers, made.options, (SIZE, SIZE))

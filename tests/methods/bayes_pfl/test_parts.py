"""Options, initial weights, sentences, heads and released names, part by part."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_bayes_pfl import CATEGORIES, DATASET, Made, batch, config, options_of
from to_released import to_released

from jaxanom import trees
from jaxanom.methods import bayes_pfl, by_name
from jaxanom.methods.bayes_pfl import (
    distributions,
    heads,
    model,
    objective,
    predict,
    released,
    sentences,
)
from jaxanom.models import backbones
from jaxanom.models.clip import towers as clip
from jaxanom.models.clip.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def made(tiny_backbone):
    return Made(tiny_backbone)


def test_the_method_is_known_by_name_and_splits_into_two_stages(tiny_backbone):
    method = by_name.make(config(tiny_backbone), DATASET)
    assert [phase.name for phase in method.phases] == ["stage1", "stage2"]
    params, frozen = method.init(jax.random.key(0))
    assert sorted(frozen) == ["clip", "names"]
    first, rest = trees.split(params, method.phases[0].trainable)
    second, _ = trees.split(params, method.phases[1].trainable)
    assert sorted(rest) == ["fuse", "image_mapping"]
    assert sorted(second) == ["class_mapping", "fuse", "image_mapping"]
    assert trees.num_params(first) + trees.num_params(rest) == trees.num_params(params)


def test_initial_weights_are_drawn_as_released(tiny_backbone):
    params, _ = bayes_pfl.make(config(tiny_backbone), DATASET).init(jax.random.key(1))
    flat = trees.flatten(params)
    for name, mean in (("context", 0.0), ("normal", 0.5), ("abnormal", -0.5)):
        tokens = np.asarray(flat[f"prompts/{name}"])
        # Standard errors below 0.02 / sqrt(60).
        assert abs(tokens.mean() - mean) < 0.01 and 0.015 < tokens.std() < 0.025
    assert float(flat["temperatures/pixel"]) == pytest.approx(np.log(1 / 0.07))
    assert 0.8 < np.std(flat["normal_flow/u"]) < 1.2
    for path, leaf in flat.items():
        if path.endswith("kernel") and "attention" not in path:
            assert 0.012 < np.std(leaf) < 0.028, path
        if path.endswith("bias") and "attention" not in path:
            assert not np.any(leaf), path
    bound = params["prompts"]["context"].shape[-1] ** -0.5
    query = np.asarray(flat["attention/query/kernel"])
    assert np.abs(query).max() <= bound and np.abs(query).max() > 0.9 * bound


@pytest.mark.parametrize(
    "key, value, match",
    [
        ("num_prompts", 0, "num_prompts=0; wanted 1 or more"),
        ("variance", "std", "variance='std'; choose one of"),
        ("flow_constraint", "hat", "flow_constraint='hat'"),
        ("map_weight", 1.5, r"map_weight=1\.5; wanted 0 to 1"),
        ("layers", (1, 9), r"layers=\(1, 9\); the image tower has layers 1 to 1"),
        ("num_heads", 3, "num_heads=3 does not divide the width 16"),
        ("num_context", 40, "text tower has 24; lower config.bayes_pfl.num_context"),
        ("extra", 1, r"unknown keys \['extra'\]"),
    ],
)
def test_a_wrong_option_is_refused_by_its_key(tiny_backbone, key, value, match):
    asked = config(tiny_backbone)
    with asked.unlocked(), asked.bayes_pfl.unlocked():
        if key in asked.bayes_pfl and isinstance(value, tuple | int | float):
            del asked.bayes_pfl[key]
        asked.bayes_pfl[key] = value
    with pytest.raises(ValueError, match=match):
        bayes_pfl.make(asked, DATASET).init(jax.random.key(0))


def test_an_image_that_is_no_multiple_of_a_patch_is_refused(tiny_backbone):
    odd = type(DATASET)(categories=CATEGORIES, image_size=(16, 20))
    with pytest.raises(ValueError, match=r"16x20 do not divide into patches of 8"):
        bayes_pfl.make(config(tiny_backbone), odd)


def test_names_are_cut_after_the_longest_and_cutting_changes_nothing(
    made, tiny_backbone
):
    words = Tokenizer(tiny_backbone / "tokenizer")
    tower = backbones.load_clip(tiny_backbone)
    found = sentences.Names(**made.frozen["names"])
    lengths = np.asarray(found.eos_positions) + 1
    assert found.words.shape[1] == lengths.max() < 24
    ids = words.words(["pill", "juice bottle", "nut"])
    num_vectors = made.options.num_context + made.options.num_states
    assert [len(row) + num_vectors + 2 for row in ids] == lengths.tolist()
    table = tower.params["text_model"]["embeddings"]["token_embedding"]["embedding"]
    whole = sentences.names(ids, words, table, num_vectors, 24)
    rng = np.random.default_rng(0)
    vectors = jnp.asarray(rng.normal(size=(3, 2, num_vectors, 16)), jnp.float32)

    @jax.jit
    def run(names, chunk_free):
        return [
            sentences.encode(
                made.towers.text, tower.params, names, vectors, jnp.arange(3), chunk
            )
            for chunk in (None, 4)
        ]

    cut, chunked = run(found, True)
    full, _ = run(whole, True)
    # Causal: what stands after the end token is never seen. Float32 sums.
    np.testing.assert_allclose(cut, full, atol=1e-5)
    np.testing.assert_allclose(chunked, cut, atol=1e-5)
    # Negative control: the name is seen.
    other = sentences.encode(
        made.towers.text, tower.params, found, vectors, jnp.array([1, 1, 1])
    )
    assert np.abs(other[0] - cut[0]).max() > 1e-3
    np.testing.assert_allclose(other[1], cut[1], atol=1e-5)


def plain_upsample(grid, size):
    """Bilinear, corners on corners, by hand."""
    out = np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            v = y * (grid.shape[0] - 1) / max(size[0] - 1, 1)
            u = x * (grid.shape[1] - 1) / max(size[1] - 1, 1)
            top, left = int(v), int(u)
            low = min(top + 1, grid.shape[0] - 1)
            right = min(left + 1, grid.shape[1] - 1)
            rows = grid[[top, low]] @ np.eye(grid.shape[1])[:, [left, right]]
            out[y, x] = (
                np.array([1 - (v - top), v - top])
                @ rows
                @ [
                    1 - (u - left),
                    u - left,
                ]
            )
    return out


@pytest.mark.parametrize("shape, size", [((3, 4), (9, 13)), ((2, 2), (16, 16))])
def test_two_matrix_products_are_bilinear_upsampling(shape, size):
    grid = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = heads.upsample(jnp.asarray(grid)[None], size)[0]
    np.testing.assert_allclose(found, plain_upsample(grid, size), atol=1e-5)
    np.testing.assert_allclose(found[0, 0], grid[0, 0], atol=1e-6)
    np.testing.assert_allclose(found[-1, -1], grid[-1, -1], atol=1e-6)


def test_the_sigmoid_of_an_upsampled_margin_is_the_softmax_of_upsampled_logits(made):
    rng = np.random.default_rng(2)
    text = jnp.asarray(rng.normal(size=(2, 6, 16)), jnp.float32)
    text /= jnp.linalg.norm(text, axis=-1, keepdims=True)
    tokens = jnp.asarray(rng.normal(size=(2, 1, 4, 16)), jnp.float32)
    variables = {"params": made.params}
    logits, margins = (
        made.network.apply(variables, text, tokens, method=name)
        for name in ("pixel_logits", "pixel_margins")
    )
    size = DATASET.image_size
    maps = heads.upsample(heads.square(logits, (2, 2)), size)
    pairs = jnp.stack(jnp.split(maps, 2, axis=2), axis=-1)
    wanted = jax.nn.softmax(pairs, axis=-1)[..., 1]
    found = jax.nn.sigmoid(heads.upsample(heads.square(margins, (2, 2)), size))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(found - 0.5).max() > 0.05


def test_attention_treats_each_text_alone(made):
    """So that the drawn pair alone may be adapted."""
    rng = np.random.default_rng(3)
    text = jnp.asarray(rng.normal(size=(1, 4, 16)), jnp.float32)
    text /= jnp.linalg.norm(text, axis=-1, keepdims=True)
    tokens = jnp.asarray(rng.normal(size=(1, 1, 4, 16)), jnp.float32)
    variables = {"params": made.params}
    whole, _ = made.network.apply(variables, text, tokens, method="adapt")
    part, _ = made.network.apply(variables, text[:, 1::2], tokens, method="adapt")
    np.testing.assert_allclose(part, whole[:, :, 1::2], atol=1e-6)


def test_released_names_go_there_and_back(tiny_backbone):
    made = Made(tiny_backbone, reconstruction_weight=1.0)
    tensors = to_released(jax.tree.map(np.asarray, made.params))
    assert tensors["PFL_normal.amor_w"].shape == (1, 3, 1, 16)
    assert tensors["RCA.q_proj_pre.weight"].shape == (16, 16, 1)
    back = released.from_released(tensors, made.params)
    jax.tree.map(np.testing.assert_array_equal, back, made.params)
    # Kernels are transposed: square ones would pass a check of shapes.
    kernel = made.params["class_mapping"]["kernel"]
    np.testing.assert_array_equal(tensors["class_mapping.weight"], kernel.T)


def test_a_foreign_checkpoint_is_refused_by_name(made):
    tensors = to_released(jax.tree.map(np.asarray, made.params))
    unused = {"state_decoder.weight_mean.module.0.weight": np.zeros((2, 2))}
    released.from_released(tensors | unused, made.params)
    for change, match in (
        ({"visual.proj": np.zeros(2)}, r"visual\.proj is of no use"),
        (
            {"prompt_context": np.zeros((9, 3, 16))},
            r"prompt_context gives \(9, 3, 16\)",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            released.from_released(tensors | change, made.params)
    del tensors["class_mapping.bias"]
    with pytest.raises(ValueError, match=r"class_mapping\.bias'\] missing"):
        released.from_released(tensors, made.params)


def test_a_run_may_start_from_a_released_file(made, tiny_backbone, tmp_path):
    """As the authors save it: one dict of tensors below a name of its own."""
    torch = pytest.importorskip("torch")
    tensors = to_released(jax.tree.map(np.asarray, made.params))
    state = {name: torch.from_numpy(value.copy()) for name, value in tensors.items()}
    path = tmp_path / "epoch_post_9_2.pth"
    torch.save({"MyModel": state}, path)
    asked = config(tiny_backbone, checkpoint=str(path))
    params, _ = bayes_pfl.make(asked, DATASET).init(jax.random.key(9))
    jax.tree.map(np.testing.assert_array_equal, params, made.params)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bayes_pfl\.checkpoint=.*epoch_post_9_2"):
        bayes_pfl.make(asked, DATASET).init(jax.random.key(9))


def test_encoding_keeps_what_both_losses_and_predictions_need(made):
    found = jax.eval_shape(made.method.encode, made.frozen, batch())
    assert found["patch_tokens"].shape == (4, 1, 4, 16)
    assert found["image_features"].shape == (4, 16)
    assert set(found) == {
        *("image_features", "patch_tokens", "row_seed"),
        *("label", "mask", "category_id", "defect_id", "valid"),
    }


def test_the_image_head_is_the_one_asked_for_also_when_a_run_is_loaded(
    tiny_backbone, made, monkeypatch
):
    stages = []
    monkeypatch.setattr(
        predict, "make_predict", lambda *args: stages.append(args[2]) or len
    )
    # Loading sets all numbers of steps to 0.
    for num_steps in ((2, 2), (0, 0), (2, 0)):
        for head in ("pooled", "fused"):
            asked = config(tiny_backbone, image_head=head)
            for phase, count in zip(("stage1", "stage2"), num_steps, strict=True):
                asked.phases[phase].num_steps = count
            if num_steps == (2, 0) and head == "fused":
                with pytest.raises(ValueError, match="image_head='pooled'"):
                    bayes_pfl.make(asked, DATASET)
                continue
            bayes_pfl.make(asked, DATASET)
    # Two measured stages, then the predictions, of each.
    assert stages == [1, 2, 1, 1, 2, 2] * 2 + [1, 2, 1]
    seen = made.seen(batch(2)["image"])
    pooled, mapped = (
        made.network.apply(
            {"params": made.params}, *seen, stage, method="image_feature"
        )
        for stage in (1, 2)
    )
    np.testing.assert_array_equal(pooled, seen.image_features)
    assert np.abs(mapped - pooled).max() > 1e-2


def test_a_clip_as_transformers_saves_it_is_the_same_clip(made, tiny_clip):
    """Its tokenizer's files lie beside the weights."""
    method = bayes_pfl.make(config(tiny_clip), DATASET)
    _, frozen = method.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, frozen, made.frozen)


def test_towers_take_the_activation_asked_for(made):
    clip_config = made.towers.image.config
    assert made.options.clip_act == "" and clip_config.hidden_act == "quick_gelu"
    whole = clip.ClipConfig()
    for changed, wanted in (
        ({"clip_act": "gelu"}, "gelu"),
        ({}, "gelu"),
        ({"prompts": "captions"}, "quick_gelu"),  # plain CLIP is the weights' own
        ({"prompts": "captions", "clip_act": "gelu"}, "gelu"),
        ({"caption_share": 0.5}, "gelu"),
    ):
        options = options_of()._replace(**changed)
        towers = bayes_pfl.build_towers(whole, options, "float32")
        for tower in (towers.text, towers.image):
            assert tower.config.hidden_act == wanted, changed
    assert isinstance(towers, objective.Towers)


def test_the_published_setting_has_the_published_number_of_parameters():
    """27,370,017, of which the decoders of the unused reconstruction are 3,872,512."""
    network = model.Network(options_of(), 768, 512)
    rows = jnp.zeros((1, 1, 768))
    shapes = jax.eval_shape(
        network.init,
        jax.random.key(0),
        jnp.zeros((1, 768)),
        jnp.zeros((1, 4, 1, 1024)),
        distributions.Noise(rows, rows, rows),
    )
    assert trees.num_params(shapes) == 27_370_017 - 3_872_512


def test_pairs_with_one_beginning_are_encoded_as_two_sentences(tiny_backbone):
    made = Made(tiny_backbone)
    rng = np.random.default_rng(2)
    shape = (3, 2, 2, 2, 5, made.network.width)  # [N, 2, R, B, P + Q, D]
    vectors = rng.normal(size=shape).astype(np.float32)
    vectors[:, 1, ..., :3, :] = vectors[:, 0, ..., :3, :]
    category_id = jnp.array([1, 0, 2])
    names = sentences.Names(**made.frozen["names"])
    tower, params = made.towers.text, made.frozen["clip"]

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def pairs(vectors, chunk=None, num_shared=3):
        return sentences.encode_pairs(
            tower, params, names, vectors, num_shared, category_id, chunk
        )

    plain = jax.jit(
        lambda vectors: sentences.encode(tower, params, names, vectors, category_id)
    )
    wanted = plain(vectors)
    for chunk in (None, 5):  # 12 pairs: a last chunk of two
        found = pairs(vectors, chunk)
        assert found.shape == wanted.shape
        # Two orders of float32 sums through the tower.
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)

    def summed(encode):
        def loss(vectors):
            both = jnp.concatenate([vectors[:, :1], vectors[:, :1]], axis=1)
            both = both.at[..., 3:, :].set(vectors[..., 3:, :])
            return jnp.sum(jnp.sin(3 * encode(both)))

        return jax.grad(loss)(vectors)

    grads, wanted_grads = summed(pairs), summed(plain)
    np.testing.assert_allclose(grads, wanted_grads, rtol=1e-3, atol=1e-5)
    # Negative control: beginnings that differ are not what the shared form is for.
    other = vectors.copy()
    other[:, 1, ..., 0, :] *= -1
    assert np.abs(pairs(other) - plain(other)).max() > 1e-2


def test_projections_may_start_at_clips_own(tiny_backbone):
    made = Made(tiny_backbone)
    tower = made.towers.image
    clip_params = made.frozen["clip"]
    shifted = dict(clip_params["vision_model"])
    rng = np.random.default_rng(3)
    scale = rng.uniform(0.5, 2, made.towers.image.config.hidden_size)
    shifted["post_layernorm"] = {"scale": jnp.asarray(scale), "bias": jnp.zeros(16)}
    clip_params = {**clip_params, "vision_model": shifted}
    tokens = jnp.asarray(rng.normal(2, 3, (5, 16)), jnp.float32)
    wanted = tower.apply({"params": clip_params}, tokens, method="project_tokens")
    matrix = model.clip_projection(clip_params)
    # The norm's epsilon, 1e-5 beside a variance of 9.
    np.testing.assert_allclose(
        clip.normalise(tokens @ matrix), clip.normalise(wanted), atol=1e-5
    )
    for start in ("clip", "random"):
        method = bayes_pfl.make(config(tiny_backbone, projection_init=start), DATASET)
        params, frozen = method.init(jax.random.key(0))
        found = params["attention"]["projections"]
        same = np.allclose(found[0], model.clip_projection(frozen["clip"]))
        assert same == (start == "clip")

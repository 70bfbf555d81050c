import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom import trees
from jaxanom.models.clip import towers as clip

TEXT = clip.TextConfig(
    vocab_size=99,
    hidden_size=16,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=11,
    bos_token_id=97,
    eos_token_id=98,
)
VISION = clip.VisionConfig(
    hidden_size=24,
    intermediate_size=36,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=32,
    patch_size=8,
    hidden_act="gelu",
)
CONFIG = clip.ClipConfig(TEXT, VISION, projection_dim=20)
TEXT_TOWER = clip.TextTower(dataclasses.replace(TEXT, projection_dim=20))
IMAGE_TOWER = clip.ImageTower(dataclasses.replace(VISION, projection_dim=20))


@functools.cache
def weights(config=CONFIG):
    """Random values in every leaf, norms and biases too, so that no path is hidden."""
    ids, image = jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(clip.CLIP(config).init, jax.random.key(0), ids, image)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        x = rng.normal(size=leaf.shape).astype(np.float32)
        if path.endswith("kernel"):
            return 1.5 * x / np.sqrt(np.prod(leaf.shape[:-1]))
        return {"scale": 1 + 0.3 * x, "logit_scale": 1.3 + 0 * x}.get(
            path.rsplit("/", 1)[-1], 0.4 * x
        )

    flat = trees.flatten(shapes["params"])
    return trees.unflatten({p: jnp.asarray(draw(p, v)) for p, v in flat.items()})


def sentences(num=3, length=11, seed=1):
    """Rows start, words, end, padding by the end token, of different lengths."""
    rng = np.random.default_rng(seed)
    ids = np.full((num, length), 98, np.int32)
    for i, row in enumerate(ids):
        row[0] = 97
        row[1 : 4 + i] = rng.integers(0, 97, 3 + i)
    return ids


def pictures(num=2, height=32, width=32, seed=2):
    rng = np.random.default_rng(seed)
    return rng.uniform(size=(num, height, width, 3)).astype(np.float32)


@functools.cache
def compiled(module, names=(), layers=(), method=None):
    """Jitted `module.apply`: one program instead of one for every operation."""

    def call(params, *arrays):
        arguments = dict(zip(names, arrays, strict=True))
        if layers:
            arguments["return_layers"] = layers
        return module.apply({"params": params}, **arguments, method=method)

    return jax.jit(call)


def run(module, layers=(), method=None, **arrays):
    call = compiled(module, tuple(arrays), layers, method)
    return call(weights(), *arrays.values())


def text(input_ids, layers=(0, 1, 2)):
    return run(TEXT_TOWER, layers, input_ids=input_ids)


def image(picture, layers=(0, 2, 1), config=VISION):
    tower = clip.ImageTower(dataclasses.replace(config, projection_dim=20))
    return run(tower, layers, image=picture)


# float32 through two layers; activations are of order ten.
CLOSE = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4)


class TestText:
    def test_words_after_the_end_change_no_feature(self):
        ids = sentences()
        other = ids.copy()
        other[0, 5:] = 7
        one, two = text(ids), text(other)
        CLOSE(one.text_features, two.text_features, atol=1e-6)
        assert float(jnp.abs(one.last_hidden_state - two.last_hidden_state).max()) > 0.1

    def test_words_before_the_end_change_features(self):
        ids = sentences()
        other = ids.copy()
        other[0, 1] += 1
        moved = jnp.abs(text(ids).pooled - text(other).pooled).max(axis=1)
        assert float(moved[0]) > 1e-2 and float(moved[1:].max()) < 1e-6

    def test_cutting_padding_off_changes_no_feature(self):
        ids = sentences()
        CLOSE(text(ids).text_features, text(ids[:, :7]).text_features, atol=1e-5)

    def test_embeddings_of_ids_give_what_ids_give(self):
        ids = sentences()
        table = weights()["text_model"]["embeddings"]["token_embedding"]["embedding"]
        given = run(
            TEXT_TOWER,
            layers=(0, 1, 2),
            token_embeddings=table[ids],
            eos_positions=clip.find_eos(jnp.asarray(ids), 98),
        )
        jax.tree.map(functools.partial(CLOSE, atol=1e-5), given, text(ids))

    def test_pooling_follows_the_published_rule_for_both_eos_ids(self):
        ids = jnp.asarray([[5, 9, 98, 98], [98, 1, 2, 3]])
        np.testing.assert_array_equal(clip.find_eos(ids, 98), [2, 0])
        np.testing.assert_array_equal(clip.find_eos(ids, 2), [2, 0])
        np.testing.assert_array_equal(clip.find_eos(ids, 9), [1, 0])

    def test_tower_without_projection_needs_no_projection_weights(self):
        params = {"text_model": weights()["text_model"]}
        tower = clip.TextTower(TEXT, projection=False)
        out = jax.jit(tower.apply)({"params": params}, sentences())
        assert out.text_features is None
        CLOSE(out.pooled, text(sentences()).pooled)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "exactly one"),
            ({"token_embeddings": np.zeros((1, 4, 16))}, "pass eos_positions"),
            ({"input_ids": np.zeros((1, 12), int)}, "max_position_embeddings=11"),
            ({"input_ids": sentences(), "return_layers": (3,)}, "0 .embedding. to 2"),
        ],
    )
    def test_wrong_calls_say_what_to_change(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            TEXT_TOWER.apply({"params": weights()}, **arguments)


class TestImage:
    def test_patch_tokens_are_the_last_hidden_state_without_class_token(self):
        out = image(pictures())
        assert [h.shape for h in out.hidden_states] == [(2, 17, 24)] * 3
        CLOSE(out.patch_tokens, out.hidden_states[1][:, 1:], atol=0)

    def test_projected_class_token_of_the_last_layer_is_the_image_feature(self):
        out = image(pictures())
        tokens = out.hidden_states[1]
        projected = run(IMAGE_TOWER, method="project_tokens", tokens=tokens)
        CLOSE(projected[:, 0], out.image_features, atol=1e-5)

    def test_projected_tokens_are_normed_first(self):
        tokens = image(pictures()).hidden_states[1]
        parts = weights()
        norm = parts["vision_model"]["post_layernorm"]
        kernel = parts["visual_projection"]["kernel"]
        wide = np.asarray(tokens, np.float64)
        centred = wide - wide.mean(-1, keepdims=True)
        by_hand = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        by_hand = by_hand * norm["scale"] + norm["bias"]
        found = IMAGE_TOWER.apply({"params": parts}, tokens, method="project_tokens")
        CLOSE(found, by_hand @ kernel, atol=1e-4)
        assert np.abs(found - wide @ kernel).max() > 0.1

    def test_patches_can_be_left_out_between_the_halves_of_the_tower(self):
        tokens = run(IMAGE_TOWER, method="embed", image=pictures())
        out = run(IMAGE_TOWER, method="encode", tokens=tokens)
        CLOSE(out.image_features, image(pictures()).image_features, atol=1e-5)
        encode = compiled(IMAGE_TOWER, ("tokens",), (), "encode")
        fewer = jax.eval_shape(encode, weights(), tokens[:, [0, 1, 2, 5, 6]])
        assert fewer.patch_tokens.shape == (2, 4, 24)

    def test_normalisation_is_inside(self):
        mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
        plain = dataclasses.replace(VISION, image_mean=(0, 0, 0), image_std=(1, 1, 1))
        config = dataclasses.replace(VISION, image_mean=mean, image_std=std)
        by_hand = (pictures() - np.float32(mean)) / np.float32(std)
        inside, outside = (
            run(clip.ImageTower(given, projection=False), method="embed", image=x)
            for given, x in ((config, pictures()), (plain, by_hand))
        )
        CLOSE(inside, outside, atol=1e-5)
        default = run(IMAGE_TOWER, method="embed", image=pictures())
        assert float(jnp.abs(inside - default).max()) > 0.1  # other mean, other tokens

    def test_native_size_uses_the_stored_positions(self):
        parts = weights()["vision_model"]
        table = parts["embeddings"]["position_embedding"]["embedding"]
        black = dataclasses.replace(VISION, image_mean=(0.0, 0.0, 0.0))
        tower = clip.ImageTower(black, projection=False)
        embedded = tower.apply(
            {"params": weights()},
            jnp.zeros((1, 32, 32, 3)),
            method=lambda tower, x: tower.vision_model.embeddings(x),
        )
        # A black image leaves nothing but positions in the patch tokens.
        CLOSE(embedded[0, 1:], table[1:], atol=0, rtol=0)
        first = table[0] + parts["embeddings"]["class_embedding"]
        CLOSE(embedded[0, 0], first, atol=0, rtol=0)

    def test_any_multiple_of_the_patch_size_goes_in(self):
        out = jax.eval_shape(image, pictures(1, 40, 56))
        assert out.patch_tokens.shape == (1, 35, 24)

    @pytest.mark.parametrize(
        ("picture", "message"),
        [
            (pictures(1, 36, 32), "multiples of patch_size"),
            (pictures(1)[..., :1], r"wanted \[B, H, W, 3\]"),
            ((255 * pictures(1)).astype(np.uint8), "divide by 255"),
        ],
    )
    def test_wrong_images_say_what_to_change(self, picture, message):
        with pytest.raises(ValueError, match=message):
            image(picture)


CLIP = clip.CLIP(CONFIG)


def both(module=CLIP):
    return run(module, input_ids=sentences(), image=pictures())


class TestBoth:
    def test_logits_are_scaled_cosines(self):
        out = both()
        a, b = (
            np.asarray(x, np.float64)
            for x in (out.image.image_features, out.text.text_features)
        )
        cosines = (a @ b.T) / np.outer(*(np.linalg.norm(x, axis=1) for x in (a, b)))
        CLOSE(out.logits_per_image, np.exp(1.3) * cosines, atol=1e-5)

    def test_towers_read_their_part_of_the_whole_tree(self):
        whole = both()
        CLOSE(whole.text.text_features, text(sentences()).text_features, atol=1e-5)
        CLOSE(whole.image.image_features, image(pictures()).image_features, atol=1e-5)

    def test_bfloat16_stays_near_float32_with_float32_outputs_and_parameters(self):
        tower = clip.ImageTower(IMAGE_TOWER.config, dtype=jnp.bfloat16)
        out = run(tower, layers=(0, 2, 1), image=pictures())
        wanted = image(pictures())
        assert out.patch_tokens.dtype == jnp.bfloat16
        assert out.pooled.dtype == out.image_features.dtype == jnp.float32
        shapes = jax.eval_shape(tower.init, jax.random.key(0), pictures())
        assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
        # 8 significant bits, a dozen roundings in a row: a few percent of the range.
        spread = float(jnp.abs(wanted.image_features).max())
        CLOSE(out.image_features, wanted.image_features, atol=0.05 * spread)

    def test_remat_changes_neither_values_nor_gradients(self):
        config = dataclasses.replace(VISION, num_hidden_layers=1)

        def loss(params, remat):
            tower = clip.ImageTower(config, projection=False, remat=remat)
            out = tower.apply({"params": params}, pictures(1), return_layers=(1,))
            return jnp.sum(out.pooled**3) + jnp.sum(out.hidden_states[0])

        params = {"vision_model": weights()["vision_model"]}
        traced = str(jax.make_jaxpr(loss, static_argnums=1)(params, "full"))
        assert "remat" in traced or "checkpoint" in traced
        grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
        # Sums of hundreds of terms, in another order.
        close = functools.partial(CLOSE, rtol=1e-4)
        jax.tree.map(close, grad(params, "full"), grad(params, "none"))

    def test_gradient_reaches_every_parameter_of_a_layer(self):
        one = clip.ClipConfig(
            dataclasses.replace(TEXT, num_hidden_layers=1),
            dataclasses.replace(VISION, num_hidden_layers=1),
            projection_dim=20,
        )

        def loss(params):
            out = clip.CLIP(one).apply({"params": params}, sentences(), pictures())
            return jnp.sum(jnp.sin(out.logits_per_image))

        grads = trees.flatten(jax.jit(jax.grad(loss))(weights()))
        # Keys' biases shift all logits of a softmax row alike: their gradient is zero.
        dead = [
            path
            for path, grad in grads.items()
            if float(np.abs(grad).max()) < 1e-7 and "k_proj/bias" not in path
        ]
        # Negative control: layer "1" is in the tree and not in this model.
        assert dead and all("/layers/1/" in path for path in dead)

    def test_fresh_weights_have_the_published_spreads(self):
        wide = dataclasses.replace(TEXT, hidden_size=64, num_hidden_layers=1)
        init = jax.jit(clip.TextTower(wide, projection=False).init)
        # This generator compiles much faster than the default one.
        params = init(jax.random.key(3, impl="rbg"), sentences())["params"]
        layer = params["text_model"]["encoder"]["layers"]["0"]
        stds = [
            (0.02, params["text_model"]["embeddings"]["token_embedding"]["embedding"]),
            (64**-0.5, layer["self_attn"]["out_proj"]["kernel"]),
            ((64 * 2) ** -0.5, layer["self_attn"]["q_proj"]["kernel"]),
            ((2 * 64) ** -0.5, layer["mlp"]["fc1"]["kernel"]),
        ]
        for std, kernel in stds:
            # 2560 draws or more: the sample deviation is within 5 percent.
            assert abs(float(np.std(kernel)) / std - 1) < 0.05


class TestConfig:
    def test_dict_of_a_config_reads_back_the_same(self):
        assert clip.ClipConfig.from_dict(dataclasses.asdict(CONFIG)) == (
            dataclasses.replace(
                CONFIG,
                text_config=dataclasses.replace(TEXT, projection_dim=20),
                vision_config=dataclasses.replace(VISION, projection_dim=20),
            )
        )

    def test_preprocessor_sets_mean_and_std(self):
        given = {"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1], "size": 224}
        config = clip.VisionConfig.from_dict({"hidden_size": 24}, given)
        assert config.image_mean == (0.5, 0.5, 0.5) and config.image_std == (1, 1, 1)

    def test_dict_entries_win_over_the_plain_ones(self):
        config = clip.ClipConfig.from_dict(
            {"text_config": {"hidden_size": 8}, "text_config_dict": {"hidden_size": 16}}
        )
        assert config.text_config.hidden_size == 16

    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            ({"text_config": {}}, "ClipConfig.from_dict"),
            ({"hidden_act": "relu"}, "quick_gelu"),
            ({"attention_dropout": 0.1}, "set it to 0"),
            ({"hidden_size": 20, "num_attention_heads": 3}, "not a multiple"),
        ],
    )
    def test_what_the_towers_cannot_do_is_refused(self, raw, message):
        with pytest.raises(ValueError, match=message):
            clip.TextConfig.from_dict(raw)


def published_config(eos_token_id):
    transformers = pytest.importorskip("transformers")
    names = {field.name for field in dataclasses.fields(clip.TextConfig)}
    towers = dataclasses.asdict(CONFIG)
    text_config = {k: v for k, v in towers["text_config"].items() if k in names}
    return transformers.CLIPConfig(
        text_config={**text_config, "eos_token_id": eos_token_id},
        vision_config=towers["vision_config"],
        projection_dim=20,
    )


@pytest.mark.parametrize("eos_token_id", [98, 2])
def test_parity_with_torch(eos_token_id):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = published_config(eos_token_id)
    model = transformers.CLIPModel(config).eval()
    state = {}
    for path, leaf in trees.flatten(weights()).items():
        name = path.replace("/", ".")
        leaf = np.array(leaf)
        if path.endswith("/kernel"):
            leaf = leaf.T if leaf.ndim == 2 else leaf.transpose(3, 2, 0, 1)
        for ours in (".kernel", ".scale", ".embedding"):
            name = name.removesuffix(ours) + ".weight" if name.endswith(ours) else name
        state[name] = torch.from_numpy(leaf.copy())
    model.load_state_dict(state)  # strict: names and shapes all agree
    pixels = normalised(pictures())
    with torch.no_grad():
        wanted = model(
            input_ids=torch.from_numpy(sentences()).long(),
            pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
            output_hidden_states=True,
        )
        large = normalised(pictures(1, 40, 56)).transpose(0, 3, 1, 2).copy()
        resized = model.vision_model(
            torch.from_numpy(large), interpolate_pos_encoding=True
        )
    compare(wanted, eos_token_id)
    ours = image(pictures(1, 40, 56), (2,))
    CLOSE(ours.patch_tokens, resized.last_hidden_state[:, 1:])
    CLOSE(ours.pooled, resized.pooler_output)


def test_parity_with_flax():
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "FlaxCLIPModel"):
        pytest.skip("this transformers has no Flax classes")
    model = transformers.FlaxCLIPModel(published_config(98), _do_init=False)
    pixels = normalised(pictures()).transpose(0, 3, 1, 2)

    @jax.jit
    def theirs(params):  # the very tree, unconverted
        out = model(sentences(), pixels, params=params, output_hidden_states=True)
        return dict(out) | {
            name: dict(out[name])
            for name in ("text_model_output", "vision_model_output")
        }

    compare(theirs(weights()), 98)


def normalised(picture):
    return (picture - np.float32(VISION.image_mean)) / np.float32(VISION.image_std)


def compare(wanted, eos_token_id):
    eos = {"eos_token_id": eos_token_id}
    module = clip.CLIP(
        dataclasses.replace(CONFIG, text_config=dataclasses.replace(TEXT, **eos))
    )
    layers = (0, 1, 2)
    ours = run(module, layers, "encode_text", input_ids=sentences())
    theirs = wanted["text_model_output"]
    CLOSE(ours.last_hidden_state, theirs["last_hidden_state"])
    CLOSE(ours.pooled, theirs["pooler_output"])
    for mine, other in zip(ours.hidden_states, theirs["hidden_states"], strict=True):
        CLOSE(mine, other)
    ours = image(pictures(), layers)
    theirs = wanted["vision_model_output"]
    CLOSE(ours.pooled, theirs["pooler_output"])
    CLOSE(ours.patch_tokens, theirs["last_hidden_state"][:, 1:])
    for mine, other in zip(ours.hidden_states, theirs["hidden_states"], strict=True):
        CLOSE(mine, other)
    CLOSE(both().logits_per_image, wanted["logits_per_image"])

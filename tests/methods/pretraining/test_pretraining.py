"""Training of the shipped towers: captions, boxes, crops, and what is written."""

import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs.pretraining import base
from jaxanom.data.foundry import captions as words
from jaxanom.data.foundry import names
from jaxanom.methods import pretraining
from jaxanom.methods.pretraining import (
    autoencoder,
    captions,
    contrastive,
    denoiser,
)
from jaxanom.models import backbones
from jaxanom.models.checkpoints import pretrained
from jaxanom.models.clip import tokenizer

CATEGORIES = ("pill", "grid", "leather")
DEFECTS = ("good", "crack", "stain", "missing_part")
SIZE = 16


@pytest.fixture(scope="module")
def table():
    return captions.table(CATEGORIES, DEFECTS)


def true_of(table, text_number, category, defect):
    """Whether a caption is true of an image, by looking it up everywhere."""
    general = table.state[category, int(defect > 0)]
    return text_number in table.specific[category, defect] or text_number in general


def test_captions_are_distinct_and_the_first_is_empty(table):
    assert table.texts[0] == "" and len(set(table.texts)) == len(table.texts)
    assert table.specific.shape[:2] == (3, 4) and table.state.shape[:2] == (3, 2)
    assert table.neutral.shape == (3,) and table.alone.shape == (4,)
    used = np.concatenate([np.ravel(part) for part in table[1:]])
    assert set(used) | {0} == set(range(len(table.texts)))


def test_every_caption_says_what_it_is_filed_under(table):
    for c, category in enumerate(CATEGORIES):
        said = words.words(category)
        assert said in table.texts[table.neutral[c]]
        for numbers in (*table.state[c], *table.specific[c]):
            assert all(said in table.texts[number] for number in numbers)
        for k, defect in enumerate(DEFECTS[1:], start=1):
            named = words.words(defect)
            texts = [table.texts[number] for number in table.specific[c, k]]
            assert all(named in text for text in texts)
    assert table.texts[table.alone[1]] == "a photo of a crack"
    assert table.alone[0] == 0


def test_a_specific_caption_is_true_of_one_defect_of_one_category(table):
    sets = {
        (c, k): set(table.specific[c, k].tolist())
        for c in range(len(CATEGORIES))
        for k in range(len(DEFECTS))
    }
    for one in sets:
        for other in sets:
            if one != other:
                assert not sets[one] & sets[other], (one, other)


def test_general_captions_tell_good_from_damaged_and_name_no_defect(table):
    for c in range(len(CATEGORIES)):
        good, damaged = (set(row.tolist()) for row in table.state[c])
        assert not good & damaged
        for number in good | damaged:
            text = table.texts[number]
            assert not any(words.words(d) in text for d in DEFECTS[1:]), text
        for k in range(1, len(DEFECTS)):
            assert not (good | damaged) & set(table.specific[c, k].tolist())


def test_every_caption_of_the_dataset_fits_the_recipe_s_text_length(tmp_path):
    whole = captions.table(names.CATEGORIES, ("good", *names.DEFECT_TYPES))
    trained = tokenizer.train(whole.texts, 1024, tmp_path)
    assert trained.encode(list(whole.texts), 24).shape == (len(whole.texts), 24)


def rows(count=64, seed=0):
    rng = np.random.default_rng(seed)
    defect = rng.integers(0, len(DEFECTS), count) * rng.integers(0, 2, count)
    return {
        "category_id": rng.integers(0, len(CATEGORIES), count).astype(np.int32),
        "defect_id": defect.astype(np.int32),
        "label": (defect > 0).astype(np.int32),
    }


def test_positives_are_exactly_the_captions_that_are_true_of_an_image(table):
    batch = rows()
    general = np.random.default_rng(1).random(64) < 0.4
    numbers = np.where(
        general,
        table.state[batch["category_id"], batch["label"], 0],
        table.specific[batch["category_id"], batch["defect_id"], 1],
    )
    found = contrastive.positives(
        *(jnp.asarray(batch[key]) for key in ("category_id", "label", "defect_id")),
        jnp.asarray(general),
    )
    wanted = [
        [true_of(table, number, c, k) for number in numbers]
        for c, k in zip(batch["category_id"], batch["defect_id"], strict=True)
    ]
    np.testing.assert_array_equal(found, wanted)
    assert np.diagonal(found).all()
    # Not symmetric: a general caption is true of images whose own is not true of it.
    assert np.any(found != np.transpose(found))


def frozen_of(table):
    return {name: jnp.asarray(part) for name, part in table.numbers().items()}


def test_drawn_captions_are_true_or_empty_in_the_asked_proportion(table):
    batch = {key: jnp.asarray(value) for key, value in rows(4000).items()}
    numbers = np.asarray(
        denoiser._draw_captions(jax.random.key(0), frozen_of(table), batch, 0.1)
    )
    alone = 0
    for number, c, k in zip(
        numbers, batch["category_id"], batch["defect_id"], strict=True
    ):
        is_alone = k > 0 and number == table.alone[k]
        alone += int(is_alone)
        assert number == 0 or is_alone or true_of(table, number, c, k)
    # Deviations of 4000 draws: 0.005 at 0.1 and 0.006 at 0.18 of the defective rows.
    assert np.mean(numbers == 0) == pytest.approx(0.1, abs=0.02)
    share = alone / float(np.sum(np.asarray(batch["label"])))
    assert share == pytest.approx(0.2 * 0.9, abs=0.04)
    for empty, wanted in ((0.0, False), (1.0, True)):
        numbers = denoiser._draw_captions(
            jax.random.key(1), frozen_of(table), batch, empty
        )
        assert bool(jnp.any(numbers == 0)) is wanted
        assert bool(jnp.all(numbers == 0)) is wanted


def test_boxes_are_rectangles_of_an_eighth_to_a_half_on_a_share_of_the_rows():
    found = np.asarray(denoiser._boxes(jax.random.key(0), (2000, 16, 16), 0.25))
    assert found.shape == (2000, 16, 16, 1) and found.dtype == bool
    found = found[..., 0]
    has = found.any((1, 2))
    assert has.mean() == pytest.approx(0.25, abs=0.04)  # deviation 0.01
    for box in found[has]:
        high, wide = box.any(1).sum(), box.any(0).sum()
        assert box.sum() == high * wide, "a full rectangle"
        assert np.ptp(np.flatnonzero(box.any(1))) == high - 1, "in one piece"
        assert 2 <= high <= 8 and 2 <= wide <= 8
    assert found.any((0, 1)).all() and found.any((0, 2)).all(), "up to every border"
    assert not np.any(denoiser._boxes(jax.random.key(0), (50, 16, 16), 0.0))


def test_crops_are_pieces_of_their_own_row():
    image = jnp.arange(3 * 8 * 10 * 3, dtype=jnp.float32).reshape(3, 8, 10, 3)
    found = np.asarray(autoencoder.random_crops(jax.random.key(0), image, 4))
    assert found.shape == (3, 4, 4, 3)
    places = set()
    for row, piece in enumerate(found):
        offset = int(piece[0, 0, 0] - image[row, 0, 0, 0]) // 3
        top, left = divmod(offset, 10)
        places.add((top, left))
        np.testing.assert_array_equal(piece, image[row, top : top + 4, left : left + 4])
    assert len(places) > 1
    whole = autoencoder.random_crops(jax.random.key(0), image, 0)
    np.testing.assert_array_equal(whole, image)


def test_mirrored_rows_keep_image_and_mask_together():
    rng = np.random.default_rng(0)
    mask = (rng.random((32, 4, 6)) > 0.5).astype(np.float32)
    image = jnp.asarray(np.repeat(mask[..., None], 3, -1))
    flipped, moved = contrastive._flip(jax.random.key(0), image, jnp.asarray(mask))
    np.testing.assert_array_equal(flipped[..., 0], moved)
    same = (np.asarray(moved) == mask).all((1, 2))
    mirrored = (np.asarray(moved) == mask[:, :, ::-1]).all((1, 2))
    assert (same | mirrored).all() and 8 < same.sum() < 24


def test_the_dense_loss_is_low_for_the_right_patches_and_high_for_the_wrong_ones():
    mask = np.zeros((1, 8, 8), np.float32)
    mask[0, 0:4, 4:8] = 1  # patch 1 of 4
    named = jnp.asarray([[[1.0, 0.0], [0.0, 1.0]]])  # flawless, damaged
    right = np.array([[[1, 0], [0, 1], [1, 0], [1, 0]]], np.float32)
    loss = lambda tokens: float(  # noqa: E731
        contrastive._dense_loss(jnp.asarray(tokens), named, 10.0, jnp.asarray(mask), 4)
    )
    # A margin of 10 leaves log(1 + exp(-10)) a patch; half in, half outside.
    assert loss(right) == pytest.approx(np.log1p(np.exp(-10.0)), rel=1e-2)
    assert loss(right[..., ::-1]) == pytest.approx(10.0, rel=1e-3)
    # Three normal patches weigh as much together as the one defective one.
    missed = np.array([[[1, 0]] * 4], np.float32)
    assert loss(missed) == pytest.approx(5.0, rel=1e-3)


def dataset():
    return types.SimpleNamespace(
        categories=CATEGORIES, defect_types=DEFECTS, image_size=(SIZE, SIZE)
    )


def config(tower, **settings):
    section = {"tower": tower, **base.TOWERS.get(tower, {}), **settings}
    return ml_collections.ConfigDict({"pretraining": section})


def test_an_unknown_tower_is_refused():
    with pytest.raises(ValueError, match=r"config\.pretraining\.tower='vae'.*unet"):
        pretraining.make(config(tower="vae"), dataset())


def test_a_key_of_another_tower_is_refused():
    with pytest.raises(ValueError, match=r"config\.pretraining.*unknown.*\['crop'\]"):
        pretraining.make(config(tower="clip", crop=8), dataset())


def test_the_written_autoencoder_makes_latents_of_unit_spread(tmp_path):
    method = pretraining.make(
        config(
            tower="autoencoder",
            block_out_channels=(4, 4),
            latent_channels=2,
            norm_num_groups=2,
            crop=8,
        ),
        dataset(),
    )
    params, frozen = method.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    batch = {"image": jnp.asarray(rng.random((4, SIZE, SIZE, 3)), jnp.float32)}
    method.export(params, frozen, tmp_path, batch)
    loaded = backbones.load_autoencoder(tmp_path)
    moments = loaded.module.apply(
        {"params": loaded.params}, batch["image"], method="encode"
    )
    # float16 weights and a factor of float32: one part in a thousand.
    assert float(np.std(moments.mean)) == pytest.approx(1.0, abs=5e-3)
    assert pretrained.load_config(tmp_path, "vae")["latent_channels"] == 2


def test_holes_have_no_text_of_the_defect_and_no_loss_inside(
    monkeypatch, tiny_backbone
):
    """With `hole_fraction` 1 every row has one: what the network sees and is told."""
    seen = {}
    method = pretraining.make(
        config(
            tower="unet",
            autoencoder=str(tiny_backbone),
            text_encoder=str(tiny_backbone),
            block_out_channels=(8,),
            num_heads=2,
            hole_fraction=1.0,
        ),
        dataset(),
    )
    table = captions.table(CATEGORIES, DEFECTS)
    frozen = frozen_of(table) | {
        "states": jnp.broadcast_to(
            jnp.arange(len(table.texts), dtype=jnp.float32)[:, None, None],
            (len(table.texts), 2, 16),
        )
    }
    batch = {key: jnp.asarray(value) for key, value in rows(8).items()}
    rng = np.random.default_rng(0)
    batch["latents"] = jnp.asarray(rng.normal(size=(8, 8, 8, 4)), jnp.float32)

    def network(self, variables, latents, timesteps, context):
        seen.update(latents=latents, context=context)
        return jnp.where(latents == 0, variables["params"]["inside"], 0.0)

    monkeypatch.setattr(denoiser.unet.UNet, "apply", network)
    (phase,) = method.phases

    def loss(inside):
        params = {"inside": jnp.asarray(inside)}
        return float(phase.loss_fn(params, frozen, batch, jax.random.key(0))[0])

    assert loss(0.0) == loss(100.0), "what is predicted inside a hole is free"
    cut = np.asarray(seen["latents"] == 0).all(-1)
    assert cut.any((1, 2)).all() and not cut.all((1, 2)).any()
    told = np.asarray(seen["context"])[:, 0, 0]
    np.testing.assert_array_equal(told, table.neutral[np.asarray(batch["category_id"])])

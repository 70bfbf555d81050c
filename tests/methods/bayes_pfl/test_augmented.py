"""Augmented training images: anew in every step, or as views that are encoded once."""

import jax
import numpy as np
import pytest
from tiny_bayes_pfl import SIZE, config

from jaxanom.jobs import prepare


def settings(backbone, **changes):
    found = config(backbone)
    found.data.image_size = SIZE
    found.data.num_views, found.data.flips = 1, ()
    for key, value in changes.items():
        found.data[key] = value
    return found


def batches(asked, count=2, start=0):
    made = prepare.prepare(asked)
    sources, mixtures = prepare.pools_of(made)
    _, frozen = made.method.init(jax.random.key(0))
    found = prepare.batch_maker(made, frozen, sources, mixtures)("stage1", start)
    return [next(found) for _ in range(count)]


def test_images_are_augmented_anew_in_every_step(tiny_backbone):
    plain = settings(tiny_backbone)
    asked = settings(tiny_backbone, augmentation="released", mosaic=0.5)
    for one in (plain, asked):
        one.bayes_pfl.cache_features = False
    first, second = batches(asked)
    again = batches(asked, count=1, start=1)[0]
    for name in second:  # a resumed run sees the same images
        np.testing.assert_array_equal(again[name], second[name])
    unchanged = batches(plain)[0]
    assert not np.array_equal(first["image"], unchanged["image"])
    np.testing.assert_array_equal(first["category_id"], unchanged["category_id"])
    np.testing.assert_array_equal(first["mask"].max((1, 2)), first["label"])


def test_views_but_the_first_are_augmented_before_they_are_encoded(tiny_backbone):
    def pool(**changes):
        made = prepare.prepare(settings(tiny_backbone, num_views=3, **changes))
        sources, _ = prepare.pools_of(made)
        _, frozen = made.method.init(jax.random.key(0))
        from jaxanom.data import augmentation

        transform = augmentation.make(
            made.dataset, made.division.defect, made.config.data.augmentation
        )
        encode = jax.jit(made.method.encode)
        return prepare.encoded(
            made.config, encode, frozen, sources["defect"], transform
        )

    plain, changed = pool(), pool(augmentation="released")
    assert len(plain) == len(changed) > 3
    same = [
        np.array_equal(plain[row]["patch_tokens"], changed[row]["patch_tokens"])
        for row in range(9)
    ]
    assert same[::3] == [True] * 3  # view 0 is the image itself
    # All changes are left out with probability 1/32 only.
    assert sum(same) < 6


def test_augmentation_that_nobody_would_see_is_refused(tiny_backbone):
    with pytest.raises(ValueError, match=r"num_views.*cache_features"):
        prepare.prepare(settings(tiny_backbone, augmentation="released"))
    prepare.prepare(settings(tiny_backbone, augmentation="released", num_views=2))

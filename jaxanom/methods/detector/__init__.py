"""A supervised detector: a segmenter that judges generated defects.

A generator is worth what a detector learns from its images (arXiv 2411.16767, its
detection tables). The data source decides whether this detector sees real defects,
generated ones or both; nothing here knows which. One phase, "segment".

On photographs it is a small head on a frozen ImageNet tower (`tower`,
`config.detector.encoder`), trained by cross-entropy with the defective share of drawn
cells, as many defective as normal ones: a focal exponent and a Dice term balance what
drawing has balanced already, and hard labels cost outlines four points of pixel AP on
procedural leather. Without an encoder it is a U-Net from nothing, of which the rest of
this page speaks.

The papers leave the detector unsaid; the released code of AnomalyDiffusion
(arXiv 2312.05767), whose table layout they share, trains DRAEM's segmenter. Differences
from that code:

| there                                 | here                                     |
|---------------------------------------|------------------------------------------|
| batch normalisation                   | group normalisation (`model.Segmenter`)  |
| pixels enter in [0, 1]                | centred on grey inside the network       |
| focal loss, gamma 2                   | same                                     |
| 21x21 zero-padded mean pool, then max | same at 256 px, scaled with the image    |
| augmentation in the data loader       | in the jitted loss, by key               |
| best epoch chosen on the test set     | not decided here                         |

Pinned by tests/methods/detector.
"""

from typing import Any

import jax.numpy as jnp

from jaxanom.contracts import Method, Phase
from jaxanom.errors import UserError
from jaxanom.methods.detector import model, objective, options, predict, tower
from jaxanom.models.ops import initialise


def make(config: Any, dataset: Any) -> Method:
    """Builds the detector from `config.detector`.

    Args:
      config: The run's config, of which the section `detector` is read, and whether
        anything is left to train.
      dataset: The training part; without an encoder, its `categories` and `image_size`
        are read.

    Raises:
      UserError: An unknown key, an unknown category, or an image size the depth does
        not divide.
    """
    settings = options.read(config.detector)
    if settings.encoder != options.NO_ENCODER:
        is_trained = config.phases.segment.num_steps == 0
        return tower.make(settings, dataset, is_trained)
    unknown = sorted(set(settings.orientation_fixed) - set(dataset.categories))
    if unknown:
        raise UserError(
            f"config.detector.orientation_fixed names {unknown}; the dataset has "
            f"{list(dataset.categories)}"
        )
    fixed = tuple(dataset.categories.index(name) for name in settings.orientation_fixed)
    model.check_size(dataset.image_size, settings.depth)
    segmenter = model.Segmenter(
        settings.width, settings.depth, jnp.dtype(settings.dtype)
    )

    def init(key):
        side = 2**settings.depth  # the smallest image will do
        return initialise.parameters(segmenter, key, jnp.zeros((1, side, side, 3))), {}

    loss_fn = objective.make_loss(segmenter, settings, fixed)
    return Method(
        init=init,
        phases=(Phase("segment", loss_fn),),
        predict=predict.make_predict(segmenter),
        learns_pixels=True,
    )

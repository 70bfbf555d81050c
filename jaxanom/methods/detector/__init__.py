"""A supervised detector: a segmenter that judges generated defects.

A generator is worth what a detector learns from its images (arXiv 2411.16767, its
detection tables). The data source decides whether this detector sees real defects,
generated ones or both; nothing here knows which. One phase, "segment".

The papers leave the detector unsaid; the released code of AnomalyDiffusion
(arXiv 2312.05767), whose table layout they share, trains DRAEM's segmenter. Differences
from that code:

| there                                 | here                                     |
|---------------------------------------|------------------------------------------|
| batch normalisation                   | group normalisation (`models/segmenter`) |
| pixels enter in [0, 1]                | centred on grey inside the network       |
| focal loss, gamma 2                   | same; `dice_weight` adds a Dice term     |
| 21x21 zero-padded mean pool, then max | same at 256 px, scaled with the image    |
| augmentation in the data loader       | in the jitted loss, by key; default none |
| best epoch chosen on the test set     | not decided here                         |

Pinned by tests/methods/detector.
"""

from typing import Any

from jaxanom.contracts import Method, Phase
from jaxanom.methods.detector import model, objective, predict


def make(config: Any, dataset: Any) -> Method:
    """Builds the detector from `config.detector`; see `model.Options` for its keys.

    Args:
      config: run config; only the section `detector` is read.
      dataset: `categories` and `image_size` are read.

    Raises:
      UserError: an unknown key, an unknown category, or an image size the depth does
        not divide.
    """
    options = model.read_options(config.detector)
    segmenter = model.build(options, dataset.image_size)
    fixed = model.fixed_category_ids(options, dataset.categories)
    return Method(
        learns_pixels=True,
        init=lambda key: model.init(segmenter, key),
        phases=(Phase("segment", objective.make_loss(segmenter, options, fixed)),),
        predict=predict.make_predict(segmenter),
    )

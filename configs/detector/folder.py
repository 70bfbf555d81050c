"""A supervised detector on photographs, from real, generated or both kinds of defects.

Command:
`jaxanom train --config=configs/detector/folder.py --config.data.directory=DIR
--run=RUN`; add `--config.data.generated=SET --config.mixture.segment.generated=0.25`
for a generated set. The features are EfficientNet-Lite's, frozen (extra `photos`);
`configs/detector/folder.py:unet` trains a network from nothing instead. Expected, as in
benchmarks/QUALITY.md: pixel AP 36, 48 and 92 from ten defects of three sets; a quarter
of a minute on two CPU cores. 6 MB of memory an image; where that is too much, set
`detector.cache_features=False`, `data.num_views=1` and `data.flips=()`: images are then
looked at in every step.
"""

import ml_collections

from configs import common
from configs.detector import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.config(600 if arg == "unet" else 400)
    config.data.name = "folder"
    config.data.num_train = 0
    if arg == "unet":
        config.data.image_size = 128
        return config
    config.data.image_size = 224
    config.data.aspect = "keep"
    config.data.num_views = 4
    config.data.flips = ("horizontal", "vertical")
    config.detector.encoder = "efficientnet_lite0"
    config.detector.taps = ("e4", "e8", "e16")
    config.data.feature_memory = "auto"
    phase = config.phases.segment
    phase.optimizer, phase.weight_decay = "adamw", 0.05
    phase.learning_rate, phase.schedule = 1e-3, "cosine"
    if arg == "smoke":
        config.data.name = "foundry"
        config.data.categories = ("pill",)
        config.data.image_size = 64
    return common.shrink(config, arg)

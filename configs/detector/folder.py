"""A supervised detector on a folder, from real, generated or both kinds of defects.

Command:
`jaxanom train --config=configs/detector/folder.py --config.data.directory=DIR
--config.data.generated=SET --config.mixture.segment.generated=0.25 --run=RUN`.
Expected result, machine and time: not yet measured.
"""

import ml_collections

from configs import common
from configs.detector import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.config()
    config.data.name = "folder"
    config.data.image_size = 128
    config.data.num_train = 0
    if arg == "smoke":
        config.data.name = "foundry"
        config.data.categories = ("pill",)
        config.data.image_size = 64
    return common.shrink(config, arg)

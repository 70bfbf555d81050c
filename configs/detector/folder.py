"""A supervised detector on a folder, from real, generated or both kinds of defects.

Command:
`jaxanom train --config=configs/detector/folder.py --config.data.directory=DIR
--config.data.generated=SET --config.mixture.segment.generated=0.25 --run=RUN`.
"""

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = common.base("detector")
    config.data.name = "folder"
    config.data.image_size = 128
    config.data.num_train = 0
    config.detector = ml_collections.ConfigDict(common.detector_options())
    common.add_phase(
        config,
        "segment",
        {"normal": 0.5, "defect": 0.5},
        **common.detector_phase(600),
    )
    if arg == "smoke":
        config.data.name = "foundry"
        config.data.categories = ("pill",)
        config.data.image_size = 64
    return common.shrink(config, arg)

"""A supervised detector on the procedural dataset.

Command: `jaxanom train --config=configs/detector/foundry.py --run=RUN`; add
`--config.data.generated=SET --config.mixture.segment.generated=0.25` for a generated
set.
"""

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = common.base("detector")
    config.data.categories = ("pill",)
    config.detector = ml_collections.ConfigDict(common.detector_options())
    common.add_phase(
        config,
        "segment",
        {"normal": 0.5, "defect": 0.5},
        **common.detector_phase(600),
    )
    return common.shrink(config, arg)

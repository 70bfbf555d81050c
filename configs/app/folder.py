"""Few-shot classification of your own images, sorted into classes or by split.json.

Command: `jaxanom train --config=configs/app/folder.py --config.data.directory=DIR
--config.model.directory=CLIP --run=RUN`, then `jaxanom evaluate --run=RUN`. Shots per
class are `config.data.num_train`; for base-to-new train with
`--config.data.class_subset=base`. Expected result, machine and time: not yet measured.
"""

import ml_collections

from configs import common
from configs.app import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.config()
    config.data.name = "classes"
    config.data.num_train = 16
    config.data.defect_rule = "none"
    config.data.shots = 0
    config.data.batch_size = 32
    config.data.num_views = 4
    config.data.flips = ("horizontal",)
    config.data.shift = 0.05
    config.app.task = "category"
    config.app.num_vectors = 8
    base.add_phases(config, {"normal": 1.0}, 400, 2000, 10)
    if arg == "smoke":
        config.data.name = "foundry"
        config.data.categories = ("nut", "pill")
    return common.shrink(config, arg)

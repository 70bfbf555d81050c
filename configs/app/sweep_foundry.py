"""Particle counts against transports: normal or which defect, on procedural pills.

Command: `jaxanom sweep --config=configs/app/sweep_foundry.py --out=DIR`. Expected
result, machine and time: not yet measured.
"""

import ml_collections

from configs import common
from configs.app import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.config()
    config.data.categories = ("pill",)
    config.data.num_train = 16
    config.data.num_test_good = 60
    config.data.num_per_defect = 76
    config.data.defect_rule = "shots_per_type"
    config.data.shots = 16
    config.app.task = "defect"
    config.app.num_vectors = 8  # the embedded text tower reads 24 tokens
    mixture = {"normal": 1 / 6, "defect": 5 / 6}  # six classes, alike
    base.add_sweep(config, 200, 400, mixture)
    return common.shrink(config, arg)

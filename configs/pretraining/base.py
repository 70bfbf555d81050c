"""What the recipes of the shipped towers share."""

import ml_collections

from configs import common


def config(options) -> ml_collections.ConfigDict:
    """Returns the sections of a tower: its options, and the images it is trained on."""
    config = common.base("pretraining")
    config.pretraining = ml_collections.ConfigDict(options)
    config.data.name = "folder"
    config.data.directory = "runs/pretrain/foundry"  # written by launch/pretrain.sh
    config.data.categories = common.SEEN
    config.data.num_train = 0
    config.data.defect_rule = "all"
    config.data.shots = 0
    return config

"""The embedded CLIP: 64 px images, 8 px patches, captions of category and state.

Command: part of launch/pretrain.sh, which trains the tokenizer first. Expected: it
names 99.5 % of the categories it has seen; 33 minutes on two CPU cores.
"""

import ml_collections

from configs import common
from configs.pretraining import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.config("clip")
    config.data.batch_size = 32
    common.add_phase(
        config,
        "clip",
        {"normal": 0.4, "defect": 0.6},
        num_steps=2200,
        learning_rate=1e-3,
        warmup_steps=100,
        schedule="cosine",
        weight_decay=0.05,
    )
    if arg == "smoke":
        config.pretraining.tokenizer = "embedded"
    return common.shrink(config, arg)

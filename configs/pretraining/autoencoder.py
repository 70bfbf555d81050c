"""The embedded autoencoder: 64 px images to 16x16 latents.

Command: part of launch/pretrain.sh, which trains all three towers in turn. Expected:
fresh images come back at 31.6 dB; 49 minutes on two CPU cores.
"""

import ml_collections

from configs import common
from configs.pretraining import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.config("autoencoder")
    config.data.batch_size = 8
    common.add_phase(
        config,
        "autoencoder",
        {"normal": 0.6, "defect": 0.4},
        num_steps=6000,
        learning_rate=1e-3,
        warmup_steps=100,
        schedule="cosine",
    )
    return common.shrink(config, arg)

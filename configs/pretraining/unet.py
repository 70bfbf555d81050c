"""The embedded UNet: text-conditional, in the latents of the embedded autoencoder.

Command: part of launch/pretrain.sh, after autoencoder and CLIP. Expected: CLIP names
the category of 98 % of its samples; 97 minutes on two CPU cores.
"""

import ml_collections

from configs import common
from configs.pretraining import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.config("unet")
    config.data.batch_size = 32
    common.add_phase(
        config,
        "unet",
        {"normal": 0.5, "defect": 0.5},
        num_steps=3000,
        learning_rate=1e-3,
        warmup_steps=100,
        schedule="cosine",
        final_fraction=0.02,
    )
    config.train.ema_decay = 0.995
    if arg == "smoke":
        config.pretraining.autoencoder = config.pretraining.text_encoder = "embedded"
    return common.shrink(config, arg)

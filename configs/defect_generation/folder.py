"""Background-aware defect generation on a folder of your own, in the MVTec layout.

Command: `jaxanom quickstart --config=configs/defect_generation/folder.py
--config.data.directory=DIR --run=RUN`. Trains a UNet from scratch unless
`config.model.unet` names one; 128 px and a TAESD file pair suit small machines:
`--config.model.autoencoder=DIR_OF_ENCODER_AND_DECODER`. Expected result, machine and
time of the whole recipe: not yet measured.
"""

import ml_collections

from configs import common
from configs.defect_generation import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.config()
    config.data.name = "folder"
    config.data.image_size = 128
    config.data.num_train = 0
    config.data.shots = 10
    config.data.batch_size = 8
    config.data.num_views = 8
    config.data.flips = ("horizontal", "vertical")
    config.data.shift = 0.05
    config.model.unet = "scratch"
    config.train.ema_decay = 0.995
    config.generate.num_images = 100
    config.generate.inversion_time = "target"
    # See foundry.py; a network trained from scratch has learnt no guidance.
    config.generate.otsu = False
    config.generate.least_kept = 0.3
    config.generate.paste = True
    common.add_phase(
        config,
        "adapt",
        {"normal": 1.0},
        num_steps=1500,
        learning_rate=5e-4,
        warmup_steps=100,
    )
    common.add_phase(
        config,
        "finetune",
        {"normal": 0.4, "defect": 0.6},
        num_steps=1500,
        learning_rate=3e-4,
        schedule="cosine",
        final_fraction=0.1,
    )
    config.detector.phase.num_steps = 600
    if arg == "smoke":
        config.data.name = "foundry"
        config.data.categories = ("pill",)
        config.data.image_size = 64
    return common.shrink(config, arg)

"""Few-shot detection in one's own images, from a handful of normal ones.

Command: `jaxanom fewshot --config=configs/adp/folder.py --normal=DIR --category=NAME
--out=RUN`, then
`jaxanom detect --weights=RUN IMAGE...`; a dataset in the MVTec layout also trains with
`jaxanom train --config=configs/adp/folder.py --config.data.directory=DIR --run=RUN`.
Images of more than 64 px need that `--config`. The embedded towers have
seen procedural images only; `--tower` names one that has seen photographs.
Reconstructed from an abstract. Expected with MobileNetV2 and two images, in percent:
image AUROC 39 (a grid), 79, 80, 100 and 100 on five sets of photographs
(benchmarks/QUALITY.md); minutes on two CPU cores.
"""

import ml_collections

from configs import common
from configs.adp import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.config()
    config.data.name = "folder"
    config.data.image_size = 224
    config.data.num_train = 4  # K, drawn by data.split_seed
    config.data.defect_rule = "none"
    config.data.shots = 0
    config.adp.map_size = 28
    if arg == "smoke":
        config.data.name = "foundry"
        config.data.categories = ("pill",)
    return common.shrink(config, arg)

"""Few-shot detection on photographs, from a handful of normal ones.

Command: `jaxanom fewshot --normal=DIR --category=NAME --out=RUN`, then
`jaxanom detect --weights=RUN IMAGE...`; a dataset in the MVTec layout also trains with
`jaxanom train --config=configs/memory/folder.py --config.data.directory=DIR --run=RUN`.
Nothing is trained; the extra `photos` has the tower. Expected with one to four images,
in percent: image AUROC 84 and pixel AUROC 97 on a grid, 60 and 69 on magnetic tiles
(benchmarks/QUALITY.md); 15 seconds for 20 images on two CPU cores.
"""

import ml_collections

from configs import common
from configs.memory import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.config()
    config.data.name = "folder"
    if arg == "smoke":
        config.data.name = "foundry"
        config.data.categories = ("pill",)
        config.data.image_size = 64
    return common.shrink(config, arg)

"""Few-shot detection of a procedural category the embedded towers never saw.

Command: `jaxanom train --config=configs/adp/foundry.py --run=RUN`, then
`jaxanom evaluate --run=RUN`. Reconstructed from an abstract. Expected, one
seed, in percent: image AUROC 73, pixel AUROC 74; some minutes on two CPU cores.
"""

import ml_collections

from configs import common
from configs.adp import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.config()
    config.data.categories = ("pill",)
    config.data.num_train = 1  # K
    config.data.defect_rule = "none"
    config.data.shots = 0
    return common.shrink(config, arg)

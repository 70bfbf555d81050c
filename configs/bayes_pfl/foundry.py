"""Zero-shot maps on procedural categories that neither CLIP nor training has seen.

Command: `jaxanom train --config=configs/bayes_pfl/foundry.py --run=RUN`, then
`jaxanom evaluate --run=RUN`. Expected, seed 1, in percent:
image AUROC 82, pixel AUROC 90, AU-PRO 75; a minute or two on two CPU cores.
"""

import ml_collections

from configs import common
from configs.bayes_pfl import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.config()
    config.data.categories = common.SEEN + common.UNSEEN
    config.data.held_out = common.UNSEEN
    config.data.num_train = 1  # the test split is trained on, as the paper's code does
    config.data.num_test_good = 24
    config.data.num_per_defect = 10
    config.data.batch_size = 16
    config.data.num_views = 2
    config.data.flips = ("horizontal", "vertical")
    options = config.bayes_pfl
    options.layers = (1, 2, 3, 4)
    options.clip_act = ""  # the embedded towers keep their own
    options.names = "spaced"
    # 64 px: the published settings in proportion to the side and to the area.
    options.sigma = 1.0
    options.top_k = 30
    options.projection_init = "clip"
    # By development seed 0: the second stage costs 2 points of image AUROC here.
    options.image_head = "pooled"
    base.add_phases(config, {"normal": 0.3, "defect": 0.7}, 600, 0)
    # Few steps, so larger ones.
    config.phases.stage1.learning_rate = 1e-3
    if arg == "smoke":
        config.data.categories = ("nut", "pill")
        config.data.held_out = ("pill",)
    return common.shrink(config, arg)

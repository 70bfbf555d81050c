"""Every key of the supervised detector with its default."""

import ml_collections

from configs import common


def config(num_steps: int = 600) -> ml_collections.ConfigDict:
    """Returns every section of the method, with its defaults."""
    config = common.base("detector")
    config.detector = ml_collections.ConfigDict(options())
    mixture = {"normal": 0.5, "defect": 0.5}
    common.add_phase(config, "segment", mixture, **phase(num_steps))
    return config


def options():
    """Section `detector`."""
    return {
        "width": 16,
        "depth": 3,
        "dtype": "float32",
        "gamma": 2.0,
        "class_balanced": False,
        "dice_weight": 0.0,
        "flip_horizontal": True,
        "flip_vertical": True,
        "orientation_fixed": (),
        "brightness": 0.05,
        "contrast": 0.1,
    }


def phase(num_steps):
    """Optimiser of the detector: the rates of the released code of arXiv 2312.05767."""
    changes = {"optimizer": "adam", "learning_rate": 1e-3, "schedule": "step"}
    return {**common.PHASE, "num_steps": num_steps, **changes}

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
        # "none": a U-Net from nothing, of `width` and `depth`. Or a frozen feature
        # tower, of which a head is trained: efficientnet_lite0 to 2 (extra `photos`),
        # mobilenet_v2:DIR, clip, clip:NAME.
        "encoder": "none",
        # The tower's layers, the finest first; () takes its own.
        "taps": (),
        # Hidden channels of the head.
        "head_width": 64,
        # Places of an image that a step of the head learns from.
        "num_places": 64,
        # Encode images once, `data.num_views` of each, instead of in every step.
        "cache_features": True,
        # Channels of the first level, and how often the resolution is halved.
        "width": 16,
        "depth": 3,
        # What convolutions compute in; weights and norms stay float32.
        "dtype": "float32",
        # Focal exponent of the U-Net; 0 is plain cross-entropy.
        "gamma": 2.0,
        # Mirror half of the rows, image and mask alike.
        "flip_horizontal": True,
        "flip_vertical": True,
        # Names of categories whose rows are never mirrored.
        "orientation_fixed": (),
        # Images shift by up to this much of [0, 1].
        "brightness": 0.05,
        # Deviations from the image's mean grow or shrink by up to this fraction.
        "contrast": 0.1,
    }


def phase(num_steps):
    """Optimiser of the detector: the rates of the released code of arXiv 2312.05767."""
    changes = {"optimizer": "adam", "learning_rate": 1e-3, "schedule": "step"}
    return {**common.PHASE, "num_steps": num_steps, **changes}

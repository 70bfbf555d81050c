"""Every key of the patch memory with its default.

Defaults were chosen on procedural images and on defects pasted into training
photographs, never on test photographs: benchmarks/QUALITY.md.
"""

import ml_collections

from configs import common


def config() -> ml_collections.ConfigDict:
    """Returns every section of the method, with its defaults."""
    config = common.base("memory")
    config.data.image_size = 320
    config.data.aspect = "keep"
    config.data.num_train = 4  # K, drawn by data.split_seed
    config.data.defect_rule = "none"
    config.data.shots = 0
    config.data.batch_size = 4
    config.memory = ml_collections.ConfigDict(
        {
            # efficientnet_lite0 to 2 (extra `photos`), mobilenet_v2:DIR, clip:DIR.
            "tower": "efficientnet_lite0",
            # Groups of layers, each with a memory of its own; layers joined by "+" must
            # match at one place; "~" behind one: no means over 3 x 3 patches. (): one
            # group of the layers that suit the tower.
            "taps": ("e16~",),
            "kind": "nearest",  # patchcore, padim: the baselines
            # Quarter turns of the shots, and whether they are mirrored too: defects do
            # not hide in them unless orientation is one.
            "turns": (0, 2),
            "mirrors": True,
            "scales": (1.0,),  # of the images that the tower sees
            "border": 0,  # pixels of mirrored content around each image
            # Groups weigh by how much the patches of one shot differ, not by the raw
            # distance.
            "calibrate": True,
            # Cells that look like the image's frame are normal: for objects before an
            # even background.
            "foreground": False,
            "share": 0.01,  # of the map whose mean scores the image; 0: the maximum
            "smoothing": 0.02,  # deviation, as a share of the map's shorter side
            "coreset": 1.0,  # share of the patches that is kept, chosen for coverage
            "most_patches": 8192,  # and at most so many
            "dimensions": 64,  # of kind padim: features that are kept, at random
            # Of kind padim: how many shots the covariance of all positions counts for.
            "shrinkage": 8.0,
        }
    )
    return config

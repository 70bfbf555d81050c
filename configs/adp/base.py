"""Every key of ADP with its default, for the embedded towers."""

import ml_collections

from configs import common


def config() -> ml_collections.ConfigDict:
    """Returns every section of the method, with its defaults."""
    config = common.base("adp")
    config.model = ml_collections.ConfigDict(
        {
            "directory": "embedded",  # or a folder in diffusers' layout
            **common.LOADING,
            "clip": "",  # "" takes each part from `directory`
            "autoencoder": "",
            "text_encoder": "",
            "scheduler": "",
            "unet": "",
            "dtype": "float32",
            "remat": "none",
        }
    )
    config.adp = ml_collections.ConfigDict(
        {
            "baseline": "",  # winclip, winclip_plus, patch_bank; "" is ADP itself
            "token": "learned",  # "class_word": the plain name, no S* anywhere
            "num_vectors": 2,  # vectors of S*; 1 is plain textual inversion
            # "full": WinCLIP's counts of phrases, for published towers.
            "prompts": "foundry",
            "defect_words": (),  # more anomalous phrases, such as "{} with rust"
            # Crops that are learnt from: cells along a side per level, which overlap by
            # half, and the largest shift of one as a share of its side.
            "pyramid": (1, 2, 4),
            "crop_jitter": 0.05,
            # Quarter turns of the shots: (0, 1, 2, 3) is for textures, (0,) where
            # orientation may be the defect.
            "turns": (0,),
            "batch_size": 4,  # crops a step
            # Weights of the inversion's terms; 0 switches one off.
            "align_weight": 0.1,  # parts are described by the token
            "state_weight": 0.1,  # parts are called normal
            "anchor_weight": 0.05,  # state words do to S* what they do to the word
            "prior_weight": 1e-4,  # vectors stay near the class word
            "temperature": 0.07,  # of the states, and of C1 by default
            "templates_per_step": 2,  # random ones
            "low_noise_bias": False,  # half of the timesteps from the lower half
            "split_tokens": False,  # whole images hear of the first vector alone
            # Score channels; reconstruct, noise_gap and unet_features ask the diffusion
            # model.
            "channels": ("language", "reference"),
            "primary": "language",  # has weight by default, besides "reference"
            # Sides of C1's windows in patches; 1 is dense patches, which the embedded
            # CLIP aligns with text.
            "windows": (1, 2, 3),
            # Of C2: efficientnet_lite0 to 2 (extra `photos`), mobilenet_v2:DIR, clip,
            # clip:DIR; "" is the CLIP of the text, whose windows are remembered too.
            "feature_tower": "",
            "feature_layers": (
                2,
                3,
                4,
            ),  # CLIP's numbers or the tower's names; (): its own
            "feature_size": 0,  # side of that tower's images; 0: the data's
            "map_size": 16,  # side of the maps of all channels
            # Smoothing in pixels of a 256 px map; 0 for defects as fine as the cells.
            "sigma": 4.0,
            "diffusion_size": 0,  # side for the autoencoder; 0: what it was trained on
            "num_noises": 2,  # fixed noises that reconstruct averages over
            "walk_steps": 10,  # DDIM moves of reconstruct and of synthetic images
            "gap_steps": 16,  # fixed timesteps of noise_gap
            "compare_layers": (),  # CLIP's layers that reconstruct compares too
            "tune": True,  # self-tuning on synthetic images
            "num_synthetic": 256,  # half of them normal
            "num_settings": 4096,  # most settings tried
            # By how many of its own the best must be ahead of the default.
            "standard_errors": 2.0,
        }
    )
    # The batch is not read: crops are drawn on the device, by key.
    config.data.batch_size = 8
    common.add_phase(
        config,
        "invert",
        num_steps=400,
        optimizer="adam",
        learning_rate=5e-3,
        clip_norm=0.0,
    )
    return config

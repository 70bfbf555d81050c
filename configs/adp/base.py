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
            "baseline": "",  # "winclip", "winclip_plus", "patch_bank"
            "token": "learned",  # or "class_word"
            "num_vectors": 2,
            "prompts": "foundry",  # "full": WinCLIP's counts, for published towers
            "defect_words": (),
            "pyramid": (1, 2, 4),
            "crop_jitter": 0.05,
            "turns": (0,),  # (0, 1, 2, 3) for textures
            "batch_size": 4,
            "align_weight": 0.1,
            "state_weight": 0.1,
            "anchor_weight": 0.05,
            "prior_weight": 1e-4,
            "temperature": 0.07,
            "templates_per_step": 2,
            "low_noise_bias": False,
            "split_tokens": False,
            "channels": ("language", "reference"),
            "primary": "language",
            "windows": (1, 2, 3),  # 1: dense patches, which the embedded CLIP aligns
            "feature_tower": "",
            "feature_layers": (2, 3, 4),
            "feature_size": 0,
            "map_size": 16,
            "sigma": 4.0,
            "diffusion_size": 0,
            "num_noises": 2,
            "walk_steps": 10,
            "gap_steps": 16,
            "compare_layers": (),
            "tune": True,
            "num_synthetic": 256,
            "num_settings": 4096,
            "standard_errors": 2.0,
            "stage2_steps": 0,
            "stage2_weight": 0.1,
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

"""Every key of the shipped towers' training with its default, tower by tower."""

import ml_collections

from configs import common

TOWERS = {
    "autoencoder": {
        "block_out_channels": (32, 64, 64),  # of every resolution, finest first
        "layers_per_block": 1,
        "latent_channels": 8,
        "norm_num_groups": 8,
        # Factor of the divergence from a unit Gaussian.
        "kl_weight": 1e-6,
        # Side of the squares that are trained on; 0 takes whole images.
        "crop": 32,
    },
    "clip": {
        # "embedded", or a folder with a tokenizer.
        "tokenizer": "runs/pretrain/tokenizer",
        "hidden_size": 128,  # of both towers, and of their common space
        "num_heads": 4,
        "num_text_layers": 3,
        "num_image_layers": 4,
        "patch_size": 8,
        "text_length": 24,
        # Share of the captions that name the state alone, and no defect.
        "state_fraction": 0.4,
        # Factor of the term by which patches tell flawless from damaged; 0: without.
        "dense_weight": 1.0,
    },
    "unet": {
        # Towers whose latents and texts the network is made for.
        "autoencoder": "runs/pretrain/autoencoder/model",
        "text_encoder": "runs/pretrain/text",
        **common.LOADING,
        "block_out_channels": (64, 128),
        "layers_per_block": 1,
        "num_heads": 4,
        # Share of empty captions, for guidance.
        "empty_fraction": 0.1,
        # Share of rows with a hole cut out, for the background of defect generation.
        "hole_fraction": 0.25,
    },
}


def config(tower: str) -> ml_collections.ConfigDict:
    """Returns the sections of a tower: its options, and the images it is trained on."""
    config = common.base("pretraining")
    config.pretraining = ml_collections.ConfigDict({"tower": tower, **TOWERS[tower]})
    config.data.name = "folder"
    config.data.directory = "runs/pretrain/foundry"  # written by launch/pretrain.sh
    config.data.categories = common.SEEN
    config.data.num_train = 0
    config.data.defect_rule = "all"
    config.data.shots = 0
    return config

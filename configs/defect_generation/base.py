"""Every key of defect generation with its default (arXiv 2411.16767)."""

import ml_collections

from configs import common
from configs.detector import base as detector


def config() -> ml_collections.ConfigDict:
    """Returns every section of the method, with its defaults."""
    config = common.base("defect_generation")
    config.model = ml_collections.ConfigDict(
        {
            "directory": "embedded",  # or a folder in diffusers' layout
            **common.LOADING,
            "autoencoder": "",  # "" takes each part from `directory`
            "text_encoder": "",
            "scheduler": "",
            # "ours", or "hf_flax" for the libraries' own Flax classes (extra `hf`)
            "implementation": "ours",
            "unet": "",  # a directory, or "scratch" for a new one of these sizes:
            "block_out_channels": (64, 128),
            "layers_per_block": 1,
            "num_heads": 4,
            "fine_self_attention": False,
            "dtype": "float32",
            "remat": "none",
        }
    )
    config.defect_generation = ml_collections.ConfigDict(
        {
            "background_weight": 1.0,
            "background_input": "masked",
            "masked_attention": True,
            "hide_background": False,
            "area_balanced": False,
            "draw_normal_masks": True,
            "refusal_share": 0.0,
            "latent_pooling": "max",
            "attention_pooling": "max",
            "lora_rank": 0,
            "lora_scale": 1.0,
            "defect_prompt": "a photo of a {defect}",
            "background_prompt": "a photo of a {category}",
            "hole_prompt": "",
        }
    )
    config.generate = ml_collections.ConfigDict(
        {
            "num_images": 64,
            "batch_size": 8,
            "per_image": 1,  # defects on one image and mask: they share its inversion
            "seed": 0,
            "num_steps": 50,
            # or linspace, leading, trailing, log_snr (for few moves)
            "spacing": "checkpoint",
            "inversion_time": "source",
            "fixed_point_iterations": 0,
            "background": "recompute",
            "start": "inversion",
            "guidance_scale": 1.0,
            "solver": "ddim",  # or "dpmpp_2m", of second order
            "eta": 0.0,
            "refine": True,
            "change_floor": 0.08,
            "otsu": True,
            "least_kept": 0.0,
            "paste": False,
        }
    )
    # The detector that tells what the generated images are worth.
    config.detector = ml_collections.ConfigDict(
        {
            "share": 0.5,  # of the defective rows, drawn from the generated set
            "batch_size": 16,
            "options": detector.options(),
            "phase": detector.phase(400),
        }
    )
    return config

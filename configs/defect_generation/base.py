"""Every key of defect generation with its default (arXiv 2411.16767)."""

import ml_collections

from configs import common
from configs.detector import base as detector


def config() -> ml_collections.ConfigDict:
    """Returns every section of the method, with its defaults."""
    config = common.base("defect_generation")
    config.model = ml_collections.ConfigDict(
        {
            # "embedded", or a folder or hub name in diffusers' layout.
            "directory": "embedded",
            **common.LOADING,
            # "" takes each part from `directory`.
            "autoencoder": "",
            "text_encoder": "",
            "scheduler": "",
            # "ours", or "hf_flax" for the libraries' own Flax classes (extra `hf`).
            "implementation": "ours",
            # "" as above, a directory, or "scratch" for a new one of these sizes:
            "unet": "",
            "block_out_channels": (64, 128),
            "layers_per_block": 1,
            "num_heads": 4,
            "fine_self_attention": False,  # at the finest resolution too
            "dtype": "float32",  # of the UNet; or bfloat16, float16
            "remat": "none",  # what a training step computes again to save memory
        }
    )
    config.defect_generation = ml_collections.ConfigDict(
        {
            # Factor of the loss's second term; 0 is the ablation without it.
            "background_weight": 1.0,
            # "masked" feeds (1-m) z_t to the background branch, "full" z_t.
            "background_input": "masked",
            # Queries read only their own group of tokens; False: plain prompts.
            "masked_attention": True,
            # The defect branch sees m z_t alone: a control that cannot know what
            # surrounds the defect.
            "hide_background": False,
            # Each term is a mean over its own elements.
            "area_balanced": False,
            # Of the masks drawn for normal images, the share that is told some defect's
            # prompt instead of the hole's. The network then learns from normal images
            # too where a defect does not occur. Not in the paper, which has 0.
            "refusal_share": 0.0,
            # How a mask reaches the latent grid, and from there a layer's: "max" (any
            # hit), "nearest" (the cell's corner), "area" (at least half of the cell).
            "latent_pooling": "max",
            "attention_pooling": "max",
            # Rank of the update that is trained; 0 trains the whole UNet.
            "lora_rank": 0,
            "defect_prompt": "a photo of a {defect}",
            "background_prompt": "a photo of a {category}",
            # What the masked part is called in the background branch.
            "hole_prompt": "",
        }
    )
    config.generate = ml_collections.ConfigDict(
        {
            # Pairs of a set.
            "num_images": 64,
            # Rows of every call.
            "batch_size": 8,
            # Defects on one image and mask, which share its inversion.
            "per_image": 1,
            # Decides images, masks and noise.
            "seed": 0,
            # S, moves of the inversion and of the sampling.
            "num_steps": 50,
            # How the S levels lie on the training grid: as the checkpoint's scheduler
            # lays them; or linspace, leading, trailing, log_snr (for few moves).
            "spacing": "checkpoint",
            # Which end of a move the inverting network is told of: source or target.
            "inversion_time": "source",
            # Extra network calls per move of the inversion.
            "fixed_point_iterations": 0,
            # "recompute" follows Eq. 9, "replay" writes the inverted latents back.
            "background": "recompute",
            # "inversion", or "noise": a randomly noised background, blended back at
            # every level, the ablation without inversion.
            "start": "inversion",
            # On the defect term only; 1 is none, as in the paper.
            "guidance_scale": 1.0,
            # What moves the defect: "ddim", or "dpmpp_2m" of second order.
            "solver": "ddim",
            # Fresh noise of DDIM, inside the mask only; 0 with "dpmpp_2m".
            "eta": 0.0,
            # Return the part of the mask where something changed.
            "refine": True,
            # Least change, of [0, 1], that counts as drawn.
            "change_floor": 0.08,
            # Raise that to Otsu's threshold.
            "otsu": True,
            # Defects of which less than this share of the requested mask is left count
            # as not drawn: their mask is emptied.
            "least_kept": 0.0,
            # Put the normal image's pixels back outside the returned mask, so that what
            # is called normal is normal.
            "paste": False,
            # Where masks lie: "context" turns and shifts a training mask until what
            # surrounds it agrees with the image; "uniform" flips and shifts it blindly,
            # as in the paper. Both are the same on textures.
            "placement": "context",
            # Names of categories whose masks keep their orientation.
            "orientation_fixed": (),
            # Folder of masks to take as they are: <defect type>/*.png.
            "masks": "",
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

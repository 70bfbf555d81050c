"""Every key of Bayes-PFL with its default, as the code of arXiv 2503.10080 has it."""

import ml_collections

from configs import common


def config() -> ml_collections.ConfigDict:
    """Returns every section of the method, with its defaults."""
    config = common.base("bayes_pfl")
    config.data.defect_rule = "test_split"
    config.data.shots = 0
    config.data.feature_memory = "auto"
    config.model = ml_collections.ConfigDict(
        {"directory": "embedded", "variant": "", "dtype": "float32"}
    )
    config.selection = ml_collections.ConfigDict(
        {
            # "authors": the best by labelled test images of `categories`, which are
            # then unseen no more; the run's record says so
            "rule": "last",
            "categories": (),
            "every": 68,  # steps; an epoch of VisA
            "patience": 4,
            "metrics": {"stage1": "pixel_ap", "stage2": "image_ap"},
        }
    )
    config.bayes_pfl = ml_collections.ConfigDict(
        {
            # "drawn" from distributions around a learned bank, which is the method.
            # Baselines: the "learned" bank alone, without distributions or draws; or a
            # normal and an abnormal caption that CLIP knows, "captions", nothing
            # trained.
            "prompts": "drawn",
            "normal_caption": "a photo of a flawless {category}",
            "abnormal_caption": "a photo of a damaged {category}",
            # What plain CLIP's answer to both captions weighs in every map and image
            # score of a draw (ours); 0 is the method.
            "caption_share": 0.0,
            "num_prompts": 3,  # B prompt pairs
            "num_context": 5,  # P context tokens of each
            "num_states": 5,  # Q state tokens of each
            "num_flow_steps": 10,  # K planar steps of a distribution
            "num_heads": 4,  # heads of the cross-model attention
            # Layers whose patch tokens are used; 1 is the first layer's output.
            "layers": (6, 12, 18, 24),
            # R of a training step, of measurements that choose a model, and of
            # predictions.
            "draws_train": 1,
            "draws_selection": 5,
            "draws_test": 10,
            "kl_weight": 0.01,  # of each of the three KL terms
            # "author" divides the image-agnostic log-determinants by the batch size,
            # "exact" does not; with iad_noise="image" neither does.
            "iad_logdet": "author",
            "variance": "author",  # reads exp(h / 2) as the variance, "exact" exp(h)
            "flow_constraint": "none",  # or "invertible", see `posterior.flows`
            # "one" random bank entry feeds the classification and segmentation losses
            # of a step, "all" the mean over all.
            "train_pairs": "one",
            # Of a decoder that rebuilds the image feature; 0 leaves it out, as the
            # released objective does.
            "reconstruction_weight": 0.0,
            "dice_background": False,  # adds the Dice loss of the normal class
            # The image-specific distribution sees the "pooled" feature, or "fused" with
            # that of the patches.
            "isd_input": "pooled",
            # A file of the authors' release to start from, .pth or safetensors; ""
            # draws new weights.
            "checkpoint": "",
            # Text is compared with the "fused" feature, which stage 2 trains, or the
            # "pooled" one of stage 1.
            "image_head": "fused",
            "iad_noise": "run",  # state noise is drawn once per "run", or per "image"
            # Pixels whose mean enters the image score; fewer for small categories.
            "top_k": 2000,
            "top_k_small": 20,
            "small_categories": (),
            # What that mean weighs in the image score; 0 for datasets without masks.
            "map_weight": 0.5,
            "sigma": 8.0,  # of the Gaussian that smooths the map, in pixels; 0 is none
            # "category" scales both parts of the image score to [0, 1] over all test
            # images of a category: transductive, only for evaluation.
            "image_minmax": "none",
            # The patch projections A_l start at "random"; "clip" starts every layer at
            # CLIP's own way into the joint space.
            "projection_init": "random",
            # Activation of both towers; "" is that of the weights' config, "released"
            # exact GELU as in the authors' code, but for prompts="captions", plain
            # CLIP, that of the weights. `caption_share` looks through these towers.
            "clip_act": "released",
            # Class names as the "released" code words them, or "spaced" (underscores
            # are spaces).
            "names": "released",
            "shortcuts": True,  # exact speed-ups; False computes as the released code
            # Runs the image tower over the data once; False runs it in each step, as
            # fresh augmentations need.
            "cache_features": True,
            "text_chunk": 64,  # prompts that the text tower takes at once to predict
            # What the text tower keeps for the backward pass, see `models.ops.remat`.
            "remat": "none",
        }
    )
    return config


def add_phases(config, mixture, num_steps_1, num_steps_2):
    """Adds both stages with the rates of the released code.

    Stage 1: 1e-4, times 10 for prompts and flows and 100 for temperatures, a tenth of
    the steps to warm up. Stage 2: 1e-4 throughout; 0 steps leave it out.
    """
    adam = {"optimizer": "adam", "b1": 0.5, "clip_norm": 0.0, "learning_rate": 1e-4}
    common.add_phase(
        config,
        "stage1",
        mixture,
        num_steps=num_steps_1,
        warmup_steps=num_steps_1 // 10,
        warmup_from_zero=True,
        schedule="cosine",
        rate_factors=(
            # One pattern: a bank without distributions has no flows.
            ("(prompts|(context|normal|abnormal)_flow(_out)?)/.*", 10.0),
            ("temperatures/.*", 100.0),
        ),
        **adam,
    )
    common.add_phase(config, "stage2", mixture, num_steps=num_steps_2, **adam)

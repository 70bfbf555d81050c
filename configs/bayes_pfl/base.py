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
            "prompts": "drawn",  # baselines: "learned", "captions"
            "normal_caption": "a photo of a flawless {category}",
            "abnormal_caption": "a photo of a damaged {category}",
            "caption_share": 0.0,  # of plain CLIP's answer to them in the prediction
            "num_prompts": 3,
            "num_context": 5,
            "num_states": 5,
            "num_flow_steps": 10,
            "num_heads": 4,
            "layers": (6, 12, 18, 24),
            "draws_train": 1,
            "draws_selection": 5,
            "draws_test": 10,
            "kl_weight": 0.01,
            "iad_logdet": "author",
            "variance": "author",
            "flow_constraint": "none",
            "train_pairs": "one",
            "reconstruction_weight": 0.0,
            "dice_background": False,
            "isd_input": "pooled",
            "checkpoint": "",
            "image_head": "fused",
            "iad_noise": "run",
            "top_k": 2000,
            "top_k_small": 20,
            "small_categories": (),
            "map_weight": 0.5,
            "sigma": 8.0,
            "image_minmax": "none",
            "projection_init": "random",
            "clip_act": "released",  # exact GELU; "" as the weights' config says
            "names": "released",
            "shortcuts": True,
            "cache_features": True,
            "text_chunk": 64,
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

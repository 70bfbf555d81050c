"""Sections every config shares, and how `:smoke` shrinks one."""

import ml_collections


def base(method: str) -> ml_collections.ConfigDict:
    """Sections that every run reads."""
    config = ml_collections.ConfigDict()
    config.method = method
    config.seed = 0
    config.data = ml_collections.ConfigDict(
        {
            "name": "foundry",  # or "folder"
            "directory": "",
            "categories": (),
            "image_size": 64,
            "seed": 0,
            "num_train": 64,  # normal images per category; 0: all of a folder
            "num_test_good": 16,
            "num_per_defect": 8,
            "defect_rule": "shots",  # first_third, shots_per_type, shots, all
            "shots": 10,
            "split_seed": 0,
            "generated": "",  # a generated set to train on as well
            "num_workers": 0,  # processes of Grain that read; 0: a thread
            "batch_size": 16,
            "num_views": 1,  # augmented views per image that are encoded once
            "flips": (),
            "shift": 0.0,
        }
    )
    config.mesh = ml_collections.ConfigDict(
        {"data": -1, "fsdp": 1, "model": 1, "particle": 1}
    )
    config.phases = ml_collections.ConfigDict()
    config.mixture = ml_collections.ConfigDict()
    config.train = ml_collections.ConfigDict(
        {
            "seed": 0,
            "log_every": 50,
            "checkpoint_every": 500,
            "keep": 2,
            "keep_best": 0,
            "ema_decay": 0.0,
            "nan_patience": 10,
            "offload_frozen": False,  # frozen towers wait in the host's memory
        }
    )
    return config


# The 14 categories that the shipped towers have seen; marble, cork, gear, pill, tray
# and panel are held out for zero-shot and few-shot work.
SEEN = (
    "carpet",
    "leather",
    "wood",
    "tile",
    "grid",
    "metal",
    "fabric",
    "nut",
    "button",
    "cookie",
    "chip",
    "cable",
    "cap",
    "juice_bottle",
)


def pretraining_data(config):
    """Points at the images that the shipped towers are trained on."""
    config.data.name = "folder"
    config.data.directory = "runs/pretrain/foundry"  # written by launch/pretrain.sh
    config.data.categories = SEEN
    config.data.num_train = 0
    config.data.defect_rule = "all"
    config.data.shots = 0


# No shipped tower has seen these.
UNSEEN = ("marble", "cork", "gear", "pill", "tray", "panel")


# Keys of `config.model` that say how published weights are read.
LOADING = {
    "variant": "",  # of the weight files of every directory, such as "fp16"
    "clip_act": "",  # of CLIP; "" as its config says. OpenCLIP's single files: "gelu"
}


def add_zero_shot(config):
    """Adds the sections of method "bayes_pfl", as its released code has them."""
    config.data.defect_rule = "test_split"
    config.data.shots = 0
    config.data.held_out = ()  # categories that are tested on and never trained on
    config.data.feature_cache = ""  # a directory keeps frozen features for later runs
    config.data.feature_memory = "auto"  # "device" if they fit there, else "host"
    config.data.augmentation = ""  # "released": as the paper's code, of every view
    config.data.mosaic = 0.0  # probability of four defective images in one
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


def add_zero_shot_phases(config, mixture, num_steps_1, num_steps_2):
    """Adds both stages with the rates of the released code.

    Stage 1: 1e-4, times 10 for prompts and flows and 100 for temperatures, a tenth of
    the steps to warm up. Stage 2: 1e-4 throughout; 0 steps leave it out.
    """
    adam = {"optimizer": "adam", "b1": 0.5, "clip_norm": 0.0, "learning_rate": 1e-4}
    add_phase(
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
    add_phase(config, "stage2", mixture, num_steps=num_steps_2, **adam)


def add_phase(config, name, mixture=None, **settings):
    """Adds a phase: optimiser settings, and which images its batches are drawn from.

    `mixture` weighs the pools "normal" (train/good), "defect" (the split's training
    defects) and "generated" (`config.data.generated`).
    """
    defaults = {
        "num_steps": 1000,
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "warmup_steps": 0,
        "schedule": "constant",
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "accumulate": 1,
    }
    config.phases[name] = ml_collections.ConfigDict({**defaults, **settings})
    pools = {"normal": 1.0, "defect": 0.0, "generated": 0.0}
    config.mixture[name] = ml_collections.ConfigDict({**pools, **(mixture or {})})


def add_generation(config):
    """Adds the sections of method "defect_generation", as the paper reads."""
    config.model = ml_collections.ConfigDict(
        {
            "directory": "embedded",  # or a folder in diffusers' layout
            **LOADING,
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
            "options": detector_options(),
            "phase": detector_phase(400),
        }
    )


def add_personalisation(config):
    """Adds the sections of method "adp", for the embedded towers."""
    config.model = ml_collections.ConfigDict(
        {
            "directory": "embedded",  # or a folder in diffusers' layout
            **LOADING,
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
    add_phase(
        config,
        "invert",
        num_steps=400,
        optimizer="adam",
        learning_rate=5e-3,
        clip_norm=0.0,
    )


def add_prompt_posterior(config, **particles):
    """Adds the sections of method "app"; `particles` changes `config.app.particles`."""
    config.data.class_subset = "all"  # base, new: halves of the categories
    config.model = ml_collections.ConfigDict(
        {"directory": "embedded", **LOADING, "dtype": "float32"}
    )
    config.app = ml_collections.ConfigDict(
        {
            "task": "state",  # category, defect
            "good_name": "flawless {category}",
            "bad_name": "damaged {category}",
            "defect_name": "{category} with {defect}",
            "template": "{vectors} {name}.",
            "num_vectors": 16,
            "num_particles": 4,
            "init_std": 0.02,
            "text_form": "shared",
            "prompt_chunk": 0,
            "class_chunk": 0,
            "particles": {
                "update": "svgd",
                "rkhs": "rbf",
                "space": "ctx",
                "bandwidth": 0.0,
                "bandwidth_rule": "median",
                "median": "midpoint",
                "bandwidth_mode": "exact",
                "normalise": "mean",
                "ridge": 1e-2,
                "form": "compact",
                "preconditioned": False,
                "temperature": 1.0,
                "num_data": 0.0,
                "step_size": 1e-3,
                "step_offset": 1.0,
                "step_decay": 0.0,
                "noise_seed": 0,
                "backend": "auto",
                **particles,
            },
            "prior": {
                "support": "token_mean",
                "center": "batch",
                "center_rate": 1.0,
                "layout": "per_image",
                "train": "separate",
                "lambda_rule": "shots",
                "reg": 1.0,
                "sigma2": 1.0,
                "weight_decay": 0.0,
            },
            "predict": {
                "average": "logits",
                "mix": "logits",
                "alpha": 0.9,
                "reshuffled": False,
            },
        }
    )


def add_prompt_posterior_phases(config, mixture, num_steps_1, num_steps_2, per_epoch):
    """Adds both stages with the released optimiser, SGD as Dassl sets it up.

    `per_epoch` is the number of steps between changes of the learning rate.
    """
    sgd = {
        "optimizer": "sgd",
        "momentum": 0.9,
        "learning_rate": 2e-3,
        "schedule": "epoch_cosine",
        "steps_per_epoch": per_epoch,
        "weight_decay": 5e-4,
        "decay_all": True,
        "clip_norm": 0.0,
    }
    add_phase(config, "prior", mixture, num_steps=num_steps_1, **sgd)
    add_phase(config, "particles", mixture, num_steps=num_steps_2, **sgd)


def add_prompt_posterior_sweep(config, num_steps_1, num_steps_2, mixture):
    """Makes a sweep of a config of "app": one posterior, several approximations of it.

    Its prior is proper (every token is pulled), does not move (fitted first, averaged
    over the clean images) and is all there is besides the likelihood: no weight decay.
    Predictions average probabilities and leave the prior's own out.
    """
    config.app.prior.support, config.app.prior.center = "per_token", "dataset"
    config.app.prior.lambda_rule, config.app.prior.sigma2 = "sigma2", 1.0
    config.app.predict.average, config.app.predict.alpha = "probs", 1.0
    # With the median bandwidth 1/N would make steps N times shorter.
    config.app.particles.normalise = "sum"
    config.app.particles.step_size = 0.05
    sgd = {"optimizer": "sgd", "momentum": 0.9, "clip_norm": 0.0}
    add_phase(
        config, "prior", mixture, num_steps=num_steps_1, learning_rate=2e-2, **sgd
    )
    add_phase(
        config, "particles", mixture, num_steps=num_steps_2, learning_rate=2e-2, **sgd
    )
    config.sweep = ml_collections.ConfigDict(
        {
            "num_particles": (1, 4, 16, 64),
            "update": ("map", "svgd", "gfsd", "blob", "sgld"),
            "rkhs": ("rbf",),
            "step_size": (1.0,),
            "scale": {  # of a transport whose steps have another length
                "map": 1.0,
                "svgd": 1.0,
                "gfsd": 1.0,
                "blob": 1.0,
                "gfsf": 1.0,
                "noisy_svgd": 1.0,
                "sgld": 1.0,
                "psgld": 1.0,
                "langevin": 1.0,
            },
            "seed": (0, 1, 2, 3, 4),
            "num_snapshots": 8,
            "prompts_together": 4096,
            "development_seed": 0,
        }
    )


def detector_options():
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


def detector_phase(num_steps):
    """Optimiser of the detector: the rates of the released code of arXiv 2312.05767."""
    return {
        "num_steps": num_steps,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "schedule": "step",
        "step_at": (0.8, 0.9),
        "step_factor": 0.2,
    }


def shrink(config, arg):
    """Applies the argument after the colon: "" or "smoke" (two steps, few images)."""
    if arg not in ("", "smoke"):
        raise ValueError(f"config argument {arg!r}; this config knows only 'smoke'")
    if arg == "smoke":
        for name in config.phases:
            config.phases[name].num_steps = min(2, config.phases[name].num_steps)
            config.phases[name].warmup_steps = 0
        config.train.log_every = 1
        config.data.batch_size = 4
        config.data.num_train = 4
        config.data.num_test_good = 2
        config.data.num_per_defect = 2
        config.data.shots = 2
        config.data.num_views = 1
        if config.data.directory.startswith("runs/"):
            config.data.name, config.data.directory = "foundry", ""
        if "generate" in config:
            config.generate.num_images = 2
            config.generate.batch_size = 2
            config.generate.num_steps = 2
            config.detector.batch_size = 4
            config.detector.phase.num_steps = 2
        if "sweep" in config:
            config.sweep.num_particles, config.sweep.seed = (1, 2), (0, 1)
            config.sweep["update"], config.sweep.num_snapshots = ("svgd", "sgld"), 2
        if "adp" in config:
            config.data.shots = 0
            config.adp.num_synthetic, config.adp.num_settings = 4, 8
            config.adp.walk_steps, config.adp.pyramid = 2, (1, 2)
    return config

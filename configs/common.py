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
    # Keys whose value is a folder of the run itself, wherever it is copied to, such as
    # (("data.directory", "shots"),). `jaxanom fewshot` writes it.
    config.kept = ()
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


# No shipped tower has seen these.
UNSEEN = ("marble", "cork", "gear", "pill", "tray", "panel")


# Keys of `config.model` that say how published weights are read.
LOADING = {
    "variant": "",  # of the weight files of every directory, such as "fp16"
    "clip_act": "",  # of CLIP; "" as its config says. OpenCLIP's single files: "gelu"
}


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

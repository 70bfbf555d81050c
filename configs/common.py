"""Sections every config shares, and how `:smoke` shrinks one."""

import ml_collections

# Section `data`: which images a run learns from, and which it is tested on.
DATA = {
    "name": "foundry",  # "folder" (MVTec layout), "classes", "tfds", a published set
    "directory": "",  # where the images are; foundry renders its own
    "categories": (),  # which to open, in this order; () opens all
    "class_subset": "all",  # of the categories: "base" the first half, "new" the rest
    "held_out": (),  # categories that are tested on and never trained on
    "image_size": 64,  # side that images are resized to
    # "keep": their ratio stays, and image_size is the shorter side; what little differs
    # from the median ratio is filled with mirrored content. "square" stretches them.
    "aspect": "square",
    "tiles": 1,  # shorter sides of image_size pixels that make up a large image's
    "seed": 0,  # of rendered images
    "num_train": 64,  # normal images per category; 0: all of a folder
    "num_test_good": 16,  # rendered normal test images per category
    "num_per_defect": 8,  # rendered test images per category and defect type
    # Defective images to train on: none, all, test_split, first_third, and with
    # `shots` images shots (a category) or shots_per_type.
    "defect_rule": "shots",
    "shots": 10,
    "split_seed": 0,  # of the drawn images
    "generated": "",  # a generated set to train on as well
    "num_workers": 0,  # processes of Grain that read; 0: a thread
    "batch_size": 16,  # global rows of a step
    # Of methods that encode images once: augmented views of each, and their changes.
    "num_views": 1,
    "flips": (),  # horizontal, vertical, rot90
    "shift": 0.0,  # largest shift, as a share of the side
    "augmentation": "",  # "released": as arXiv 2503.10080's code, of every view
    "mosaic": 0.0,  # probability of four defective images in one
    "feature_cache": "",  # a directory keeps frozen features for later runs
    "feature_memory": "host",  # "device"; "auto": there if they fit
}

# Section `train`: the loop.
TRAIN = {
    "seed": 0,  # of initial parameters and of every draw while training
    "log_every": 50,  # steps between rows of metrics
    "checkpoint_every": 500,  # steps between checkpoints; 0: at the end of a phase
    "keep": 2,  # newest checkpoints that are kept; 0 keeps all
    "keep_best": 0,  # checkpoints kept beside those, by the selection's measure
    "ema_decay": 0.0,  # of the moving average of parameters; 0 keeps none
    "nan_patience": 10,  # steps in a row without a finite gradient that end a run
    "offload_frozen": False,  # frozen towers wait in the host's memory
    "peak_flops": 0.0,  # of one device, per second, for the utilisation; 0: unknown
}

# Section `phases.<name>`: the optimiser, see `jaxanom/training/optimizer.py`.
PHASE = {
    "num_steps": 1000,  # 0 skips the phase
    "optimizer": "adamw",  # adam, sgd, lion
    "learning_rate": 1e-4,  # the peak
    "warmup_steps": 0,  # linear
    "warmup_from_zero": False,  # the first step moves nothing
    "schedule": "constant",  # cosine, linear, step, epoch_cosine
    "final_fraction": 0.0,  # share of the peak at the end of cosine and linear
    "step_at": (0.8, 0.9),  # fractions of the phase at which "step" multiplies
    "step_factor": 0.2,  # ... by this
    "steps_per_epoch": 1,  # of epoch_cosine, with the next two
    "num_epochs": 0,  # 0: num_steps over steps_per_epoch
    "first_rate": 1e-5,  # in the first epoch
    "rate_factors": (),  # (path pattern, factor) pairs
    "weight_decay": 0.0,
    "decay_all": False,  # biases and norm scales too
    "b1": 0.9,  # moments of adam, adamw, lion
    "b2": 0.999,
    "eps": 1e-8,
    "momentum": 0.9,  # of sgd
    "nesterov": False,
    "clip_norm": 1.0,  # largest global gradient norm; 0: off
    "accumulate": 1,  # microbatches that a step averages over
}


def base(method: str) -> ml_collections.ConfigDict:
    """Returns the sections that every run reads."""
    return ml_collections.ConfigDict(
        {
            "method": method,
            "seed": 0,  # of batches, views and predictions
            "data": dict(DATA),
            # Devices along each axis; -1 takes what is left.
            "mesh": {"data": -1, "fsdp": 1, "model": 1, "particle": 1},
            # Keys whose value is a folder of the run itself, wherever it is copied to,
            # such as (("data.directory", "shots"),). `jaxanom fewshot` writes it.
            "kept": (),
            "phases": {},
            "mixture": {},
            "train": dict(TRAIN),
        }
    )


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
    config.phases[name] = ml_collections.ConfigDict({**PHASE, **settings})
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
        if "memory" in config:
            config.data.shots = 0
        if "adp" in config:
            config.data.shots = 0
            config.adp.num_synthetic, config.adp.num_settings = 4, 8
            config.adp.walk_steps, config.adp.pyramid = 2, (1, 2)
    return config

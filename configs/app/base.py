"""Every key of APP with its default; the released code decides (arXiv 2401.06799)."""

import ml_collections

from configs import common


def config(**particles) -> ml_collections.ConfigDict:
    """Returns every section; `particles` changes `config.app.particles`."""
    config = common.base("app")
    config.model = ml_collections.ConfigDict(
        {"directory": "embedded", **common.LOADING, "dtype": "float32"}
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
    return config


def add_phases(config, mixture, num_steps_1, num_steps_2, per_epoch):
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
    common.add_phase(config, "prior", mixture, num_steps=num_steps_1, **sgd)
    common.add_phase(config, "particles", mixture, num_steps=num_steps_2, **sgd)


def add_sweep(config, num_steps_1, num_steps_2, mixture):
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
    common.add_phase(
        config, "prior", mixture, num_steps=num_steps_1, learning_rate=2e-2, **sgd
    )
    common.add_phase(
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

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
            # What is told apart: an object's two states ("state"), its "defect" types,
            # or categories ("category").
            "task": "state",
            "good_name": "flawless {category}",  # words for the normal state
            "bad_name": "damaged {category}",  # words for the other state
            "defect_name": "{category} with {defect}",  # words for a kind of defect
            "template": "{vectors} {name}.",  # the sentence of a class
            "num_vectors": 16,  # learnable tokens of a particle
            "num_particles": 4,  # N
            "init_std": 0.02,  # deviation of the first particles' entries
            # Particles, and classes, that the text tower takes at a time, recomputed in
            # the backward pass so that any number fits the memory; 0 is all at once.
            "prompt_chunk": 0,
            "class_chunk": 0,
            "particles": {
                # A flow ("svgd", "gfsd", "blob", "gfsf", "map"), whose directions are
                # followed, or a sampler with steps of its own ("noisy_svgd", "sgld",
                # "psgld", "langevin").
                "update": "svgd",
                # What follows a flow: "plain" is the phase's optimiser; the others make
                # steps of their own (arXiv 1807.01750): "decay", "rms", and the
                # accelerated "wag", "wnes" and "polyak".
                "integrator": "plain",
                "rkhs": "rbf",  # or "imq", "linear"
                # Where distances are measured: flattened vectors ("ctx"), their mean
                # over tokens ("token_mean"), or the normalised text features they lead
                # to ("text_features").
                "space": "ctx",
                "bandwidth": 0.0,  # h of the kernel; 0 leaves it to the rule
                # Or "heat_equation", or "heat_equation_released", whose h grows without
                # end in many dimensions, see `bandwidths.heat_misfit`.
                "bandwidth_rule": "median",
                "median": "midpoint",  # see `bandwidths.median_of`
                "bandwidth_mode": "exact",  # see `bandwidths.median`
                "normalise": "mean",  # SVGD's sum over particles: its "mean", or "sum"
                "ridge": 1e-2,  # of GFSF's inverse
                "form": "compact",  # of GFSF, see `wgf.gfsf`
                "preconditioned": False,  # scale by a mean of squared gradients
                "temperature": 1.0,  # 1 is the posterior, 0 leaves the push out
                "num_data": 0.0,  # n; 0: the training images, 1: the per-datum scale
                # Own steps of samplers and integrators, a (b + k)^(-gamma), per datum.
                "step_size": 1e-3,
                "step_offset": 1.0,
                "step_decay": 0.0,
                "noise_seed": 0,  # of samplers
                # How particles on several devices meet, see `posterior.sharded`; "auto"
                # leaves it to the compiler.
                "backend": "auto",
                **particles,
            },
            "prior": {
                # "token_mean" pulls the mean of a particle's vectors, as released, and
                # leaves the other directions flat; "per_token" pulls every vector.
                "support": "token_mean",
                # The prior network is averaged over the "batch", as released, which
                # moves from step to step; over the clean training images ("dataset": a
                # fixed target, for samplers); or over past batches ("ema").
                "center": "batch",
                # Stage 1 averages "per_image", or as the released code happens to
                # ("reference_reshuffle").
                "layout": "per_image",
                # "separate": stage 1 fits the prior network, stage 2 leaves it;
                # "joint": stage 2 moves it too; "frozen_random": it stays as drawn.
                "train": "separate",
                # Its weight: reg / S for S "shots" a class, reg / S^2 (as released for
                # some data sets), or 1 / (2 sigma2 n).
                "lambda_rule": "shots",
                "reg": 1.0,
                "sigma2": 1.0,
                # A second prior, wd/2 |theta|^2 in the loss; for samplers, whose target
                # must hold what an optimiser's weight decay adds.
                "weight_decay": 0.0,
            },
            "predict": {
                # Over particles: "logits" (as released), "probs" (the Bayesian
                # predictive) or text "features", renormalised.
                "average": "logits",
                "mix": "logits",  # prior and particles meet so, or as "probs"
                # Weight of the particles; 1 - alpha is the prior's. Released: 0.9
                # few-shot, 0.7 for classes never trained on.
                "alpha": 0.9,
                # The released layout, where an image's answer depends on its neighbours
                # in the batch; for comparison only.
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
            # Factors on the particles' learning rate, or on a transport's own step
            # size; where there are several, one is chosen on `development_seed`.
            "step_size": (1.0,),
            "scale": {  # another factor, for a transport whose steps differ in length
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
            "seed": (0, 1, 2, 3, 4),  # added to every seed of the config
            "num_snapshots": 8,  # places along a run's path that are kept
            "prompts_together": 4096,  # most prompts encoded at a time, for the memory
            "development_seed": 0,
        }
    )

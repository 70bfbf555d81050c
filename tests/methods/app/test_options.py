"""What fits together, and what is refused by its key."""

import pytest
from tiny_app import particles_of, prior_of

from jaxanom.methods.app import options
from jaxanom.posterior import transport

WHOLE = [{"update": name} for name in transport.SAMPLERS]
WHOLE += [{"integrator": name} for name in ("decay", "polyak")]


@pytest.mark.parametrize("changes", WHOLE, ids=str)
def test_whole_moves_refuse_an_optimiser_that_would_bend_them(changes):
    phase = {
        "optimizer": "sgd",
        "momentum": 0.0,
        "learning_rate": 1.0,
        "schedule": "constant",
        "weight_decay": 0.0,
        "clip_norm": 0.0,
    }
    moves, prior = particles_of(**changes), prior_of()
    options.check_moves(moves, phase, prior)
    with pytest.raises(ValueError, match=r"phases\.particles.*'momentum': 0\.9"):
        options.check_moves(moves, {**phase, "momentum": 0.9}, prior)
    unsaid = {key: value for key, value in phase.items() if key != "momentum"}
    with pytest.raises(ValueError, match="momentum"):  # its default is 0.9
        options.check_moves(moves, unsaid, prior)
    options.check_moves(particles_of(update="svgd"), {"momentum": 0.9}, prior)
    for pattern, factor in ((".*", 0.5), ("particles/.*", 2.0)):
        factors = {"rate_factors": (("prior/.*", 0.1), (pattern, factor))}
        with pytest.raises(ValueError, match=r"rate_factors.*step_size"):
            options.check_moves(moves, phase | factors, prior)
    others = {"rate_factors": (("particles/.*", 1.0), (".*", 0.1))}
    options.check_moves(moves, phase | others, prior)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"train": "joint"}, "train='joint'"), ({"center": "ema"}, "center='ema'")],
)
def test_samplers_refuse_a_prior_that_learns_at_their_rate(changes, named):
    sampler, whole = particles_of(update="sgld"), transport.WHOLE_MOVES
    with pytest.raises(ValueError, match=named):
        options.check_moves(sampler, whole, prior_of(**changes))
    options.check_moves(particles_of(update="svgd"), {}, prior_of(**changes))
    options.check_moves(sampler, whole, prior_of(center="dataset"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"update": "adam"},
        {"rkhs": "cosine"},
        {"space": "logits"},
        {"backend": "tree"},
        {"temperature": -1.0},
        {"space": "token_mean", "backend": "ring"},
        {"space": "token_mean", "update": "noisy_svgd"},
        {"preconditioned": True, "update": "noisy_svgd"},
        {"preconditioned": True, "update": "map"},
        {"preconditioned": True, "update": "sgld"},
        {"backend": "ring", "update": "map"},
        {"form": "compakt"},
        {"integrator": "leapfrog"},
        {"integrator": "wag", "update": "sgld"},
        {"median": "lower"},
        {"bandwidth_mode": "exakt"},
        {"normalise": "max"},
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match=r"config\.app\.particles"):
        options.check_moves(particles_of(**wrong), {}, prior_of())

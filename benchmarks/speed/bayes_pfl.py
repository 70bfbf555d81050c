"""One training step and one evaluated image of Bayes-PFL, beside plain PyTorch.

    python -m benchmarks.speed.bayes_pfl [--size published|half|short|small] [--record]

The same random weights, images and noise go into PyTorch's transcription of the
released loop (`bayes_pfl_torch`) and into ours in three modes:

* "plain": as the released code computes it, image tower in every step;
* "exact": text cut and shared, one map per pair, in training the drawn pair alone;
* "cached": the same, and the features of the frozen image tower at hand, as they are
  from the second time an image is seen on.

Losses, gradients and maps are compared before the clock runs. FLOPs are those of matrix
products and convolutions, counted by `jaxanom.flops`; shares are of "plain". All cases
are timed turn by turn in one process. "published" is CLIP ViT-L/14-336 at 518 px with
B = 3, P = Q = 5, K = 10, one draw in training and ten per evaluated image.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import harness
from benchmarks.speed.bayes_pfl_subject import (
    SIZES,
    Built,
    Subject,
    build,
    make_subject,
    options_of,
)
from jaxanom import flops, trees
from jaxanom.methods import bayes_pfl
from jaxanom.methods.bayes_pfl import features, objective, predict

MODES = ("plain", "exact", "cached")


def inputs(subject: Subject, built: Built, mode: str, rows: int) -> dict[str, Any]:
    """Returns the first rows of the batch; with features instead of images if cached.

    Computing those features is not timed.
    """
    batch = {name: jnp.asarray(value[:rows]) for name, value in subject.batch.items()}
    if mode != "cached":
        return batch
    look = jax.jit(
        lambda frozen, image: features.look(
            built.towers.image, frozen["clip"], image, subject.size.layers
        )
    )
    return batch | look(built.frozen, batch.pop("image"))._asdict()


def make_step(subject: Subject, built: Built) -> tuple[Callable[..., Any], Any]:
    """Returns step: (trained, opt_state, fixed, frozen, batch) -> (loss, gradients,
    trained, opt_state), and its first state."""
    image_size = (subject.size.image_size,) * 2
    patterns = bayes_pfl.trainable_1(built.network.options)
    trained, fixed = trees.split(subject.params, patterns)
    tx = optax.adam(1e-4, b1=0.5)

    def step(trained, opt_state, fixed, frozen, batch):
        def loss_fn(trained):
            return objective.loss_of(
                built.network,
                built.towers,
                1,
                image_size,
                trees.merge(trained, fixed),
                frozen,
                batch,
                subject.noise,
                jnp.asarray(subject.entry),
            )[0]

        loss, grads = jax.value_and_grad(loss_fn)(trained)
        updates, opt_state = tx.update(grads, opt_state)
        return loss, grads, optax.apply_updates(trained, updates), opt_state

    return step, (trained, tx.init(trained), fixed)


def make_evaluate(subject: Subject, built: Built) -> Callable[..., Any]:
    """Returns evaluate: (params, frozen, batch of one) -> image heads, maps of all
    draws; unsmoothed, as PyTorch's."""
    image_size = (subject.size.image_size,) * 2

    def evaluate(params, frozen, batch):
        seen = features.of_batch(built.towers.image, frozen, batch, subject.size.layers)
        scores, maps = predict.per_draw(
            built.network,
            built.towers,
            1,
            image_size,
            params,
            frozen,
            seen,
            batch["category_id"],
            subject.noise_test,
        )
        return jnp.mean(scores, 1), jnp.mean(maps, 1)

    return evaluate


class Torch(NamedTuple):
    """PyTorch's side of one subject."""

    step: Callable[[], Any]
    evaluate: Callable[[], Any]
    loss_and_grads: Callable[[], tuple[float, dict[str, np.ndarray]]]


def make_torch(subject: Subject) -> Torch:
    """Returns calls on copies of the same weights."""
    import torch

    from benchmarks.speed import bayes_pfl_torch as plain

    size, config = subject.size, subject.clip_config
    sizes = plain.Sizes(
        config.vision_config.num_attention_heads,
        config.text_config.num_attention_heads,
        size.layers,
        size.image_size,
        config.vision_config.patch_size,
    )
    patterns = bayes_pfl.trainable_1(options_of(size, "plain"))
    trained, fixed = trees.split(subject.params, patterns)
    weights = plain.tensors(trees.flatten(subject.clip_params))
    learned = plain.tensors(trees.flatten(trained), trained=True)
    params = {**learned, **plain.tensors(trees.flatten(fixed))}
    names = build(subject, "plain").frozen["names"]
    text = plain.Text(*map(_tensor, (names["words"], names["eos_positions"])))
    mean, std = (
        np.asarray(value, np.float32)
        for value in (config.vision_config.image_mean, config.vision_config.image_std)
    )
    rows = {
        "image": _tensor(((subject.batch["image"] - mean) / std).transpose(0, 3, 1, 2)),
        "mask": _tensor(subject.batch["mask"]),
        "label": _tensor(subject.batch["label"]).long(),
        "category_id": _tensor(subject.batch["category_id"]).long(),
    }
    noise, noise_test = (
        plain.Noise(*map(_tensor, draws))
        for draws in (subject.noise, subject.noise_test)
    )
    optimizer = torch.optim.Adam(learned.values(), 1e-4, betas=(0.5, 0.999))

    def backward():
        optimizer.zero_grad()
        loss = plain.loss_1(weights, params, sizes, text, rows, noise, subject.entry)
        loss.backward()
        return loss

    def step():
        loss = backward()
        optimizer.step()
        return float(loss.detach())

    def evaluate():
        one = rows["image"][:1], rows["category_id"][:1]
        return plain.predict(weights, params, sizes, text, *one, noise_test)

    def loss_and_grads():
        loss = backward()
        grads = {k: v.grad.numpy().copy() for k, v in learned.items()}
        return float(loss.detach()), grads

    return Torch(step, evaluate, loss_and_grads)


def _tensor(value: Any):
    import torch

    return torch.from_numpy(np.array(value))


def compare_step(ours: tuple[Any, Any], theirs: tuple[float, Any]) -> dict[str, float]:
    """Relative difference of the loss, and of the gradients by their largest entry."""
    grads = trees.flatten(ours[1])
    return {
        "loss_difference": abs(float(ours[0]) - theirs[0]) / abs(theirs[0]),
        "gradient_difference": harness.relative_error(grads, theirs[1]),
    }


def cases_of(subject: Subject, torch_side: Torch | None) -> list[harness.Case]:
    """Compiles every mode, compares it with PyTorch, returns what is to be timed."""
    reference = reference_maps = None
    cases = []
    if torch_side is not None:
        reference = torch_side.loss_and_grads()
        reference_maps = [np.asarray(value) for value in torch_side.evaluate()]
        cases += [
            harness.Case("step, PyTorch", torch_side.step, wait=lambda _: None),
            harness.Case("image, PyTorch", torch_side.evaluate, wait=lambda _: None),
        ]
    counts: dict[str, float] = {}
    rows = len(subject.batch["label"])
    for mode in MODES:
        built = build(subject, mode)
        step, state = make_step(subject, built)
        evaluate = make_evaluate(subject, built)
        calls = {
            "step": (step, (*state, built.frozen, inputs(subject, built, mode, rows))),
            "image": (
                evaluate,
                (subject.params, built.frozen, inputs(subject, built, mode, 1)),
            ),
        }
        for name, (function, args) in calls.items():
            total = flops.count(function, *args).total
            counts.setdefault(name, total)  # of "plain", which comes first
            case = harness.compiled(
                f"{name}, {mode}",
                function,
                *args,
                facts={"gflops": total / 1e9, "flops_share": total / counts[name]},
            )
            outputs = case.call()
            if name == "step" and reference is not None:
                case = with_facts(case, compare_step(outputs[:2], reference))
            elif reference_maps is not None:
                gaps = [
                    float(np.abs(np.asarray(a) - b).max())
                    for a, b in zip(outputs, reference_maps, strict=True)
                ]
                case = with_facts(case, {"score_difference": gaps[0]})
                case = with_facts(case, {"map_difference": gaps[1]})
            print(case.name, dict(case.facts), f"compiled {case.compile_s:.1f} s")
            cases.append(case)
    return cases


def with_facts(case: harness.Case, facts: dict[str, Any]) -> harness.Case:
    """Returns the case with more facts."""
    return case._replace(facts={**case.facts, **facts})


def with_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds how many times faster than our plain form and than PyTorch each row is."""
    medians = {row["case"]: row["median_s"] for row in rows}
    compared = []
    for row in rows:
        kind = row["case"].split(",")[0]
        for key, other in (("times_plain", "plain"), ("times_torch", "PyTorch")):
            base = medians.get(f"{kind}, {other}")
            if base is not None:
                row = {**row, key: base / row["median_s"]}
        compared.append(row)
    return compared


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = harness.parser("bayes_pfl")
    parser.add_argument("--size", choices=SIZES, default="published")
    parser.add_argument("--batch", type=int, default=1, help="rows of a step")
    parser.add_argument("--no-torch", action="store_true")
    arguments: argparse.Namespace = parser.parse_args(argv)
    subject = make_subject(SIZES[arguments.size], arguments.batch)
    torch_side = None if arguments.no_torch else make_torch(subject)
    cases = cases_of(subject, torch_side)
    facts = {"size": arguments.size, "batch": arguments.batch}
    facts["image_size"] = subject.size.image_size
    rows = harness.run(
        [with_facts(case, facts) for case in cases],
        arguments.warmup,
        arguments.repeats,
    )
    return harness.report("bayes_pfl", with_ratios(rows), arguments.record)


if __name__ == "__main__":
    main()

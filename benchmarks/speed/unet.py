"""The denoising UNet beside diffusers' PyTorch and Flax classes: same weights, one run.

    python -m benchmarks.speed.unet [--size embedded|quarter|full] [--peers ...]
        [--record]

Four calls: a forward pass, an optimiser step (noise prediction, AdamW), and S moves of
DDIM from images to noise and back ("inversion", "generation"), one network call a move.
Ours walks in one program, PyTorch in a Python loop. "embedded" is the shipped network
on 16 x 16 latents, "full" Stable Diffusion 1.5's at 64 x 64 and "quarter" the same at a
quarter of its width. Results are compared before the clock runs; all cases of a call
are then timed turn by turn. State and walks are float32; `--dtype` is what networks
compute in.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from benchmarks import harness
from benchmarks.parity import published_models
from benchmarks.speed import unet_torch
from jaxanom import flops
from jaxanom.diffusion import ddim, schedules
from jaxanom.models import backbones
from jaxanom.models.checkpoints import pretrained

NAME = "unet"
FLAX = "diffusers Flax"
PEERS = (*unet_torch.FORMS, FLAX)
EAGER = unet_torch.FORMS[0]
CALLS = ("forward", "train_step", "inversion", "generation")
_QUARTER = {
    "sample_size": 64,
    "block_out_channels": (80, 160, 320, 320),
    "norm_num_groups": 16,
    "cross_attention_dim": 192,
}


class Size(NamedTuple):
    """What is measured.

    Attributes:
      subject: weights to draw; None for the shipped ones.
      length: tokens of the context.
    """

    subject: published_models.Subject | None
    length: int = published_models.TEXT_LENGTH


SIZES = {
    "embedded": Size(None, 24),
    "quarter": Size(published_models.Subject("unet", _QUARTER, ())),
    "full": Size(published_models.TRUE["unet sd-1.5"]),
    "small": Size(published_models.SMALL["unet sd-1.5"], 8),
}


class Work(NamedTuple):
    """One set of weights and inputs, for everybody.

    Attributes:
      folder: config and weights as diffusers writes them.
      tower: ours, read from there.
      batch: see `unet_torch.make`.
      tables: name of a walk -> its moves.
    """

    folder: Path
    tower: backbones.Tower
    batch: dict[str, np.ndarray]
    tables: dict[str, schedules.Table]


def prepare(
    size: Size, folder: Path, rows: int, num_steps: int, dtype: str = "float32"
) -> Work:
    """Draws or finds the weights, and draws the inputs."""
    if size.subject is None:
        folder = backbones.resolve("embedded") / "unet"
    else:
        published_models.torch_model(size.subject).save_pretrained(folder)
    tower = backbones.load_unet(folder)
    tower = tower._replace(module=tower.module.clone(dtype=jnp.dtype(dtype)))
    config = tower.module.config
    side = config.sample_size
    rng = np.random.default_rng(0)
    shape = (rows, side, side, config.in_channels)
    context = (rows, size.length, config.cross_attention_dim)
    alphas = schedules.alphas_cumprod()
    levels = schedules.levels(len(alphas), num_steps)
    return Work(
        folder,
        tower,
        {
            "latents": rng.standard_normal(shape, np.float32),
            "noise": rng.standard_normal(shape, np.float32),
            "timesteps": rng.integers(0, len(alphas), rows, dtype=np.int32),
            "context": rng.standard_normal(context, np.float32),
        },
        {
            "inversion": schedules.inversion_table(alphas, levels),
            "generation": schedules.sampling_table(alphas, levels),
        },
    )


class Jitted(NamedTuple):
    """The calls of one flax module, not compiled yet; weights are arguments."""

    forward: Callable[..., Any]
    loss_and_grads: Callable[..., Any]
    step: Callable[..., Any]
    walk: Callable[..., Any]
    tx: optax.GradientTransformation


def jitted(module: nn.Module) -> Jitted:
    """Makes the calls of ours, or of the libraries' class under our interface."""
    tx = optax.adamw(1e-4, weight_decay=1e-2)

    def forward(params, latents, timesteps, context):
        return module.apply({"params": params}, latents, timesteps, context)

    def loss_and_grads(params, batch):
        def loss_fn(params):
            inputs = (batch[key] for key in ("latents", "timesteps", "context"))
            return jnp.mean((forward(params, *inputs) - batch["noise"]) ** 2)

        return jax.value_and_grad(loss_fn)(params)

    def step(params, moments, batch):
        loss, grads = loss_and_grads(params, batch)
        updates, moments = tx.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, loss

    def walk(params, latents, context, table):
        def noise_fn(latents, timesteps):
            return forward(params, latents, timesteps, context)

        return ddim.walk(noise_fn, latents, table)

    return Jitted(
        forward, loss_and_grads, jax.jit(step, donate_argnums=(0, 1)), walk, tx
    )


def flax_cases(work: Work, module: nn.Module, name: str) -> dict[str, harness.Case]:
    """Compiles the four calls of a flax module: {call: case}."""
    calls, params = jitted(module), work.tower.params
    batch = {key: jnp.asarray(value) for key, value in work.batch.items()}
    inputs = batch["latents"], batch["timesteps"], batch["context"]
    count = flops.count(calls.loss_and_grads, params, batch).total
    own = jax.tree.map(jnp.copy, params)
    carried = [own, calls.tx.init(own)]
    program = harness.compile_alone(calls.step, *carried, batch)

    def step():
        *carried[:], loss = program.call(*carried, batch)
        return loss

    cases = {
        "forward": harness.compiled(name, calls.forward, params, *inputs),
        "train_step": harness.Case(
            name,
            step,
            facts={"gflop": count / 1e9},
            compile_s=program.seconds,
            memory_mb=harness.program_megabytes(program.call),
        ),
    }
    for walk, table in work.tables.items():
        arguments = params, inputs[0], inputs[2], jax.tree.map(jnp.asarray, table)
        cases[walk] = harness.compiled(name, calls.walk, *arguments)
    return cases


def torch_cases(
    work: Work, peer: unet_torch.Peer, name: str
) -> dict[str, harness.Case]:
    """The four calls of a PyTorch model: {call: case}."""
    calls = {"forward": peer.forward, "train_step": peer.step} | {
        walk: lambda table=table: peer.walk(table)
        for walk, table in work.tables.items()
    }
    return {
        call: harness.Case(
            name, function, compile_s=peer.compile_s.get(call), wait=lambda _: None
        )
        for call, function in calls.items()
    }


class Results(NamedTuple):
    """What one implementation finds; `calls` that are not asked for are left out."""

    predictions: Mapping[str, np.ndarray]
    loss: float | None = None
    grads: Mapping[str, np.ndarray] | None = None


def flax_results(
    work: Work, name: str, mine: Mapping[str, harness.Case], calls: Sequence[str]
) -> Results:
    """Results of a flax module, its gradients under the published names."""
    predictions = {call: mine[call].call() for call in calls if call != "train_step"}
    if "train_step" not in calls:
        return Results(predictions)
    gradient = jax.jit(jitted(module_of(work, name)).loss_and_grads)
    batch = {key: jnp.asarray(value) for key, value in work.batch.items()}
    loss, grads = gradient(work.tower.params, batch)
    return Results(
        predictions, float(loss), pretrained.to_published(jax.device_get(grads), "unet")
    )


def torch_results(work: Work, peer: unet_torch.Peer, calls: Sequence[str]) -> Results:
    """Results of a PyTorch model before any step."""
    predictions = {
        call: peer.walk(table) for call, table in work.tables.items() if call in calls
    }
    if "forward" in calls:
        predictions["forward"] = peer.forward()
    gradients = peer.loss_and_grads() if "train_step" in calls else ()
    return Results(predictions, *gradients)


def differences(ours: Results, theirs: Results) -> dict[str, float]:
    """Relative error of every call's result, of the gradients for a train step."""
    errors = {
        call: harness.relative_error(ours.predictions[call], prediction)
        for call, prediction in theirs.predictions.items()
    }
    if theirs.grads is not None:
        errors["train_step"] = harness.relative_error(ours.grads, theirs.grads)
        errors["loss"] = abs(ours.loss - theirs.loss) / abs(theirs.loss)
    return errors


def module_of(work: Work, name: str) -> nn.Module:
    """Returns our network, or the libraries' for `FLAX`, on the same weights."""
    implementation = "hf_flax" if name == FLAX else "ours"
    return backbones.implemented(work.tower, implementation).module


def flax_modules(work: Work, peers: Sequence[str]) -> dict[str, nn.Module]:
    """Ours, and the libraries' where it is asked for and knows such a network."""
    modules = {"ours": module_of(work, "ours")}
    if FLAX in peers:
        try:
            modules[FLAX] = module_of(work, FLAX)
        except ValueError as error:
            print(f"{FLAX} is left out: {error}")
    return modules


def measure(work: Work, settings: argparse.Namespace) -> list[dict[str, Any]]:
    """Compares, then times every call of everybody, turn by turn."""
    by_name: dict[str, dict[str, harness.Case]] = {}
    errors = {}
    forms = [name for name in settings.peers if name != FLAX]
    if forms:
        # Eager PyTorch is what all others are compared with, timed or not.
        eager = unet_torch.make(work.folder, EAGER, work.batch, settings.dtype)
        reference = torch_results(work, eager, settings.calls)
    for form in forms:
        name, peer = f"PyTorch, {form}", eager
        if form != EAGER:
            peer = unet_torch.make(
                work.folder, form, work.batch, settings.dtype, settings.calls
            )
            results = torch_results(work, peer, settings.calls)
            errors[name] = differences(results, reference)
        by_name[name] = torch_cases(work, peer, name)
    for name, module in flax_modules(work, settings.peers).items():
        by_name[name] = flax_cases(work, module, name)
        if forms:
            results = flax_results(work, name, by_name[name], settings.calls)
            errors[name] = differences(results, reference)
    for name, gaps in errors.items():
        print(f"{name}: relative differences to eager PyTorch {gaps}", flush=True)
    rows = []
    for call in settings.calls:
        cases = [case_of[call] for case_of in by_name.values()]
        timed = harness.run(cases, settings.warmup, settings.repeats)
        ours = next(row["median_s"] for row in timed if row["case"] == "ours")
        rows += [
            row
            | {
                "case": f"{call}, {row['case']}",
                "call": call,
                "times_ours": row["median_s"] / ours,
                "error": errors.get(row["case"], {}).get(call),
            }
            for row in timed
        ]
    return rows


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(NAME)
    parser.add_argument("--size", choices=SIZES, default="embedded")
    parser.add_argument("--batch", type=int, default=4, help="rows of every call")
    parser.add_argument("--num-steps", type=int, default=50, help="S, moves of a walk")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--calls", nargs="+", choices=CALLS, default=CALLS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    settings = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        size = SIZES[settings.size]
        work = prepare(
            size, Path(folder), settings.batch, settings.num_steps, settings.dtype
        )
        facts = {
            "size": settings.size,
            "batch": settings.batch,
            "dtype": settings.dtype,
            "latents": list(work.batch["latents"].shape[1:]),
            "num_steps": settings.num_steps,
        }
        rows = measure(work, settings)
    return harness.report(NAME, [row | facts for row in rows], settings.record)


if __name__ == "__main__":
    main()

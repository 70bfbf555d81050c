"""How fast background-aware defect generation trains and draws.

    python -m benchmarks.speed.defect_generation [--model DIR] [--record]

Train steps per second (a step runs 2B rows through the UNet), images per second of the
inversion alone and of the whole generation at S = 50, recomputed and replayed, what
compiling costs, and whether compiling 50 moves costs more than compiling one or two.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from configs import common
from jaxanom.contracts import Method
from jaxanom.data import pools
from jaxanom.diffusion import inversion, schedules
from jaxanom.jobs import config_file, prepare
from jaxanom.methods import by_name
from jaxanom.methods.defect_generation import model, objective, options
from jaxanom.models import backbones
from jaxanom.models.latent import unet
from jaxanom.training import optimizer, state, step

NAME = "defect_generation"
RECIPE = "configs/defect_generation/foundry.py"


def method_maker(directory: str) -> Callable[..., Method]:
    """Returns a function from `generate` options to the method, on a small dataset."""
    config = config_file.load(RECIPE)
    config.model.directory = directory
    config.data.num_train = config.data.num_test_good = config.data.num_per_defect = 2
    config.data.shots = 5
    dataset, division = prepare.open_data(config)
    part = pools.training_part(dataset, division)

    def make(**options: Any) -> Method:
        chosen = config.copy_and_resolve_references()
        chosen.generate.update(options)
        return by_name.make(chosen, part)

    return make


def train_cases(directory: str, batch_sizes: list[int]) -> list[harness.Case]:
    """Optimiser steps of the fine-tuning phase, as the trainer compiles them."""
    method = method_maker(directory)()
    phase = method.phases[-1]
    tx = optimizer.make(
        optimizer.read(
            {**common.PHASE, **dict(num_steps=100, learning_rate=1e-4)}, "phase"
        )
    )
    params, frozen = method.init(jax.random.key(0))
    cases = []
    for size in batch_sizes:
        batch = _latent_batch(method, frozen, size)
        # Steps take over the memory of their state: every case has its own.
        copied = jax.tree.map(jnp.copy, params)
        carried = [state.init(copied, tx, jax.random.key(1), averaged=False)]
        train_step = step.make_step(phase.loss_fn, tx)
        program = harness.compile_alone(train_step.apply, carried[0], {}, frozen, batch)

        def call(carried=carried, program=program, batch=batch):
            carried[0], metrics = program.call(carried[0], {}, frozen, batch)
            return metrics

        cases.append(
            harness.Case(
                f"train, B={size}",
                call,
                work=1,
                unit="steps",
                facts={"batch_size": size, "unet_rows": 2 * size, **_shape(batch)},
                compile_s=program.seconds,
                memory_mb=harness.program_megabytes(program.call),
            )
        )
    return cases


def inversion_cases(directory: str, size: int, num_steps: int) -> list[harness.Case]:
    """The masked inversion alone: S network rows an image."""
    tower = backbones.load_unet(directory)
    alphas = backbones.load_alphas(directory)
    side = tower.module.config.sample_size or 16
    grids = unet.attention_resolutions(tower.module.config, side, side)
    latents, mask = _latents(tower, size, side)
    contexts = _contexts(tower)
    levels = schedules.levels(len(alphas), num_steps)
    training = options.read_training(config_file.load(RECIPE).defect_generation)

    apply = backbones.noise_apply(tower.module, directory)

    def case(kept: bool) -> harness.Case:
        def invert(params, latents, mask):
            ids = jnp.zeros(size, jnp.int32)
            prompt = model.prompted(contexts, mask, ids, ids, training, grids)
            return inversion.masked_invert(
                objective.background_noise(apply, params, prompt),
                latents,
                prompt.mask,
                schedules.inversion_table(alphas, levels),
                keep_trajectory=kept,
            )

        name = f"inversion, S={num_steps}" + (", levels kept" if kept else "")
        facts = {
            "batch_size": size,
            "num_steps": num_steps,
            "rows_per_image": num_steps,
        }
        arguments = tower.params, latents, mask
        return harness.compiled(
            name, invert, *arguments, work=size, unit="images", facts=facts
        )

    return [case(False), case(True)]


def generation_cases(
    directory: str,
    size: int,
    num_steps: int,
    modes: tuple[str, ...],
    solver: str = "ddim",
) -> list[harness.Case]:
    """Encode, invert, sample, decode, refine: 3S network rows an image, 2S replayed."""
    make = method_maker(directory)
    spacing = {"ddim": "checkpoint", "dpmpp_2m": "log_snr"}[solver]
    solver_name = "" if solver == "ddim" else f", {solver}"
    image_size = 64
    batch = _image_batch(size, image_size)
    cases = []
    for mode in modes:
        method = make(
            num_steps=num_steps, background=mode, spacing=spacing, solver=solver
        )
        params, frozen = method.init(jax.random.key(0))
        rows = num_steps * (2 if mode == "replay" else 3)
        cases.append(
            harness.compiled(
                f"generation, S={num_steps}, {mode}{solver_name}",
                method.generate,
                params,
                frozen,
                batch,
                jax.random.key(0),
                work=size,
                unit="images",
                facts={
                    "batch_size": size,
                    "image_size": image_size,
                    "num_steps": num_steps,
                    "background": mode,
                    "rows_per_image": rows,
                },
            )
        )
    return cases


def _latent_batch(method: Method, frozen: Any, size: int) -> dict[str, jax.Array]:
    encoded = method.encode(frozen, _image_batch(size, 64))
    return {key: jnp.asarray(value) for key, value in encoded.items()}


def _image_batch(size: int, image_size: int) -> dict[str, np.ndarray]:
    image = np.random.default_rng(0).random((size, image_size, image_size, 3))
    mask = np.zeros((size, image_size, image_size), np.float32)
    mask[:, 24:40, 20:36] = 1
    return {
        "image": image.astype(np.float32),
        "mask": mask,
        "label": np.ones(size, np.int32),
        "defect_id": np.ones(size, np.int32),
        "category_id": np.zeros(size, np.int32),
        "seed": np.arange(size, dtype=np.int32),
        "valid": np.ones(size, bool),
    }


def _latents(tower: backbones.Tower, size: int, side: int):
    shape = (size, side, side, tower.module.config.in_channels)
    latents = jax.random.normal(jax.random.key(0), shape)
    mask = jnp.zeros(shape[:3]).at[:, 6:10, 5:9].set(1.0)
    return latents, mask


def _contexts(tower: backbones.Tower, length: int = 24) -> model.Contexts:
    width = tower.module.config.cross_attention_dim
    states = jax.random.normal(jax.random.key(1), (3, length, width))
    return model.Contexts(states[:1], states[1:2])


def _shape(batch: dict[str, jax.Array]) -> dict[str, Any]:
    return {"latents": list(batch["latents"].shape[1:])}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(NAME)
    parser.add_argument("--model", default="embedded", help="a backbone directory")
    parser.add_argument("--num-steps", type=int, default=50, help="S")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 8])
    parser.add_argument(
        "--num-images", type=int, default=4, help="rows of a drawn batch"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    settings = parse(arguments)
    source = settings.model
    if source != "embedded":
        source = str(Path(source).resolve())
    size, many = settings.num_images, settings.num_steps
    cases = train_cases(source, settings.batch_sizes)
    cases += inversion_cases(source, size, many)
    cases += generation_cases(source, size, many, ("recompute", "replay"))
    # The recipe's: where DDIM ends with fifty moves, see `quality.defects.trade_off`.
    cases += generation_cases(source, size, 10, ("replay",), "dpmpp_2m")
    # One scanned body whatever S is: these differ in their run time alone.
    for few in (1, 2):
        cases += generation_cases(source, size, few, ("recompute",))
    rows = harness.run(cases, settings.warmup, settings.repeats)
    return harness.report(NAME, rows, settings.record)


if __name__ == "__main__":
    main()

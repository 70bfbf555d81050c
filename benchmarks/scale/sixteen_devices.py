"""Compiles the large trainings for sixteen devices and prints what each device holds.

    python -m benchmarks.scale.sixteen_devices [CASE ...] [--topology=v5e:4x4]
        [--record]

Parameters, moments, batches are shapes; nothing is initialised or run, so that no
machine of that size is needed. Without `--topology` (which needs libtpu) the devices
are simulated on the CPU: state and arguments are then exact, while `working` is the CPU
compiler's plan, which computes bfloat16 products in float32 and fuses less, and is thus
an upper bound rather than a figure of the chip.
Their machine code, which nobody runs, is made with few optimisations, in a third of the
time; the plan of the buffers is made before and stays the same.

`received` is what the compiled program's collectives bring to a device in one step.
"""

import argparse
import os
from typing import Any, NamedTuple

NUM_DEVICES = 16
GIBI = 2**30
CHIPS = {"v5e": 16 * GIBI, "H200": 141 * 10**9}


class Case(NamedTuple):
    """One training.

    Attributes:
      subject: "sd15" or "bayes_pfl".
      mesh: sizes of the axes.
      batch_size: global rows.
      remat: a name of `remat.POLICIES`.
      accumulate: microbatches of a step.
      tiny: small networks, to try the script.
    """

    subject: str
    mesh: dict[str, int]
    batch_size: int
    remat: str = "none"
    accumulate: int = 1
    tiny: bool = False


CASES = {
    "sd15-fsdp": Case("sd15", {"data": 2, "fsdp": 8}, 64, "full"),
    "sd15-accumulate": Case("sd15", {"data": 2, "fsdp": 8}, 64, "full", 4),
    "sd15-data": Case("sd15", {"data": 16}, 64, "full"),
    "pfl-fsdp": Case("bayes_pfl", {"data": 2, "fsdp": 8}, 32, "full"),
    "pfl-model": Case("bayes_pfl", {"data": 4, "fsdp": 2, "model": 2}, 32, "full"),
    "sd15-tiny": Case("sd15", {"data": 2, "fsdp": 8}, 32, "full", tiny=True),
    "pfl-tiny": Case(
        "bayes_pfl", {"data": 4, "fsdp": 2, "model": 2}, 16, "full", tiny=True
    ),
}


def sd15(case: Case):
    """Returns (phase, params, frozen, batch): the full fine-tune at 512 px."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks.parity import published_models
    from jaxanom.contracts import Phase
    from jaxanom.jobs import config_file
    from jaxanom.methods.defect_generation import objective, options
    from jaxanom.models import networks
    from jaxanom.models.latent import unet, vae

    kinds = published_models.SMALL if case.tiny else published_models.TRUE
    config = unet.UNetConfig.from_dict(dict(kinds["unet sd-1.5"].config))
    module = unet.UNet(config, dtype=jnp.bfloat16, remat=case.remat)
    autoencoder = vae.AutoencoderKL(
        vae.VaeConfig.from_dict(dict(kinds["vae sd"].config))
    )
    side, rows, width = config.sample_size, case.batch_size, config.cross_attention_dim
    recipe = config_file.load("configs/defect_generation/folder.py")
    training = options.read_training(recipe.defect_generation)
    grids = unet.attention_resolutions(config, side, side)

    def apply(params, latents, timesteps, context, bias=None):
        return module.apply({"params": params}, latents, timesteps, context, bias)

    loss = objective.loss_fn(
        apply,
        lambda params, frozen: params["unet"],
        np.linspace(0.999, 0.005, 1000),
        training,
        grids,
        False,
    )
    size = jax.ShapeDtypeStruct
    ints = size((rows,), jnp.int32)
    frozen = {
        "vae": networks.shapes(autoencoder),
        "contexts": {
            "defect": size((16, 77, width), jnp.float32),
            "background": size((15, 77, width), jnp.float32),
        },
        "latent_bank": size((512, side, side), jnp.float32),
    }
    batch = {
        "latents": size((rows, side, side, 4), jnp.float32),
        "latent_mask": size((rows, side, side), jnp.float32),
        "label": ints,
        "category_id": ints,
        "defect_id": ints,
        "valid": size((rows,), jnp.bool_),
    }
    params = {"unet": networks.shapes(module)}
    return Phase("finetune", loss), params, frozen, batch


def bayes_pfl(case: Case):
    """Returns (phase, params, frozen, batch): stage 1 at 518 px with ViT-L/14-336."""
    import jax
    import jax.numpy as jnp

    from benchmarks.speed import bayes_pfl_subject
    from configs.bayes_pfl import base
    from jaxanom.contracts import Phase
    from jaxanom.methods import bayes_pfl as method
    from jaxanom.methods.bayes_pfl import model, objective
    from jaxanom.methods.bayes_pfl import options as settings
    from jaxanom.models import networks
    from jaxanom.models.clip import towers as clip

    of = bayes_pfl_subject.SIZES["small" if case.tiny else "published"]
    side = 336 if of.image_size > 336 else 28
    parts = {"hidden_act": "gelu", "projection_dim": of.width}
    config = clip.ClipConfig(
        clip.TextConfig(**parts, **of.text),
        clip.VisionConfig(patch_size=14, image_size=side, **parts, **of.vision),
        projection_dim=of.width,
    )
    options = settings.read_options(base.config().bayes_pfl)
    options = options._replace(layers=of.layers, remat=case.remat)
    towers = method.build_towers(config, options, "bfloat16")
    width, hidden = of.width, of.vision["hidden_size"]
    network = model.Network(options, width, hidden // 2)
    params = model.init(network, hidden, jax.random.key(0), None)  # on the host
    size, rows = jax.ShapeDtypeStruct, case.batch_size
    frozen = {
        "clip": networks.shapes(clip.CLIP(config)),
        "names": {
            "words": size((12, 16, width), jnp.float32),
            "eos_positions": size((12,), jnp.int32),
        },
    }
    pixels = (rows, of.image_size, of.image_size)
    ints = size((rows,), jnp.int32)
    batch = {
        "image": size((*pixels, 3), jnp.float32),
        "mask": size(pixels, jnp.float32),
        "label": ints,
        "category_id": ints,
        "valid": size((rows,), jnp.bool_),
    }
    loss = objective.make_loss(network, towers, 1, (of.image_size,) * 2)
    return Phase("stage1", loss, method.trainable_1(options)), params, frozen, batch


def measure(name: str, topology: str) -> dict[str, Any]:
    """Compiles one case; returns its row."""
    import jax

    from jaxanom.parallel import mesh as meshes
    from jaxanom.parallel import topology as topologies
    from jaxanom.training import forecast, optimizer, plan

    case = CASES[name]
    devices = topologies.devices(topology) if topology else jax.devices()
    mesh = meshes.make_mesh(**{"data": 1, **case.mesh}, devices=devices)
    subject = {"sd15": sd15, "bayes_pfl": bayes_pfl}[case.subject]
    phase, params, frozen, batch = subject(case)
    from configs import common

    config = optimizer.read(
        {**common.PHASE, **dict(accumulate=case.accumulate)}, "phase"
    )
    stage = plan.Stage(phase, config, 0, 0)
    forecasts = forecast.of_step(stage, params, frozen, batch, mesh, 0.999).forecast
    held = {
        f"{part}_gib": round(getattr(forecasts, part) / GIBI, 4)
        for part in ("params", "optimizer", "frozen", "batch", "working", "total")
    }
    return {
        "case": name,
        "mesh": dict(mesh.shape),
        "devices": topology or "simulated CPU",
        "global_batch": case.batch_size,
        "remat": case.remat,
        "accumulate": case.accumulate,
        **held,
        "fits": {chip: forecasts.total <= room for chip, room in CHIPS.items()},
        "tflop_per_step": round(forecasts.flops / 1e12, 4),
        "tflop_per_step_and_device": round(forecasts.flops / 1e12 / NUM_DEVICES, 4),
        "uncounted": list(forecasts.uncounted),
        "received_gib": forecasts.received and round(forecasts.received / GIBI, 4),
        "compile_s": round(forecasts.compile_s, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale.sixteen_devices")
    default = [name for name in CASES if not name.endswith("tiny")]
    parser.add_argument("cases", nargs="*", default=default, metavar="CASE")
    parser.add_argument("--topology", default="", help="such as v5e:4x4; needs libtpu")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.cases if name not in CASES]
    if unknown:
        parser.error(f"no case {unknown}; choose from {list(CASES)}")
    flag = f"--xla_force_host_platform_device_count={NUM_DEVICES}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if not arguments.topology:
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    from benchmarks import harness

    for name in arguments.cases:
        row = measure(name, arguments.topology)
        harness.report("sixteen_devices", [row], arguments.record)


if __name__ == "__main__":
    main()

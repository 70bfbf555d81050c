"""What the programs are made of: operations, donated memory, and what scanning costs.

    python -m benchmarks.scale.programs [--size full|small] [--record]

- Operations of a train step of Stable Diffusion 1.5's UNet (noise prediction, AdamW),
  counted on its jaxpr, over a count by hand: of every layer's products one forward and
  two backward, but for gradients that nobody asks for. "lean", the CPU's attention,
  computes the attention matrix again in its backward pass; "matmul" keeps it.
- Bytes of that program's arguments which its results take over, over the state's.
- Seconds to compile a walk of 50 moves of the embedded UNet, over those of one move:
  medians, turn by turn.

Nothing of Stable Diffusion is run or initialised.
"""

import argparse
import functools
import re
import statistics
from collections.abc import Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.parity import published_models
from benchmarks.speed import unet
from jaxanom import flops
from jaxanom.diffusion import schedules
from jaxanom.models import backbones, networks
from jaxanom.models.latent import unet as latent_unet
from jaxanom.models.ops import attention

NAME = "programs"
SUBJECTS = {"full": published_models.TRUE, "small": published_models.SMALL}
WALKS = (1, 50)
_WIDTHS = {"f32": 4, "bf16": 2, "f16": 2, "i32": 4, "ui32": 4}
_ARGUMENT = re.compile(
    r"%arg\d+: tensor<((?:\d+x)*)(\w+)>([^%]*?)(?=%arg\d+: |\) ->)", re.DOTALL
)


def by_hand(config: latent_unet.UNetConfig, side: int, length: int) -> dict[str, int]:
    """Counts 2 x multiply-adds of one row's forward pass, layer by layer.

    Returns:
      {"all": everything, "fixed": of it, what meets an input that has no gradient:
      the first convolution, the first layer of the timestep, keys and values of the
      context}.
    """
    total = {"all": 0, "fixed": 0}
    widths, embed = config.block_out_channels, 4 * config.block_out_channels[0]
    depths = _per_block(config.transformer_layers_per_block, len(widths))

    def add(multiplies: int, fixed: bool = False) -> None:
        total["all"] += 2 * multiplies
        total["fixed"] += 2 * multiplies * fixed

    def conv(inputs: int, outputs: int, side: int, fixed: bool = False) -> None:
        add(9 * inputs * outputs * side**2, fixed)

    def residual(inputs: int, outputs: int, side: int) -> None:
        conv(inputs, outputs, side)
        conv(outputs, outputs, side)
        add(embed * outputs)
        add(inputs * outputs * side**2 * (inputs != outputs))

    def transformer(width: int, side: int, depth: int) -> None:
        rows = side**2
        add(2 * rows * width**2)  # into and out of the block
        for _ in range(depth):
            add(4 * rows * width**2 + 2 * rows**2 * width)
            add(2 * rows * width**2 + 2 * rows * length * width)
            add(2 * length * config.cross_attention_dim * width, fixed=True)
            add(12 * rows * width**2)  # gated: 8 in, 4 out

    add(widths[0] * embed, fixed=True)
    add(embed**2)
    conv(config.in_channels, widths[0], side, fixed=True)
    skips, width = [widths[0]], widths[0]
    for level, channels in enumerate(widths):
        attends = "CrossAttn" in config.down_block_types[level]
        for _ in range(config.layers_per_block):
            residual(width, channels, side)
            width = channels
            if attends:
                transformer(width, side, depths[level])
            skips.append(width)
        if level < len(widths) - 1:
            side //= 2
            conv(width, width, side)
            skips.append(width)
    residual(width, width, side)
    transformer(width, side, depths[-1])
    residual(width, width, side)
    for level, channels in reversed(list(enumerate(widths))):
        attends = "CrossAttn" in config.up_block_types[len(widths) - 1 - level]
        for _ in range(config.layers_per_block + 1):
            residual(width + skips.pop(), channels, side)
            width = channels
            if attends:
                transformer(width, side, depths[level])
        if level:
            side *= 2
            conv(width, width, side)
    conv(width, config.out_channels, side)
    return total


def _per_block(value: Any, count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else tuple(value)


def donated_bytes(text: str) -> int:
    """Sums the arguments of a lowered program that its results take over."""
    total = 0
    for shape, dtype, attributes in _ARGUMENT.findall(text):
        if "tf.aliasing_output" in attributes or "jax.buffer_donor" in attributes:
            sizes = [int(n) for n in shape.split("x") if n]
            total += int(np.prod(sizes, dtype=np.int64)) * _WIDTHS[dtype]
    return total


def train_step(size: str, form: str) -> dict[str, Any]:
    """Traces the step with one form of attention; returns its row."""
    raw = dict(SUBJECTS[size]["unet sd-1.5"].config)
    config = latent_unet.UNetConfig.from_dict(raw)
    module, length = latent_unet.UNet(config), published_models.TEXT_LENGTH
    side = config.sample_size
    latents = jax.ShapeDtypeStruct((1, side, side, config.in_channels), jnp.float32)
    context = jax.ShapeDtypeStruct((1, length, config.cross_attention_dim), jnp.float32)
    times = jax.ShapeDtypeStruct((1,), jnp.int32)
    batch = dict(latents=latents, noise=latents, timesteps=times, context=context)
    params = networks.shapes(module)
    calls = unet.jitted(module)
    moments = jax.eval_shape(calls.tx.init, params)
    state = params, moments
    with mock.patch.object(attention, "choose", lambda *_: form):
        count = flops.count(calls.loss_and_grads, params, batch)
        text = calls.step.lower(*state, batch).as_text()
    hand = by_hand(config, side, length)
    by_hand_flops = 3 * hand["all"] - hand["fixed"]
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    return {
        "case": f"train step, {form} attention",
        "gflop": count.total / 1e9,
        "gflop_by_hand": by_hand_flops / 1e9,
        "flops_over_hand": count.total / by_hand_flops,
        "donated_over_state": donated_bytes(text) / held,
        "uncounted": list(count.unknown),
    }


def scans(repeats: int) -> list[dict[str, Any]]:
    """Compiles walks of 1 and 50 moves, turn by turn."""
    tower = backbones.load_unet("embedded")
    calls, alphas = unet.jitted(tower.module), backbones.load_alphas("embedded")
    size, width = tower.module.config.sample_size, tower.module.config
    latents = jnp.zeros((4, size, size, width.in_channels))
    context = jnp.zeros((4, unet.SIZES["embedded"].length, width.cross_attention_dim))
    seconds: dict[int, list[float]] = {count: [] for count in WALKS}
    for _ in range(repeats):
        for count in WALKS:
            levels = schedules.levels(len(alphas), count)
            table = jax.tree.map(jnp.asarray, schedules.inversion_table(alphas, levels))
            walk = functools.partial(calls.walk)  # traced anew
            program = harness.compile_alone(walk, tower.params, latents, context, table)
            seconds[count].append(program.seconds)
    once = statistics.median(seconds[WALKS[0]])
    return [
        {
            "case": f"walk of {count} move{'s' * (count > 1)}",
            "compile_s": statistics.median(values),
            "compile_iqr_s": float(np.subtract(*np.percentile(values, [75, 25]))),
            "compile_over_one_move": statistics.median(values) / once,
            "repeats": repeats,
        }
        for count, values in seconds.items()
    ]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(NAME, "scale")
    parser.add_argument("--size", choices=SUBJECTS, default="full")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    settings = parse(arguments)
    rows = [train_step(settings.size, form) for form in ("matmul", "lean")]
    rows = [row | {"size": settings.size} for row in rows]
    rows += scans(settings.repeats)
    return harness.report(NAME, rows, settings.record)


if __name__ == "__main__":
    main()

"""One training step of APP at the size of RN50's text tower, beside plain PyTorch.

    python -m benchmarks.speed.posterior_step [--size rn50] [--cases 4x30 64x30]
        [--record]

The tower of CLIP RN50 (width 512, 8 heads, 12 layers, 77 tokens, features of 1024) with
drawn weights, 16 prompt vectors, class names of one to three tokens, a batch of 32
cached image features. A step is the gradient of sum_i [CE_i + lambda |m(theta_i) -
mu|^2] by all particles, then SVGD. The plain form loops over particles and encodes 77
tokens of every class's sentence each time. Its floating-point operations are those that
PyTorch counts on one particle, times N; ours are those of our program. Gradients are
compared on two particles and three classes before anything is timed. Where N > 4 the
loop is timed on 4 particles, as its row says; its rate is of steps with all N.
"short" is that tower with 3 of its layers. `--count` times nothing. Extra `bench`.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from jaxanom import flops, trees
from jaxanom.methods.app import model, objective
from jaxanom.models.clip import prompts, shared_prefix, towers
from jaxanom.models.ops import initialise
from jaxanom.posterior import fields, svgd, transport

NAME = "posterior_step"
CASES = ((4, 30), (4, 100), (64, 30), (64, 100))
NUM_VECTORS, NUM_IMAGES, MOST_TIMED = 16, 32, 4
RN50 = towers.TextConfig(
    vocab_size=49408,
    hidden_size=512,
    intermediate_size=2048,
    projection_dim=1024,
    num_hidden_layers=12,
    num_attention_heads=8,
    max_position_embeddings=77,
    bos_token_id=49406,
    eos_token_id=49407,
    pad_token_id=0,
)
SHORT = dataclasses.replace(RN50, num_hidden_layers=3)
SMALL = dataclasses.replace(
    RN50,
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    projection_dim=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    bos_token_id=298,
    eos_token_id=299,
)
SIZES = {"rn50": RN50, "short": SHORT, "small": SMALL}
PRIOR_WEIGHT = 1 / 16


class Problem(NamedTuple):
    """Everything a step needs."""

    config: towers.TextConfig
    params: Any
    layout: prompts.Layout
    context: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    center: np.ndarray


def problem(config: towers.TextConfig, num_particles: int, num_classes: int) -> Problem:
    """Draws weights, class names, particles and a batch."""
    rng = np.random.default_rng(0)
    ids = jnp.zeros((1, config.max_position_embeddings), jnp.int32)
    module = towers.TextTower(config)
    params = initialise.parameters(module, jax.random.key(0), ids)
    names = [
        rng.integers(1, config.bos_token_id, rng.integers(1, 4)).tolist()
        for _ in range(num_classes)
    ]
    stop = int(rng.integers(1, config.bos_token_id))
    template = (*(~k for k in range(NUM_VECTORS)), prompts.NAME, stop)
    special = _Special(config.bos_token_id, config.eos_token_id, config.pad_token_id)
    layout = prompts.make_layout(
        template, names, special, NUM_VECTORS, config.max_position_embeddings
    )
    width = config.hidden_size
    context = rng.normal(0, 0.02, (num_particles, NUM_VECTORS, width))
    features = rng.normal(size=(NUM_IMAGES, config.projection_dim))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Problem(
        config,
        params,
        layout,
        context.astype(np.float32),
        features.astype(np.float32),
        rng.integers(0, num_classes, NUM_IMAGES).astype(np.int32),
        rng.normal(0, 0.02, width).astype(np.float32),
    )


class _Special(NamedTuple):
    bos_id: int
    eos_id: int
    pad_id: int


def losses(
    subject: Problem, parts: shared_prefix.Cut, chunk: int = 0
) -> Callable[..., Any]:
    """(context, params) -> summed loss; particles share the words before the name."""
    tower = model.TextTower(subject.config, parts, prompt_chunk=chunk)

    def loss(context, params):
        text = model.text_features(tower, params, context)
        logits = model.particle_logits(text, subject.features, jnp.log(100.0))
        picked = jax.nn.log_softmax(logits)[:, np.arange(NUM_IMAGES), subject.labels]
        pull = objective.energy(context, subject.center, "token_mean")
        return -jnp.sum(jnp.mean(picked, axis=1)) + PRIOR_WEIGHT * jnp.sum(pull)

    return loss


def our_step(subject: Problem, chunk: int = 0) -> Callable[..., Any]:
    """(context, params) -> (gradient, directions of SVGD)."""
    loss = losses(subject, shared_prefix.cut(subject.layout), chunk)
    moves = transport.of_flow(fields.Field(svgd.flow(), temperature=0.01))

    def step(context, params):
        grads = jax.grad(loss)(context, params)
        particles = {"context": context}
        state = moves.init(particles)
        updates, _ = moves.update({"context": grads}, state, particles)
        return grads, updates["context"]

    return step


def torch_gradients(subject: Problem, num_particles: int) -> Callable[[], Any]:
    """The plain loop over particles: 77 tokens of every class, one after another."""
    import torch
    from torch.nn import functional

    flat = {
        name: torch.from_numpy(np.array(leaf))
        for name, leaf in trees.flatten(subject.params).items()
    }
    config, layout = subject.config, subject.layout
    ids = torch.from_numpy(np.array(layout.input_ids)).long()
    ends = torch.from_numpy(np.array(layout.eos_positions)).long()
    features, labels, center = (
        torch.from_numpy(array)
        for array in (subject.features, subject.labels.astype(np.int64), subject.center)
    )
    words = flat["text_model/embeddings/token_embedding/embedding"][ids]
    positions = flat["text_model/embeddings/position_embedding/embedding"]

    def dense(x, name):
        return functional.linear(x, flat[f"{name}/kernel"].T, flat[f"{name}/bias"])

    def norm(x, name):
        scale, bias = flat[f"{name}/scale"], flat[f"{name}/bias"]
        return functional.layer_norm(x, scale.shape, scale, bias, config.layer_norm_eps)

    def attend(x, name):
        shape = (*x.shape[:2], config.num_attention_heads, -1)
        query, key, value = (
            dense(x, f"{name}/{kind}_proj").view(shape).transpose(1, 2)
            for kind in "qkv"
        )
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True
        )
        return dense(mixed.transpose(1, 2).reshape(x.shape), f"{name}/out_proj")

    def encode(vectors):
        own = vectors.expand(len(ids), *vectors.shape)
        x = torch.cat([words[:, :1], own, words[:, 1 + NUM_VECTORS :]], 1) + positions
        for number in range(config.num_hidden_layers):
            layer = f"text_model/encoder/layers/{number}"
            x = x + attend(norm(x, f"{layer}/layer_norm1"), f"{layer}/self_attn")
            inside = dense(norm(x, f"{layer}/layer_norm2"), f"{layer}/mlp/fc1")
            inside = inside * torch.sigmoid(1.702 * inside)
            x = x + dense(inside, f"{layer}/mlp/fc2")
        x = norm(x[torch.arange(len(ids)), ends], "text_model/final_layer_norm")
        return functional.normalize(x @ flat["text_projection/kernel"], dim=-1)

    def call():
        grads = []
        for particle in subject.context[:num_particles]:
            vectors = torch.from_numpy(particle).requires_grad_()
            logits = 100.0 * features @ encode(vectors).T
            pull = ((vectors.mean(0) - center) ** 2).sum()
            loss = functional.cross_entropy(logits, labels) + PRIOR_WEIGHT * pull
            grads.append(torch.autograd.grad(loss, vectors)[0])
        return torch.stack(grads)

    return call


def torch_flops(call: Callable[[], Any]) -> int:
    """Counts as PyTorch does, attention by its matrix products."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def check(config: towers.TextConfig) -> float:
    """Largest difference of the gradients of both, relative, on a small problem."""
    subject = problem(config, 2, 3)
    step = jax.jit(our_step(subject))
    ours, _ = step(jnp.asarray(subject.context), subject.params)
    return harness.relative_error(ours, torch_gradients(subject, 2)().numpy())


def measure(
    config: towers.TextConfig, sizes: tuple[int, int], settings: argparse.Namespace
) -> list[dict[str, Any]]:
    """Counts, and unless told otherwise times, one (N, C)."""
    num_particles, num_classes = sizes
    subject = problem(config, num_particles, num_classes)
    context = jnp.asarray(subject.context)
    timed = min(num_particles, MOST_TIMED)
    step = our_step(subject, settings.chunk)
    ours = flops.count(step, context, subject.params).total
    plain_loss = losses(subject, shared_prefix.whole(subject.layout))
    plain = flops.count(jax.grad(plain_loss), context, subject.params).total
    torch_count = torch_flops(torch_gradients(subject, 1)) * num_particles
    facts = {
        "N": num_particles,
        "C": num_classes,
        "gflop": round(ours / 1e9, 2),
        "plain_gflop": round(plain / 1e9, 2),
        "torch_gflop": round(torch_count / 1e9, 2),
        "share": ours / torch_count,
        "chunk": settings.chunk,
    }
    name = f"N={num_particles}, C={num_classes}"
    print(name, facts, flush=True)
    if settings.count:
        return [{"case": f"{name}, ours", **facts}]
    call = torch_gradients(subject, timed)
    cases = [
        harness.compiled(
            f"{name}, ours", step, context, subject.params, unit="steps", facts=facts
        ),
        harness.Case(
            f"{name}, torch loop",
            call,
            work=timed / num_particles,
            unit="steps",
            facts=facts | {"particles_timed": timed},
            wait=lambda result: result,
        ),
    ]
    rows = harness.run(cases, settings.warmup, settings.repeats)
    return [row | {"times_torch": row["rate"] / rows[-1]["rate"]} for row in rows]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(NAME)
    parser.add_argument("--cases", nargs="+", default=[f"{n}x{c}" for n, c in CASES])
    parser.add_argument("--chunk", type=int, default=0, help="particles at a time")
    parser.add_argument("--count", action="store_true", help="count, time nothing")
    parser.add_argument("--size", choices=SIZES, default="rn50")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    settings = parse(arguments)
    config = SIZES[settings.size]
    error = check(config)
    print(f"gradients differ by {error:.1e} of the largest", flush=True)
    rows = []
    for case in settings.cases:
        sizes = tuple(map(int, case.split("x")))
        measured = measure(config, sizes, settings)
        facts = {"size": settings.size, "difference": error}
        rows += [{**row, **facts} for row in measured]
    if settings.count:
        return rows
    return harness.report(NAME, rows, settings.record)


if __name__ == "__main__":
    main()

"""Attention forward and backward in each of its forms, beside PyTorch's fused one.

    python -m benchmarks.speed.attention [--shapes self-64 self-16 cross vit]
        [--dtype bfloat16] [--record]

What `models.attention.choose` picks on this machine is marked. A call is the gradient
of the sum of squares by query, key and value. Results are compared with "matmul" first.
"""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from jaxanom.models.ops import attention

NAME = "attention"
FORMS = {  # by platform, those that run there
    "cpu": ("matmul", "lean"),
    "cuda": ("matmul", "cudnn"),
    "tpu": ("matmul", "flash"),
    "other": ("matmul",),
}


class Shape(NamedTuple):
    """[B, Sq, H, D] of the queries; Sk of keys and values."""

    batch: int
    num_query: int
    num_key: int
    num_heads: int
    width: int


SHAPES = {
    "self-64": Shape(1, 4096, 4096, 8, 40),  # Stable Diffusion 1.5, 64 x 64 latents
    "self-32": Shape(2, 1024, 1024, 8, 80),
    "self-16": Shape(4, 256, 256, 4, 16),  # the embedded UNet
    "cross": Shape(4, 1024, 77, 8, 40),
    "vit": Shape(4, 197, 197, 12, 64),
}


def draw(shape: Shape) -> tuple[np.ndarray, ...]:
    """Draws query, key and value."""
    rng = np.random.default_rng(0)
    batch, num_query, num_key, heads, width = shape
    sizes = (num_query, num_key, num_key)
    return tuple(
        rng.standard_normal((batch, size, heads, width), np.float32) for size in sizes
    )


def gradients(form: str) -> Any:
    """Returns (query, key, value) -> gradients of a loss by the three."""

    def loss(*arrays):
        return jnp.sum(attention.dot_product(*arrays, implementation=form) ** 2)

    return jax.grad(loss, argnums=(0, 1, 2))


def torch_gradients(arrays: Sequence[np.ndarray], dtype: str) -> Any:
    """Returns () -> the same from PyTorch's `scaled_dot_product_attention`."""
    import torch

    where = "cuda" if torch.cuda.is_available() else "cpu"
    # It wants [B, H, S, D].
    tensors = [
        torch.from_numpy(array.transpose(0, 2, 1, 3).copy())
        .to(where, getattr(torch, dtype))
        .requires_grad_()
        for array in arrays
    ]

    def call() -> list[np.ndarray]:
        for tensor in tensors:
            tensor.grad = None
        mixed = torch.nn.functional.scaled_dot_product_attention(*tensors)
        (mixed**2).sum().backward()
        if where == "cuda":
            torch.cuda.synchronize()
        return [tensor.grad.transpose(1, 2) for tensor in tensors]

    return call


def cases_of(name: str, dtype: str) -> list[harness.Case]:
    """Compiles and compares all forms of one shape."""
    shape = SHAPES[name]
    inputs = draw(shape)
    arrays = [jnp.asarray(array, dtype) for array in inputs]
    platform = attention.fusing_platform()
    preferred = attention.choose(arrays[0], arrays[1], False, platform)
    facts = {"shape": list(shape), "dtype": dtype}
    cases, reference = [], None

    def largest_gap(gradients) -> float:
        pairs = zip(gradients, reference, strict=True)
        return max(harness.relative_error(ours, theirs) for ours, theirs in pairs)

    for form in FORMS[platform]:
        if form == "cudnn" and dtype == "float32":
            continue  # it takes none
        case = harness.compiled(f"{name}, {form}", gradients(form), *arrays)
        grads = case.call()
        reference = grads if reference is None else reference
        own = {"error": largest_gap(grads), "chosen": form == preferred}
        cases.append(case._replace(facts=facts | own))
    call = torch_gradients(inputs, dtype)
    grads = [gradient.float().cpu().numpy() for gradient in call()]
    mine = facts | {"error": largest_gap(grads), "chosen": None}
    return [
        *cases,
        harness.Case(f"{name}, PyTorch", call, facts=mine, wait=lambda _: None),
    ]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(NAME)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=tuple(SHAPES))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    settings = parse(arguments)
    rows = []
    for name in settings.shapes:
        timed = harness.run(
            cases_of(name, settings.dtype), settings.warmup, settings.repeats
        )
        ours = next(row["median_s"] for row in timed if row["chosen"])
        rows += [row | {"times_ours": row["median_s"] / ours} for row in timed]
    return harness.report(NAME, rows, settings.record)


if __name__ == "__main__":
    main()

"""Bayes-PFL's training step and test loop as plain PyTorch, to time ours against.

Written from the method's description (arXiv 2503.10080 and the behaviour of its
released code), in the order the released loop works: the image tower in every step,
text sentences of full length, one tower call per draw and bank entry, two logit maps
per pair upsampled for every entry, a softmax over each pair. Kinder than that loop in
two places: normal and abnormal sentences share a call, and attention is PyTorch's
fused one.

Weights are our trees, flattened to {"a/b/c": tensor}; dense kernels are [in, out].
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

try:
    import torch
    from torch.nn import functional
except ImportError as error:
    raise ImportError(
        "the comparison needs PyTorch; install the extra `bench` of this package"
    ) from error

Tensors = Mapping[str, torch.Tensor]


class Sizes(NamedTuple):
    """What the weights do not tell.

    Attributes:
      vision_heads, text_heads: Heads of the two towers.
      layers: Layers whose patch tokens are used, from 1.
      image_size: Side of an image in pixels.
      patch: Side of a patch in pixels.
      attention_heads: Heads of the cross-model attention.
    """

    vision_heads: int
    text_heads: int
    layers: tuple[int, ...]
    image_size: int
    patch: int
    attention_heads: int = 4


class Text(NamedTuple):
    """Class names: word embeddings [C, L, D] and the place of the end token [C]."""

    words: torch.Tensor
    ends: torch.Tensor


class Noise(NamedTuple):
    """Normal draws: context [N, R, D]; normal, abnormal [1, R, D]."""

    context: torch.Tensor
    normal: torch.Tensor
    abnormal: torch.Tensor


def tensors(flat: Mapping[str, Any], trained: bool = False) -> dict[str, torch.Tensor]:
    """Wraps arrays; of weights that are trained a copy, with gradients."""
    if trained:
        return {
            name: torch.tensor(np.asarray(value), requires_grad=True)
            for name, value in flat.items()
        }
    return {name: torch.from_numpy(np.array(value)) for name, value in flat.items()}


def dense(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    """x W + b."""
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def norm(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    """Layer norm."""
    return functional.layer_norm(
        x, x.shape[-1:], w[f"{name}/scale"], w[f"{name}/bias"], 1e-5
    )


def block(
    w: Tensors, name: str, x: torch.Tensor, heads: int, causal: bool
) -> torch.Tensor:
    """One pre-norm transformer layer with exact GELU, on [N, L, D]."""
    rows, length, width = x.shape
    normed = norm(w, f"{name}/layer_norm1", x)
    query, key, value = (
        dense(w, f"{name}/self_attn/{part}_proj", normed)
        .view(rows, length, heads, width // heads)
        .transpose(1, 2)
        for part in "qkv"
    )
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    mixed = mixed.transpose(1, 2).reshape(rows, length, width)
    x = x + dense(w, f"{name}/self_attn/out_proj", mixed)
    inner = dense(w, f"{name}/mlp/fc1", norm(w, f"{name}/layer_norm2", x))
    return x + dense(w, f"{name}/mlp/fc2", functional.gelu(inner))


def depth(w: Tensors, tower: str) -> int:
    """Number of layers of a tower."""
    start = f"{tower}/encoder/layers/"
    return 1 + max(
        int(k.removeprefix(start).split("/")[0]) for k in w if k.startswith(start)
    )


@torch.no_grad()
def look(w: Tensors, sizes: Sizes, image: torch.Tensor):
    """Images [N, 3, H, W], normalised -> g [N, D], patch tokens, S x [N, L, V]."""
    start = "vision_model/embeddings"
    kernel = w[f"{start}/patch_embedding/kernel"].permute(3, 2, 0, 1)
    patches = functional.conv2d(image, kernel, stride=sizes.patch)
    grid = patches.shape[-2:]
    patches = patches.flatten(2).transpose(1, 2)  # [N, L, V]
    table = w[f"{start}/position_embedding/embedding"]
    side = round((table.shape[0] - 1) ** 0.5)
    places = table[1:].T.reshape(1, -1, side, side)
    places = functional.interpolate(places, size=grid, mode="bicubic", antialias=True)
    first = (w[f"{start}/class_embedding"] + table[0]).expand(image.shape[0], 1, -1)
    x = torch.cat([first, patches + places[0].flatten(1).T], 1)
    x = norm(w, "vision_model/pre_layrnorm", x)
    kept = []
    for number in range(depth(w, "vision_model")):
        name = f"vision_model/encoder/layers/{number}"
        x = block(w, name, x, sizes.vision_heads, False)
        if number + 1 in sizes.layers:
            kept.append(x[:, 1:])
    pooled = norm(w, "vision_model/post_layernorm", x[:, 0])
    return pooled @ w["visual_projection/kernel"], kept


def encode_text(
    w: Tensors, sizes: Sizes, x: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """Token embeddings [M, L, D] -> features [M, D], not normalised."""
    x = x + w["text_model/embeddings/position_embedding/embedding"][: x.shape[1]]
    for number in range(depth(w, "text_model")):
        name = f"text_model/encoder/layers/{number}"
        x = block(w, name, x, sizes.text_heads, True)
    x = norm(w, "text_model/final_layer_norm", x)
    x = x[torch.arange(x.shape[0]), ends]
    return x @ w["text_projection/kernel"]


def mlp(p: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    """Three dense layers with softplus between them."""
    for number in range(2):
        x = functional.softplus(dense(p, f"{name}/layers_{number}", x))
    return dense(p, f"{name}/layers_2", x)


def push(z: torch.Tensor, u: torch.Tensor, w: torch.Tensor, b: torch.Tensor):
    """Planar flow, z [N, R, D]; u, w [N, K, D]; b [N, K] -> z_K, log-determinant."""
    logdet = z.new_zeros(z.shape[:-1])
    for k in range(u.shape[1]):
        bend = torch.tanh((w[:, None, k] * z).sum(-1) + b[:, None, k])  # [N, R]
        along = (w[:, k] * u[:, k]).sum(-1)[:, None]
        logdet = logdet + torch.log((1 + (1 - bend**2) * along).abs() + 1e-5)
        z = z + u[:, None, k] * bend[..., None]
    return z, logdet


def distribution(p: Tensors, encoder: str, x: torch.Tensor, flow: Any, eps: Any):
    """Draws [N, R, D], and what the divergence is made of."""
    mean = mlp(p, f"{encoder}/mean", x)[:, None]
    variance = torch.exp(mlp(p, f"{encoder}/spread", x) / 2)[:, None]
    start = mean + variance.sqrt() * eps
    end, logdet = push(start, *flow)
    inside = -0.5 * (variance.log() + (start - mean) ** 2 / variance).sum(-1)
    return end, inside + 0.5 * (end**2).sum(-1), logdet


def draw(p: Tensors, g: torch.Tensor, noise: Noise):
    """All three distributions: draws (context, normal, abnormal), divergences."""
    rows, width = g.shape
    u, w = (dense(p, f"context_flow/{k}", g).view(rows, -1, width) for k in ("u", "w"))
    flow = (u, w, dense(p, "context_flow/b", g))
    context, excess, logdet = distribution(p, "context_encoder", g, flow, noise.context)
    ends, divergences = [context], [(excess - logdet).mean()]
    for state, eps in (("normal", noise.normal), ("abnormal", noise.abnormal)):
        flow = tuple(p[f"{state}_flow/{k}"][None] for k in ("u", "w", "b"))
        x = p[f"{state}_flow/state"][None]
        end, excess, logdet = distribution(p, "state_encoder", x, flow, eps)
        ends.append(end)
        divergences.append((excess - logdet / rows).mean())
    return ends, divergences


def embed_prompts(
    w: Tensors, p: Tensors, sizes: Sizes, text: Text, ends: Any, category: torch.Tensor
) -> torch.Tensor:
    """Text embeddings of length one, [N, 2, R, B, D], one bank entry at a time."""
    context, normal, abnormal = ends  # [N, R, D], [1, R, D], [1, R, D]
    num_images, num_draws, _ = context.shape
    num_prompts, num_context, _ = p["prompts/context"].shape
    words, last = text.words[category], text.ends[category]
    per_draw = []
    for r in range(num_draws):
        per_entry = []
        for b in range(num_prompts):
            halves = []
            for name, shift in (("normal", normal), ("abnormal", abnormal)):
                first = p["prompts/context"][b] + context[:, r, None]  # [N, P, D]
                state = p[f"prompts/{name}"][b] + shift[:, r, None]
                state = state.expand(num_images, -1, -1)
                open_places = num_context + state.shape[1]
                halves.append(
                    torch.cat(
                        [words[:, :1], first, state, words[:, 1 + open_places :]], 1
                    )
                )
            features = encode_text(w, sizes, torch.cat(halves), last.repeat(2))
            per_entry.append(features.view(2, num_images, -1))
        per_draw.append(torch.stack(per_entry))  # [B, 2, N, D]
    features = torch.stack(per_draw).permute(3, 2, 0, 1, 4)  # [N, 2, R, B, D]
    return functional.normalize(features, dim=-1, eps=0)


def maps_of(
    p: Tensors, sizes: Sizes, text: torch.Tensor, patch_tokens: Any
) -> list[torch.Tensor]:
    """Text [N, M, D] -> per layer the logit maps [N, M, H, W]."""
    rows, count, width = text.shape
    heads = sizes.attention_heads
    side = sizes.image_size // sizes.patch
    maps = []
    for number, tokens in enumerate(patch_tokens):
        kernel = p["attention/projections"][number]
        seen = functional.normalize(tokens @ kernel, dim=-1, eps=0)  # [N, L, D]
        query = dense(p, "attention/query", text)
        split = (
            x.view(rows, -1, heads, width // heads).transpose(1, 2)
            for x in (query, seen)
        )
        query, keys = split
        weights = torch.softmax(query @ keys.transpose(-1, -2) * width**-0.5, -1)
        mixed = (weights @ keys).transpose(1, 2).reshape(rows, count, width)
        adapted = functional.normalize(mixed + text, dim=-1, eps=0)
        logits = p["temperatures/pixel"].exp() * seen @ adapted.transpose(1, 2)
        grid = logits.transpose(1, 2).reshape(rows, count, side, side)
        size = (sizes.image_size,) * 2
        maps.append(
            functional.interpolate(grid, size, mode="bilinear", align_corners=True)
        )
    return maps


def image_logits(p: Tensors, text: torch.Tensor, feature: torch.Tensor):
    """Text [N, M, D] against image features [N, D]: [N, M]."""
    mapped = functional.normalize(dense(p, "class_mapping", text), dim=-1, eps=0)
    feature = functional.normalize(feature, dim=-1, eps=0)
    return p["temperatures/image"].exp() * torch.einsum("nmd,nd->nm", mapped, feature)


def focal(abnormal: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Focal loss with gamma 2, each class by its own number of pixels."""
    right = torch.where(mask > 0.5, abnormal, 1 - abnormal)
    loss = -((1 - right) ** 2) * torch.log(right + 1e-8)
    inside = (loss * mask).sum() / (mask.sum() + 1e-8)
    return inside + (loss * (1 - mask)).sum() / ((1 - mask).sum() + 1e-8)


def dice(abnormal: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Dice loss of the abnormal class over the whole batch."""
    overlap = (abnormal * mask).sum()
    return 1 - (2 * overlap + 1e-5) / (abnormal.sum() + mask.sum() + 1e-5)


def correlation(text: torch.Tensor) -> torch.Tensor:
    """L_ort of text [N, 2, R, B, D]."""
    total = text.new_zeros(())
    for state in range(2):
        rows = text[:, state].flatten(0, 1)  # [N R, B, D]
        gram = rows @ rows.transpose(1, 2)
        off = gram * (1 - torch.eye(gram.shape[-1]))
        total = total + (off**2).mean()
    return total


def loss_1(
    w: Tensors,
    p: Tensors,
    sizes: Sizes,
    text: Text,
    batch: Mapping[str, torch.Tensor],
    noise: Noise,
    entry: int,
) -> torch.Tensor:
    """Loss of stage 1, the image tower included."""
    g, patch_tokens = look(w, sizes, batch["image"])
    ends, divergences = draw(p, g, noise)
    prompts = embed_prompts(w, p, sizes, text, ends, batch["category_id"])
    flat = prompts.flatten(1, 3)  # [N, 2 R B, D]; R = 1
    num_prompts = prompts.shape[3]
    pair = [entry, num_prompts + entry]
    logits = image_logits(p, flat, g)[:, pair]
    total = functional.cross_entropy(logits, batch["label"])
    for maps in maps_of(p, sizes, flat, patch_tokens):
        abnormal = torch.softmax(maps[:, pair], 1)[:, 1]
        total = total + focal(abnormal, batch["mask"]) + dice(abnormal, batch["mask"])
    return total + 0.01 * sum(divergences) + correlation(prompts)


@torch.no_grad()
def predict(
    w: Tensors,
    p: Tensors,
    sizes: Sizes,
    text: Text,
    image: torch.Tensor,
    category: torch.Tensor,
    noise: Noise,
):
    """Image score [N] and unsmoothed map [N, H, W] of stage 1: means over all pairs."""
    g, patch_tokens = look(w, sizes, image)
    ends, _ = draw(p, g, noise)
    prompts = embed_prompts(w, p, sizes, text, ends, category)
    flat = prompts.flatten(1, 3)
    half = flat.shape[1] // 2
    logits = image_logits(p, flat, g).unflatten(1, (2, half))
    score = torch.softmax(logits, 1)[:, 1].mean(1)
    total = 0
    for maps in maps_of(p, sizes, flat, patch_tokens):
        pairs = maps.unflatten(1, (2, half))
        total = total + torch.softmax(pairs, 1)[:, 1].mean(1)
    return score, total / len(patch_tokens)

"""Times the inversion of personal tokens and the grid of the self-tuning.

    python -m benchmarks.personal_tokens [--steps 20] [--widths 1 2 4 8]
        [--settings 4096] [--record]

Inversion: the noise-regression term alone, on the embedded towers, W tokens in one
program; beside it a PyTorch loop (transformers, diffusers) of the same maths on one
token, if both are installed. Grid: all settings in one program; beside it scikit-learn
called in a loop over a few settings.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarks import harness
from jaxanom.methods.adp import (
    crops,
    fusion,
    grid_objective,
    inversion,
    model,
    objective,
    texts,
    tuning,
)
from jaxanom.models import backbones

NUM_VECTORS = 2
PLAIN = {"align_weight": 0.0, "state_weight": 0.0, "anchor_weight": 0.0}
SIDE, NUM_IMAGES, NUM_CHANNELS = 32, 256, 6


def embedded_towers() -> tuple[model.Towers, dict[str, Any]]:
    parts = dict.fromkeys(
        ("clip", "autoencoder", "text_encoder", "unet", "scheduler"), ""
    )
    settings = {"directory": "embedded", "dtype": "float32", "remat": False, **parts}
    return model.load(ml_collections.ConfigDict(settings), 0)


def token_data(towers: model.Towers, params: Any, width: int) -> objective.TokenData:
    """Draws the data of W tokens: times do not depend on what the shots show."""
    rng = np.random.default_rng(0)
    channels = towers.vae.config.latent_channels
    side = towers.size // towers.vae.config.downsampling
    depth = model.token_table(params).shape[1]
    mean = rng.normal(size=(width, 1, 59, side, side, channels)).astype(np.float32)
    rest = dict.fromkeys(objective.TokenData._fields, jnp.zeros(width))
    start = 0.1 * rng.normal(size=(width, NUM_VECTORS, depth)).astype(np.float32)
    return objective.TokenData(
        **{
            **rest,
            "mean": jnp.asarray(mean),
            "std": jnp.zeros_like(mean),
            "num_shots": jnp.ones(width, jnp.int32),
            "start": jnp.asarray(start),
            "limit": jnp.full(width, 1e3),
        }
    )


def inversion_cases(steps: int, widths: list[int], batch: int) -> list[harness.Case]:
    towers, params = embedded_towers()
    words = texts.phrases("foundry", ())
    around = texts.lay_out(towers, words, NUM_VECTORS)
    layouts = texts.training_layouts(towers, words, around, NUM_VECTORS)
    options = objective.Options(batch_size=batch, prior_weight=0.0, **PLAIN)
    loss = objective.make_loss(towers, layouts, crops.pyramid(), options)
    cases = []
    for width in widths:
        data = token_data(towers, params, width)
        keys = inversion.token_keys(jax.random.key(0), width)

        def run(start, data, params, keys):
            found, _ = inversion.invert_all(loss, start, data, params, keys, steps)
            return found

        cases.append(
            harness.compiled(
                f"{width} tokens",
                run,
                data.start,
                data,
                params,
                keys,
                work=width * steps,
                unit="token steps",
                facts={"width": width, "steps": steps, "batch": batch},
            )
        )
    call = torch_loop(towers, layouts, steps, batch)
    if call is not None:
        facts = {"width": 1, "steps": steps, "batch": batch}
        cases.append(
            harness.Case(
                "PyTorch loop, 1 token",
                call,
                work=steps,
                unit="token steps",
                facts=facts,
                wait=lambda result: result,
            )
        )
    return cases


def torch_loop(
    towers: model.Towers, layouts: objective.Layouts, steps: int, batch: int
) -> Callable[[], Any] | None:
    """Returns the same loop in PyTorch, or None where it is not installed."""
    try:
        import diffusers
        import torch
        import transformers
    except ImportError:
        return None
    source = backbones.EMBEDDED
    network = diffusers.UNet2DConditionModel.from_pretrained(source / "unet").float()
    text = transformers.CLIPModel.from_pretrained(source / "clip").float().text_model
    for module in (network, text):
        module.requires_grad_(False)
    ids, slots = (
        torch.as_tensor(np.asarray(x)).long().reshape(-1, towers.text_length)
        for x in (layouts.captions.input_ids, layouts.captions.slots)
    )
    alphas = torch.as_tensor(towers.alphas_cumprod, dtype=torch.float32)
    side = towers.size // towers.vae.config.downsampling
    length = towers.text_length
    causal = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)

    def context(vectors, chosen):
        words = text.embeddings.token_embedding(ids[chosen])
        placed = vectors[slots[chosen].clamp(min=0)]
        hidden = torch.where((slots[chosen] >= 0)[..., None], placed, words)
        hidden = hidden + text.embeddings.position_embedding.weight[:length]
        mask = causal.expand(len(chosen), 1, -1, -1)
        found = text.encoder(inputs_embeds=hidden, causal_attention_mask=mask)
        return text.final_layer_norm(found.last_hidden_state)

    def call():
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(59, network.config.in_channels, side, side)
        vectors = torch.zeros(NUM_VECTORS, text.config.hidden_size, requires_grad=True)
        optimiser = torch.optim.Adam([vectors], lr=5e-3)
        for _ in range(steps):
            rows = torch.randint(59, (batch,), generator=generator)
            chosen = torch.randint(len(ids), (batch,), generator=generator)
            told = torch.randint(len(alphas), (batch,), generator=generator)
            noise = torch.randn(batch, *latents.shape[1:], generator=generator)
            alpha = alphas[told][:, None, None, None]
            noised = alpha.sqrt() * latents[rows] + (1 - alpha).sqrt() * noise
            found = network(noised, told, context(vectors, chosen)).sample
            loss = ((noise - found) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return vectors.detach().numpy()

    return call


def synthetic() -> grid_objective.Synthetic:
    rng = np.random.default_rng(1)
    half = NUM_IMAGES // 2
    source = np.where(np.arange(NUM_IMAGES) < half, 0, 1 + np.arange(NUM_IMAGES) % 3)
    masks = np.zeros((NUM_IMAGES, SIDE, SIDE), np.float32)
    masks[half:, 8:16, 8:16] = 1
    maps = rng.normal(size=(NUM_CHANNELS, NUM_IMAGES, SIDE, SIDE)).astype(np.float32)
    whole = np.zeros((1, NUM_IMAGES), np.float32)
    return grid_objective.Synthetic(maps + masks, whole, masks, source)


def tuning_cases(num_settings: int, num_looped: int = 2) -> list[harness.Case]:
    data, counts = synthetic(), (1,) * NUM_CHANNELS
    default = fusion.default((1.0,) * NUM_CHANNELS, has_language=False)
    settings = tuning.grid(counts, default, False, num_settings)
    facts = {"images": NUM_IMAGES, "pixels": SIDE**2, "channels": NUM_CHANNELS}
    count = len(settings.sigma)
    cases = [
        harness.Case(
            "grid, one program",
            lambda: grid_objective.objectives(data, counts, settings),
            work=count,
            unit="settings",
            facts={**facts, "settings": count},
        )
    ]
    try:
        from sklearn import metrics
    except ImportError:
        return cases
    smoothed = data.maps.reshape(NUM_CHANNELS, NUM_IMAGES, -1)
    truth, weights = data.masks.reshape(NUM_IMAGES, -1), np.asarray(settings.weights)
    fold = grid_objective.folds(data.source)

    def looped():
        found = []
        for row in weights[:num_looped]:
            values = np.einsum("c,cmp->mp", row, smoothed)
            for f in range(grid_objective.NUM_FOLDS):
                for s in range(1, int(data.source.max()) + 1):
                    rows = (fold == f) & np.isin(data.source, (0, s))
                    label = data.source[rows] > 0
                    auroc = metrics.roc_auc_score(label, values[rows].max(1))
                    flat = truth[rows].ravel(), values[rows].ravel()
                    found.append(auroc + metrics.average_precision_score(*flat))
        return found

    loop = harness.Case(
        "scikit-learn loop",
        looped,
        work=num_looped,
        unit="settings",
        facts={**facts, "settings": num_looped},
        wait=lambda result: result,
    )
    return [*cases, loop]


def main(argv: list[str] | None = None) -> None:
    parser = harness.parser("personal_tokens")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--settings", type=int, default=4096)
    arguments = parser.parse_args(argv)
    cases = inversion_cases(arguments.steps, arguments.widths, arguments.batch)
    cases += tuning_cases(arguments.settings)
    rows = harness.run(cases, arguments.warmup, arguments.repeats)
    harness.report("personal_tokens", rows, arguments.record)


if __name__ == "__main__":
    main()

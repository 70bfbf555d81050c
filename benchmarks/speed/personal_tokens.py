"""Times the inversion of personal tokens beside a PyTorch loop of the same maths.

    python -m benchmarks.speed.personal_tokens [--steps 20] [--widths 1 2 4 8]
        [--record]

The regression of noise (or of velocity, as the UNet was trained) alone, on the embedded
towers: W tokens in one program; beside it a PyTorch loop (transformers, diffusers) on
one token, if both are installed. Both are given the same draws and end, before anything
is timed, in the same vectors: `difference` is the largest over how far they moved.
PyTorch finds its draws made.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarks import harness
from jaxanom.jobs import config_file
from jaxanom.methods.adp import model, objective, options
from jaxanom.methods.adp.memory import crops
from jaxanom.methods.adp.token import inversion, wording
from jaxanom.models import backbones

NAME = "personal_tokens"
TORCH = "PyTorch loop, 1 token"
NUM_VECTORS, NUM_CROPS = 2, 59
LEARNING_RATE = 5e-3
PLAIN = {"align_weight": 0.0, "state_weight": 0.0, "anchor_weight": 0.0}


class Problem(NamedTuple):
    """Towers, sentences and how long to learn.

    Attributes:
      directory: of the towers.
      layouts: of `objective`.
      loss: of one token.
      steps, batch: a training, and crops in each of its steps.
    """

    directory: str
    towers: model.Towers
    params: Any
    layouts: objective.Layouts
    loss: inversion.TokenLoss
    steps: int
    batch: int


def problem(directory: str, steps: int, batch: int) -> Problem:
    """Loads the towers of a directory and lays out the sentences around a token."""
    names = ("clip", "autoencoder", "text_encoder", "unet", "scheduler")
    parts = dict.fromkeys((*names, "variant", "clip_act"), "")
    settings = {"directory": directory, "dtype": "float32", "remat": "none", **parts}
    towers, params = model.load(ml_collections.ConfigDict(settings), 0)
    words = wording.phrases("foundry", ())
    around = wording.lay_out(towers, words, NUM_VECTORS)
    layouts = wording.training_layouts(towers, words, around, NUM_VECTORS)
    recipe = config_file.load("configs/adp/foundry.py").adp
    recipe.update(batch_size=batch, prior_weight=0.0, **PLAIN)
    terms = options.of_objective(options.read(recipe))
    loss = objective.make_loss(towers, layouts, crops.pyramid(), terms)
    return Problem(directory, towers, params, layouts, loss, steps, batch)


def token_data(towers: model.Towers, params: Any, width: int) -> objective.TokenData:
    """Draws the data of W tokens, the first ones alike for every W; times do not depend
    on what the shots show."""
    rngs = [np.random.default_rng(number) for number in range(width)]
    channels = towers.vae.config.latent_channels
    side = towers.size // towers.vae.config.downsampling
    depth = model.token_table(params).shape[1]
    mean, start = (
        np.stack([rng.standard_normal(shape, np.float32) for rng in rngs])
        for shape in ((1, NUM_CROPS, side, side, channels), (NUM_VECTORS, depth))
    )
    rest = dict.fromkeys(objective.TokenData._fields, jnp.zeros(width))
    return objective.TokenData(
        **{
            **rest,
            "mean": jnp.asarray(mean),
            "std": jnp.zeros_like(mean),
            "num_shots": jnp.ones(width, jnp.int32),
            "start": jnp.asarray(0.1 * start),
            "limit": jnp.full(width, 1e3),
        }
    )


def ours(task: Problem) -> Callable[..., Any]:
    """(start, data, params, keys) -> vectors of W tokens."""

    def run(start, data, params, keys):
        vectors, _ = inversion.invert_all(
            task.loss, start, data, params, keys, task.steps, LEARNING_RATE
        )
        return vectors

    return run


def draws(task: Problem, key: Any) -> dict[str, np.ndarray]:
    """Draws as `objective.inversion` does from a token's key; leaves [steps, batch]."""
    captions = task.layouts.captions.eos_positions.shape[1]
    side = task.towers.size // task.towers.vae.config.downsampling
    shape = (task.batch, side, side, task.towers.vae.config.latent_channels)
    num_timesteps = len(task.towers.alphas_cumprod)

    def one(step):
        key_draws, _ = jax.random.split(jax.random.fold_in(key, step))
        key_shot, key_caption, _, key_noise, key_timestep = jax.random.split(
            key_draws, 5
        )
        _, crop, is_part = objective.draw_crops(
            key_shot, task.batch, jnp.int32(1), crops.pyramid()
        )
        caption = jax.random.randint(key_caption, (task.batch,), 0, captions)
        return {
            "crop": crop,
            "caption": is_part * captions + caption,
            "noise": jax.random.normal(key_noise, shape),
            "timesteps": objective.draw_timesteps(
                key_timestep, task.batch, num_timesteps, False
            ),
        }

    return jax.tree.map(np.array, jax.jit(jax.vmap(one))(jnp.arange(task.steps)))


def cases_of(task: Problem, widths: list[int]) -> list[harness.Case]:
    """Compiles every width, compares its first token with PyTorch's, returns all."""
    facts = {"steps": task.steps, "batch": task.batch}
    call = torch_loop(task)
    reference = None if call is None else call()
    cases = []
    for width in widths:
        data = token_data(task.towers, task.params, width)
        keys = inversion.token_keys(jax.random.key(0), width)
        case = harness.compiled(
            f"ours, {width} token{'s' * (width > 1)}",
            ours(task),
            data.start,
            data,
            task.params,
            keys,
            work=width * task.steps,
            unit="token steps",
            facts=facts | {"width": width},
        )
        if reference is not None:
            gap = difference(case.call()[0], reference, data.start[0])
            print(f"{case.name}: vectors differ by {gap:.1e} of their way", flush=True)
            case = case._replace(facts={**case.facts, "difference": gap})
        cases.append(case)
    if call is None:
        return cases
    return [
        *cases,
        harness.Case(
            TORCH,
            call,
            work=task.steps,
            unit="token steps",
            facts=facts | {"width": 1},
            wait=lambda result: result,
        ),
    ]


def difference(vectors: Any, reference: Any, start: Any) -> float:
    """Largest difference of two results, over the longest way from the start."""
    vectors, reference, start = map(np.asarray, (vectors, reference, start))
    return float(np.abs(vectors - reference).max() / np.abs(reference - start).max())


def torch_loop(task: Problem) -> Callable[[], Any] | None:
    """Returns the same loop in PyTorch, or None where it is not installed."""
    try:
        import diffusers
        import torch
        import transformers
    except ImportError:
        return None
    source, towers = Path(backbones.resolve(task.directory)), task.towers
    network = diffusers.UNet2DConditionModel.from_pretrained(source / "unet").float()
    text = transformers.CLIPModel.from_pretrained(source / "clip").float().text_model
    for module in (network, text):
        module.requires_grad_(False)
    ids, slots = (
        torch.as_tensor(np.array(x)).long().reshape(-1, towers.text_length)
        for x in (task.layouts.captions.input_ids, task.layouts.captions.slots)
    )
    alphas = torch.as_tensor(np.array(towers.alphas_cumprod), dtype=torch.float32)
    length = towers.text_length
    causal = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
    data = token_data(towers, task.params, 1)
    latents = torch.from_numpy(np.array(data.mean)[0, 0]).permute(0, 3, 1, 2)
    drawn = draws(task, inversion.token_keys(jax.random.key(0), 1)[0])
    drawn = {name: torch.from_numpy(value) for name, value in drawn.items()}

    def context(vectors, caption):
        words = text.embeddings.token_embedding(ids[caption])
        placed = vectors[slots[caption].clamp(min=0)]
        hidden = torch.where((slots[caption] >= 0)[..., None], placed, words)
        hidden = hidden + text.embeddings.position_embedding.weight[:length]
        mask = causal.expand(len(caption), 1, -1, -1)
        encoded = text.encoder(inputs_embeds=hidden, causal_attention_mask=mask)
        return text.final_layer_norm(encoded.last_hidden_state)

    def call():
        vectors = torch.from_numpy(np.array(data.start[0])).requires_grad_()
        optimiser = torch.optim.Adam([vectors], lr=LEARNING_RATE)
        for step in range(task.steps):
            rows, caption, timesteps = (
                drawn[name][step].long() for name in ("crop", "caption", "timesteps")
            )
            noise = drawn["noise"][step].permute(0, 3, 1, 2)
            alpha = alphas[timesteps][:, None, None, None]
            signal, spread, clean = alpha.sqrt(), (1 - alpha).sqrt(), latents[rows]
            noised = signal * clean + spread * noise
            target = signal * noise - spread * clean if towers.is_velocity else noise
            predicted = network(noised, timesteps, context(vectors, caption)).sample
            loss = ((target - predicted) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return vectors.detach().numpy()

    return call


def times_as_fast(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds how many times PyTorch's token steps in a second each row does."""
    rates = {row["case"]: row["rate"] for row in rows}
    base = rates.get(TORCH)
    return [
        row if base is None else row | {"times_torch": row["rate"] / base}
        for row in rows
    ]


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = harness.parser(NAME)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 2, 4, 8])
    arguments = parser.parse_args(argv)
    task = problem("embedded", arguments.steps, arguments.batch)
    cases = cases_of(task, arguments.widths)
    rows = harness.run(cases, arguments.warmup, arguments.repeats)
    return harness.report(NAME, times_as_fast(rows), arguments.record)


if __name__ == "__main__":
    main()

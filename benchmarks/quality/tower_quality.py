"""What the embedded towers can do, measured on images they were never trained on.

Everything here takes a directory in the embedded layout and returns plain numbers; the
command is `benchmarks.quality.towers`, and `tests/test_embedded.py` calls it on fewer
images.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom import trees
from jaxanom.data import catalog
from jaxanom.data.foundry import captions, names
from jaxanom.diffusion import ddim, guidance, schedules
from jaxanom.methods.pretraining import captions as tables
from jaxanom.metrics import ranking
from jaxanom.models import backbones
from jaxanom.models.clip import towers

SEEN = names.TRAIN_CATEGORIES
HELD_OUT = names.HELD_OUT_CATEGORIES
GROUPS = {"seen": SEEN, "held_out": HELD_OUT}
IMAGE_SIZE = 64
# A patch counts as defective where the mask covers this share of it, as in training;
# patches touched by less are neither.
DEFECTIVE_SHARE = 0.25


def fresh_images(
    categories: Sequence[str], seed: int, num_good: int, num_per_defect: int
) -> dict[str, np.ndarray]:
    """Renders test images of a seed, all in memory.

    Returns:
      `image` [N, 64, 64, 3] float32 in [0, 1]; `mask` [N, 64, 64] bool; `category`
      [N] names; `label` [N] bool, True = defective.
    """
    dataset = catalog.open_dataset(
        "foundry", None, categories, IMAGE_SIZE, seed, 0, num_good, num_per_defect
    )
    pairs = [dataset.load(record) for record in dataset.records]
    return {
        "image": np.stack([image for image, _ in pairs]).astype(np.float32) / 255,
        "mask": np.stack([mask for _, mask in pairs]) > 0,
        "category": np.array([record.category for record in dataset.records]),
        "label": np.array([r.defect_type != catalog.GOOD for r in dataset.records]),
    }


def in_batches(
    apply: Callable[[np.ndarray], Any], rows: np.ndarray, size: int = 32
) -> Any:
    """Applies a jitted function to rows in batches of one shape; a tree of [N, ...]."""
    parts = [
        jax.tree.map(lambda leaf, n=kept: np.asarray(leaf)[:n], apply(rows[numbers]))
        for numbers, kept in trees.fixed_batches(len(rows), size)
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def psnr(squared_errors: np.ndarray) -> dict[str, float]:
    """Returns dB of the mean error, and the mean of every image's dB.

    Args:
      squared_errors: [N], mean squared error of each image, for values in [0, 1].
    """
    return {
        "psnr_of_mean": float(-10 * np.log10(np.mean(squared_errors))),
        "mean_psnr": float(np.mean(-10 * np.log10(squared_errors))),
    }


def measure_autoencoder(
    directory: str | Path, images: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Peak signal-to-noise ratio of image -> mean latents -> image."""
    tower = backbones.load_autoencoder(directory)

    @jax.jit
    def squared_error(params, image):
        variables = {"params": params}
        moments = tower.module.apply(variables, image, method="encode")
        decoded = tower.module.apply(variables, moments.mean, method="decode")
        return jnp.mean((decoded - image) ** 2, (1, 2, 3))

    errors = in_batches(lambda x: squared_error(tower.params, x), images["image"])
    return _by_group(
        images, lambda rows: {**psnr(errors[rows]), "num_images": int(rows.sum())}
    )


class Judge:
    """The embedded CLIP as a judge: names categories and tells damaged from flawless.

    Attributes:
      categories: all category names it compares.
    """

    def __init__(self, directory: str | Path, categories: Sequence[str] = SEEN):
        """Loads `clip/` and `tokenizer/` and embeds the prompts of `categories`."""
        tower = backbones.load_clip(directory)
        self.categories = tuple(categories)
        self._params = tower.params
        length = tower.module.config.text_config.max_position_embeddings
        tokenizer = backbones.load_tokenizer(directory)
        groups = ((tables.NEUTRAL,), *tables.STATES)
        texts = [
            text.format(category=captions.words(category))
            for category in self.categories
            for group in groups
            for text in group
        ]

        @jax.jit
        def text_features(params, ids):
            outputs = tower.module.apply({"params": params}, ids, method="encode_text")
            return towers.normalise(outputs.text_features)

        @jax.jit
        def image_features(params, image):
            seen = tower.module.apply({"params": params}, image, method="encode_image")
            tokens = tower.module.apply(
                {"params": params},
                seen.patch_tokens,
                method=lambda module, t: module.image.project_tokens(t),
            )
            return towers.normalise(seen.image_features), towers.normalise(tokens)

        self._image_features = image_features
        ids = tokenizer.encode(texts, length)
        features = in_batches(lambda x: text_features(self._params, x), ids)
        features = features.reshape(len(self.categories), -1, features.shape[-1])
        ends = np.cumsum([len(group) for group in groups])
        neutral, good, damaged = np.split(features, ends[:-1], axis=1)
        self._neutral = neutral[:, 0]  # [K, D]
        self._all = _direction(features)  # [K, D]
        self._state = np.stack([_direction(good), _direction(damaged)], 1)  # [K, 2, D]

    def look(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns unit vectors of images and of their patches: [N, D], [N, P, D]."""
        return in_batches(lambda x: self._image_features(self._params, x), image)

    def name(
        self, features: np.ndarray, among: Sequence[str], plain: bool = False
    ) -> np.ndarray:
        """Returns the best-matching category name of every row [N].

        Args:
          features: [N, D].
          among: names to choose from.
          plain: compare with "a photo of a {category}" alone, a sentence CLIP never
            read in training; else with the mean of that and the state sentences.
        """
        rows = [self.categories.index(name) for name in among]
        prompts = (self._neutral if plain else self._all)[rows]
        return np.array(among)[np.argmax(features @ prompts.T, axis=1)]

    def damage(self, features: np.ndarray, category: np.ndarray) -> np.ndarray:
        """Returns how much nearer to "damaged" than to "flawless", [N] or [N, P].

        Args:
          features: [N, D] or [N, P, D].
          category: [N] names, whose own sentences are compared.
        """
        rows = [self.categories.index(name) for name in category]
        state = self._state[rows]  # [N, 2, D]
        cosine = np.einsum("n...d,nkd->n...k", features, state)
        return cosine[..., 1] - cosine[..., 0]


def measure_clip(
    directory: str | Path, images: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Naming accuracy, image and patch AUROC of damage, per category and group.

    Images of seen categories are named among the seen ones; those of held-out
    categories among all.
    """
    judge = Judge(directory, (*SEEN, *HELD_OUT))
    pooled, tokens = judge.look(images["image"])
    category, label = images["category"], images["label"]
    seen = np.isin(category, SEEN)
    guess, plain = (
        np.where(
            seen,
            judge.name(pooled, SEEN, only_plain),
            judge.name(pooled, judge.categories, only_plain),
        )
        for only_plain in (False, True)
    )
    damage, patch_damage = (
        judge.damage(pooled, category),
        judge.damage(tokens, category),
    )
    share = patch_shares(images["mask"], patch_damage.shape[1])
    decided = (share == 0) | (share >= DEFECTIVE_SHARE)

    def numbers(rows: np.ndarray) -> dict[str, float]:
        right = guess == category
        values = {
            "named": _mean(right[rows]),
            "named_plain": _mean((plain == category)[rows]),
            "named_good": _mean(right[rows & ~label]),
            "named_defective": _mean(right[rows & label]),
        }
        if len(set(category[rows])) == 1:
            values["image_auroc"] = auroc(damage[rows], label[rows])
            patches = decided & rows[:, None]
            values["patch_auroc"] = auroc(patch_damage[patches], share[patches] > 0)
        return values

    return _by_group(images, numbers)


def patch_shares(mask: np.ndarray, num_patches: int) -> np.ndarray:
    """Returns the share of every patch that the mask covers, [N, P]."""
    side = round(num_patches**0.5)
    if side * side != num_patches or mask.shape[1] % side or mask.shape[2] % side:
        raise ValueError(f"{num_patches} patches do not tile masks {mask.shape[1:]}")
    rows, height, width = mask.shape
    cells = mask.reshape(rows, side, height // side, side, width // side)
    return cells.mean((2, 4)).reshape(rows, -1)


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve; NaN where one class is missing."""
    counts = ranking.count_scores(ranking.Scores(values.ravel(), positive.ravel()))
    return ranking.auroc(counts)


def sampler(
    directory: str | Path, num_steps: int = 50, guidance_scale: float = 3.0
) -> Callable[[Sequence[str], Sequence[int]], np.ndarray]:
    """Makes a text-to-image function: (prompts, seeds) -> [N, H, W, 3] in [0, 1].

    Plain DDIM from noise with classifier-free guidance towards the empty prompt. Image
    k depends on prompt k and seed k alone.
    """
    network = backbones.load_unet(directory)
    autoencoder = backbones.load_autoencoder(directory)
    text = backbones.load_text_encoder(directory)
    alphas = backbones.load_alphas(directory)
    noise_apply = backbones.noise_apply(network.module, directory)
    levels = schedules.levels(len(alphas), num_steps)
    table = schedules.sampling_table(alphas, levels)
    grid = backbones.latent_grid(autoencoder, (IMAGE_SIZE, IMAGE_SIZE))
    shape = (*grid, network.module.config.in_channels)

    @jax.jit
    def draw(params, vae_params, context, null_context, seeds):
        keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(0), s))(seeds)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

        def noise_fn(latents, timesteps, context):
            return noise_apply(params, latents, timesteps, context)

        guided = guidance.classifier_free(
            noise_fn, context, null_context, guidance_scale
        )
        latents = ddim.walk(guided, noise, table)
        return autoencoder.module.apply(
            {"params": vae_params}, latents, method="decode"
        )

    def sample(prompts, seeds, batch_size=16):
        context = text.encode(list(prompts))
        null = np.repeat(text.encode([""]), batch_size, 0)
        order = np.arange(len(prompts))

        def apply(rows):
            return draw(
                network.params,
                autoencoder.params,
                context[rows],
                null,
                np.asarray(seeds, np.int32)[rows],
            )

        return in_batches(apply, order, batch_size)

    return sample


def sample_prompts(
    categories: Sequence[str], num_each: int
) -> list[tuple[str, bool, str]]:
    """Lists (category, defective, prompt), `num_each` a category, half of them good."""
    rows = []
    for category in categories:
        kinds = names.defect_types(category)
        for number in range(num_each):
            defective = 2 * number >= num_each
            kind = kinds[number % len(kinds)] if defective else catalog.GOOD
            rows.append((category, defective, captions.describe(category, kind, 0)))
    return rows


def measure_unet(
    directory: str | Path,
    num_each: int = 8,
    num_steps: int = 50,
    guidance_scale: float = 3.0,
    categories: Sequence[str] = SEEN,
) -> tuple[dict[str, Any], np.ndarray]:
    """Draws samples from text and lets CLIP judge them.

    Returns:
      (numbers, samples [categories * num_each, H, W, 3]). `named` is the share of
      samples that CLIP gives the category they were asked for; `damage_auroc` how well
      CLIP's damage separates prompts with a defect from flawless ones, a mean over
      categories.
    """
    rows = sample_prompts(categories, num_each)
    draw = sampler(directory, num_steps, guidance_scale)
    samples = draw([prompt for _, _, prompt in rows], range(len(rows)))
    category = np.array([name for name, _, _ in rows])
    defective = np.array([flag for _, flag, _ in rows])
    judge = Judge(directory, categories)
    pooled, _ = judge.look(samples)
    right = judge.name(pooled, judge.categories) == category
    damage = judge.damage(pooled, category)
    each = {
        name: {
            "named": _mean(right[category == name]),
            "damage_auroc": auroc(
                damage[category == name], defective[category == name]
            ),
        }
        for name in categories
    }
    numbers = {
        "named": _mean(right),
        "named_good": _mean(right[~defective]),
        "named_defective": _mean(right[defective]),
        "damage_auroc": _mean([row["damage_auroc"] for row in each.values()]),
        "num_samples": len(rows),
        "num_steps": num_steps,
        "guidance_scale": guidance_scale,
        "per_category": each,
    }
    return numbers, samples


def _direction(features: np.ndarray) -> np.ndarray:
    """Unit vector of the mean over prompts: [K, P, D] -> [K, D]."""
    mean = features.mean(1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def _mean(values: Any) -> float:
    """Mean of what is not NaN; NaN where nothing is left."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _by_group(
    images: Mapping[str, np.ndarray], numbers: Callable[[np.ndarray], dict[str, Any]]
) -> dict[str, Any]:
    """Numbers of every category and group; a group adds the mean of what it lacks."""
    category = images["category"]
    each = {name: numbers(category == name) for name in dict.fromkeys(category)}
    groups: dict[str, Any] = {}
    for group, members in GROUPS.items():
        rows = np.isin(category, members)
        if not rows.any():
            continue
        groups[group] = numbers(rows)
        here = [each[name] for name in members if name in each]
        for key in here[0]:
            if key not in groups[group]:
                groups[group][key] = _mean([row[key] for row in here])
    return {**groups, "per_category": {str(name): row for name, row in each.items()}}

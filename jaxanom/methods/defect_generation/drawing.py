"""A plan of defects -> rows of a generated set, batch by batch."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxanom import trees
from jaxanom.contracts import Drawing, Drawn
from jaxanom.data import catalog, generated
from jaxanom.diffusion import refinement
from jaxanom.errors import UserError
from jaxanom.methods.defect_generation.options import Generation
from jaxanom.methods.defect_generation.plan import Request, Rule, plan
from jaxanom.parallel import mesh as meshes
from jaxanom.parallel import placement
from jaxanom.types import Frozen, Params


def sets(generation: Generation, prompt: str) -> Drawing:
    """Returns how whole sets are drawn.

    Args:
      generation: How many rows a call has, how defects are drawn, and the seed.
      prompt: Template with {defect}, for the manifest.
    """
    return Drawing(
        check=functools.partial(check, generation),
        pairs=functools.partial(pairs, generation, prompt),
    )


def pairs(
    generation: Generation,
    prompt: str,
    generate: Callable[..., dict[str, Any]],
    params: Params,
    frozen: Frozen,
    dataset: catalog.Dataset,
    num_images: int,
    mesh: Mesh,
) -> Iterator[Drawn]:
    """Yields generated pairs with pictures of how they came about.

    Args:
      generation, prompt: See `sets`.
      generate: `Method.generate`, jitted or not; its last batch is filled up.
      params, frozen: The run's parameters and frozen weights.
      dataset: The training part; normal images and masks are drawn from it.
      num_images: How many pairs to draw.
      mesh: The mesh over which rows are spread.

    Yields:
      (row, {"normal" and "reference" [H, W, 3] in [0, 1], "inverted" [h, w, C],
      "change" [H, W]}).
    """
    from tqdm import tqdm

    per_image = generation.per_image
    rule = Rule(generation.placement, generation.orientation_fixed, generation.masks)
    requests = plan(dataset, num_images, generation.seed, per_image, rule)
    source = catalog.source(dataset)
    key = jax.random.key(generation.seed)
    with tqdm(total=num_images, desc="generate", unit="image", disable=None) as bar:
        for numbers, count in trees.fixed_batches(num_images, generation.batch_size):
            filled = [requests[number] for number in numbers]
            batch = _batch(dataset, source, filled, per_image)
            placed = placement.place_batch(placement.own_rows(batch, mesh), mesh)
            drawn = placement.to_host(generate(params, frozen, placed, key))
            requested = np.stack([request.mask for request in filled])
            masks = final_masks(
                drawn["mask"], requested, generation.least_kept, generation.refine
            )
            for number, request in enumerate(filled[:count]):
                names = ("reference", "inverted", "change")
                pictures = {name: drawn[name][number] for name in names}
                pictures["normal"] = batch["image"][number // per_image]
                image, mask = drawn["image"][number], masks[number]
                if generation.paste:
                    image = np.where(mask[..., None], image, pictures["normal"])
                yield _row(dataset, request, prompt, image, mask), pictures
            bar.update(count)


def _batch(
    dataset: catalog.Dataset,
    source: catalog.Source,
    requests: Sequence[Request],
    per_image: int,
) -> dict[str, np.ndarray]:
    once = requests[::per_image]
    shape = (len(requests),) if per_image == 1 else (len(once), per_image)
    image = np.stack([source[request.normal]["image"] for request in once])
    kinds = [dataset.defect_types.index(r.defect_type) for r in requests]
    places = [dataset.categories.index(r.category) for r in once]
    numbers = [request.number for request in requests]
    return {
        "image": image.astype(np.float32) / np.float32(255),
        "mask": np.stack([request.mask for request in once]).astype(np.float32),
        "defect_id": np.array(kinds, np.int32).reshape(shape),
        "category_id": np.array(places, np.int32),
        "seed": np.array(numbers, np.int32).reshape(shape),
    }


def _row(
    dataset: catalog.Dataset,
    request: Request,
    prompt: str,
    image: np.ndarray,
    mask: np.ndarray,
) -> generated.GeneratedRow:
    return generated.GeneratedRow(
        category=request.category,
        defect_type=request.defect_type,
        image=np.round(255 * np.clip(image, 0, 1)).astype(np.uint8),
        mask=mask.astype(np.uint8),
        requested_mask=request.mask.astype(np.uint8),
        source_name=dataset.records[request.normal].name,
        prompt=prompt.format(defect=request.defect_type.replace("_", " ")),
        seed=request.number,
    )


def final_masks(
    masks: np.ndarray,
    requested: np.ndarray | None = None,
    least_kept: float = 0.0,
    refine: bool = True,
) -> np.ndarray:
    """Drops specks from refined masks, and defects that were hardly drawn; on the host.

    Args:
      masks: [B, H, W] of 0 and 1.
      requested: [B, H, W]; needed with `least_kept`.
      least_kept: Least share of the requested mask that counts as drawn.
      refine: Masks that were not refined keep their small parts.

    Returns:
      [B, H, W] bool.
    """
    kept = np.asarray(masks) > 0.5
    if refine:
        kept = refinement.drop_small(kept)
    if requested is None or not least_kept:
        return kept
    share = kept.sum((1, 2)) / np.maximum((requested > 0.5).sum((1, 2)), 1)
    return kept & (share >= least_kept)[:, None, None]


def check(generation: Generation, num_images: int, mesh: Mesh) -> None:
    """Raises UserError where `num_images` cannot be drawn in equal batches."""
    per_image, shards = generation.per_image, meshes.num_batch_shards(mesh)
    for key, value in (("num_images", num_images), ("per_image", per_image)):
        if value < 1:
            raise UserError(f"config.generate.{key}={value}; wanted at least 1")
    if generation.batch_size < 1 or generation.batch_size % (shards * per_image):
        images = (
            f" times config.generate.per_image={per_image}" if per_image > 1 else ""
        )
        raise UserError(
            f"config.generate.batch_size={generation.batch_size} is not a positive "
            f"multiple of mesh axes data*fsdp={shards}{images}"
        )

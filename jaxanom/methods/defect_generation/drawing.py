"""A plan of defects -> rows of a generated set, batch by batch."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxanom.contracts import Drawing
from jaxanom.data import catalog, generated
from jaxanom.errors import UserError
from jaxanom.methods.defect_generation import predict
from jaxanom.parallel import mesh as meshes
from jaxanom.parallel import placement
from jaxanom.types import Frozen, Params

Pictures = dict[str, np.ndarray]


def rows(
    generate: Callable[..., dict[str, Any]],
    params: Params,
    frozen: Frozen,
    dataset: catalog.Dataset,
    num_images: int,
    *,
    prompt: str,
    seed: int,
    batch_size: int,
    mesh: Mesh,
    per_image: int = 1,
    least_kept: float = 0.0,
    refine: bool = True,
    paste: bool = False,
) -> Iterator[tuple[generated.GeneratedRow, Pictures]]:
    """Yields generated pairs with what a report shows of how they came about.

    Args:
      generate: `Method.generate`, jitted or not.
      params, frozen: of the run.
      dataset: the training part; normal images and masks are drawn from it.
      num_images: rows to yield, see `predict.plan`.
      prompt: template with {defect}, for the manifest.
      seed: of the plan and of the noise.
      batch_size: rows of every call; the last batch is filled up.
      mesh: rows are spread over it.
      per_image: see `predict.plan`; a batch holds `batch_size` / `per_image` images.
      least_kept, refine: see `predict.final_masks`.
      paste: see `predict.Options`; here for what `final_masks` drops.

    Yields:
      (row, {"normal" and "reference" [H, W, 3] in [0, 1], "inverted" [h, w, C],
      "change" [H, W]}).
    """
    from tqdm import tqdm

    requests = predict.plan(dataset, num_images, seed, per_image)
    source = catalog.source(dataset)
    key = jax.random.key(seed)
    with tqdm(total=num_images, desc="generate", unit="image", disable=None) as bar:
        for start in range(0, num_images, batch_size):
            chosen = requests[start : start + batch_size]
            padded = chosen + chosen[-1:] * (batch_size - len(chosen))
            batch = _batch(dataset, source, padded, per_image)
            placed = placement.place_batch(placement.own_rows(batch, mesh), mesh)
            found = placement.to_host(generate(params, frozen, placed, key))
            asked = np.stack([request.mask for request in padded])
            masks = predict.final_masks(found["mask"], asked, least_kept, refine)
            for number, request in enumerate(chosen):
                pictures = {
                    name: found[name][number]
                    for name in ("reference", "inverted", "change")
                }
                pictures["normal"] = batch["image"][number // per_image]
                image, mask = found["image"][number], masks[number]
                if paste:
                    image = np.where(mask[..., None], image, pictures["normal"])
                yield _row(dataset, request, prompt, image, mask), pictures
            bar.update(len(chosen))


def _batch(
    dataset: catalog.Dataset,
    source: catalog.Source,
    requests: Sequence[predict.Request],
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
    request: predict.Request,
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


def of_config(config: Any) -> Drawing:
    """Returns how whole sets are drawn with section `generate` of a config."""
    settings = config.generate

    def pairs(generate, params, frozen, dataset, num_images, mesh):
        return rows(
            generate,
            params,
            frozen,
            dataset,
            num_images,
            prompt=config.defect_generation.defect_prompt,
            seed=settings.seed,
            batch_size=settings.batch_size,
            mesh=mesh,
            per_image=settings.per_image,
            least_kept=settings.least_kept,
            refine=settings.refine,
            paste=settings.paste,
        )

    return Drawing(functools.partial(check, settings), pairs)


def check(settings: Any, num_images: int, mesh: Mesh) -> None:
    """Raises UserError where a set cannot be drawn in equal batches.

    Args:
      settings: section `generate` of a config.
      num_images: rows asked for.
      mesh: rows are spread over it.
    """
    if num_images < 1:
        raise UserError(f"config.generate.num_images={num_images}; wanted at least 1")
    shards = meshes.num_batch_shards(mesh)
    per_image = settings.per_image
    if per_image < 1:
        raise UserError(f"config.generate.per_image={per_image}; wanted at least 1")
    if settings.batch_size < 1 or settings.batch_size % (shards * per_image):
        images = (
            f" times config.generate.per_image={per_image}" if per_image > 1 else ""
        )
        raise UserError(
            f"config.generate.batch_size={settings.batch_size} is not a positive "
            f"multiple of mesh axes data*fsdp={shards}{images}"
        )

"""Draws new defects with a trained generator and writes them as a set."""

from collections.abc import Iterator
from pathlib import Path

import jax

from jaxanom.contracts import Drawn
from jaxanom.data import generated, pools
from jaxanom.errors import UserError
from jaxanom.jobs.load import Trained
from jaxanom.parallel import distributed


def generate(
    run: Trained,
    directory: str | Path,
    num_images: int | None = None,
    overwrite: bool = False,
) -> generated.Written:
    """Draws new defects on normal training images and writes them as a set.

    Defect types take turns. Image k is a function of (the run, `config.generate.seed`,
    k) alone: more images leave the first ones as they are.

    Args:
      run: A run of a method that generates.
      directory: The set, see `data.generated`.
      num_images: Number of pairs; None takes `config.generate.num_images`.
      overwrite: Whether an earlier set is replaced.

    Raises:
      UserError: The method does not generate, or the directory is in use.
    """
    prepared = run.prepared
    if prepared.method.drawing is None:
        raise UserError(
            f"method {prepared.config.method!r} of {run.directory} does not "
            "generate; train one that does, such as 'defect_generation'"
        )
    if num_images is None:
        num_images = prepared.config.generate.num_images
    prepared.method.drawing.check(num_images, prepared.mesh)
    normals = pools.normal_images(prepared.dataset, prepared.division)
    pairs = (pair for pair, _ in drawn(run, num_images))
    if distributed.is_writer():
        written = generated.write(directory, pairs, normals, overwrite)
    else:
        written = generated.leave_to_another(directory, pairs, overwrite)
    distributed.wait_for_all(f"{directory} is written")
    return written


def drawn(run: Trained, num_images: int) -> Iterator[Drawn]:
    """Yields generated pairs with pictures of how they came about.

    Args:
      run: A run of a method that generates.
      num_images: Number of pairs.
    """
    prepared = run.prepared
    return prepared.method.drawing.pairs(
        jax.jit(prepared.method.generate),
        run.params,
        run.frozen,
        pools.training_part(prepared.dataset, prepared.division),
        num_images,
        prepared.mesh,
    )

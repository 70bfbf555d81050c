"""One number for parameters in training: a metric on some labelled images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jaxanom.contracts import PredictFn
from jaxanom.data import catalog, pipeline
from jaxanom.errors import UserError
from jaxanom.evaluation import protocols, runner
from jaxanom.parallel import placement
from jaxanom.types import Frozen, Params


def labelled(
    dataset: catalog.Dataset, numbers: Sequence[int], categories: Sequence[str]
) -> tuple[int, ...]:
    """Picks the records of some categories from `numbers`, such as a run's test images.

    Raises:
      UserError: A category has no images among `numbers`.
    """
    present = {dataset.records[number].category for number in numbers}
    missing = sorted(set(categories) - present)
    if missing:
        raise UserError(
            f"config.selection.categories={missing} are not among the tested ones, "
            f"{sorted(present)}"
        )
    return tuple(n for n in numbers if dataset.records[n].category in categories)


def make_measure(
    predict: Mapping[str, PredictFn],
    dataset: catalog.Dataset,
    numbers: Sequence[int],
    metrics: Mapping[str, str],
    batch_size: int,
    mesh: Mesh,
    seed: int,
) -> Callable[[Params, Frozen, str], float]:
    """Returns measure: (params, frozen, phase name) -> mean over categories.

    Args:
      predict: {phase name: how that phase predicts}.
      dataset, numbers: The labelled images.
      metrics: {phase name: a metric of images or pixels}.
      batch_size: Rows of every batch.
      mesh: The mesh over which batches are spread.
      seed: Decides the draws of prediction, the same at every call.
    """
    source = catalog.source(dataset, numbers)
    compiled = {phase: jax.jit(function) for phase, function in predict.items()}
    key = jax.random.key(seed)
    known = protocols.few_shot_supervised().metrics

    def measure(params: Params, frozen: Frozen, phase: str) -> float:
        if phase not in metrics:
            raise UserError(
                f"config.selection.metrics names no metric of phase {phase!r}"
            )
        batches: Any = (
            placement.place_batch(batch, mesh)
            for batch in pipeline.finite_batches(source, batch_size)
        )
        apply, level = compiled[phase], metrics[phase].split("_")[0]
        results = runner.evaluate(
            lambda batch: apply(params, frozen, batch, key),
            batches,
            {level: known[level]},
        )
        return results["mean"][metrics[phase]]

    return measure

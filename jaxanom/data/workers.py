"""Grain's worker processes over a stream of examples; order is theirs to keep.

The stream is a `grain.MapDataset`: example i is a pure function of i, whoever computes
it. So batches are the same for any number of workers, and a run may go on at any step
with other workers or processes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxanom.data import catalog, pipeline
from jaxanom.errors import UserError

_ENDLESS = 2**40  # examples; Grain wants to know a length


def check() -> None:
    """Raises UserError where Grain is not installed."""
    try:
        import grain  # noqa: F401
    except ImportError as error:
        raise UserError(
            "config.data.num_workers > 0 needs Grain: pip install 'jaxanom[data]', or "
            "set it to 0"
        ) from error


def batches(
    example_at: Callable[[int], Any],
    batch_size: int,
    start_step: int,
    num_workers: int,
    rows: Sequence[int] | None = None,
) -> Iterator[pipeline.HostBatch]:
    """Yields `pipeline.batches` by Grain's worker processes, which `close` ends.

    Args:
      example_at: See `pipeline.examples_by_place`; sent to the workers once.
      batch_size: Rows of the global batch.
      start_step: Step of the first batch.
      num_workers: Processes; 0 reads in threads of this one.
      rows: The rows of every batch that are made; None: all.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads a flag of its own when it starts
    own_rows = tuple(range(batch_size) if rows is None else rows)

    def numbered(number: int) -> Any:
        step, row = divmod(number, len(own_rows))
        return example_at(step * batch_size + own_rows[row])

    dataset = grain.MapDataset.source(catalog.Rows(_ENDLESS, numbered))
    dataset = dataset.batch(len(own_rows), batch_fn=pipeline.filled)[start_step:]
    threads = grain.ReadOptions(num_threads=1 if num_workers else 2)
    stream = dataset.to_iter_dataset(threads)
    if num_workers:
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        stream = stream.mp_prefetch(options)
    yield from stream

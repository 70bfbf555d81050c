"""Grain's worker processes over a stream of examples; order is theirs to keep.

The stream is a `grain.MapDataset`: example i is a pure function of i, whoever computes
it. So batches are the same for any number of workers, and the iterator's state is one
number, the next batch, which a run may go on from with other workers or processes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxanom.data import pipeline
from jaxanom.errors import UserError

NEXT = "next_index"
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


class _Places:
    """Examples of the rows that a process holds, numbered without gaps."""

    def __init__(
        self,
        example_at: Callable[[int], Any],
        batch_size: int,
        rows: tuple[int, ...],
    ):
        self._example_at = example_at
        self._batch_size = batch_size
        self._rows = rows

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, number: int) -> Any:
        step, row = divmod(int(number), len(self._rows))
        return self._example_at(step * self._batch_size + self._rows[row])


class Batches:
    """An endless iterator of host batches whose state is the next batch's number."""

    def __init__(self, make: Callable[[int], Iterator[Any]], start_step: int):
        """Starts at a batch.

        Args:
          make: first batch -> iterator.
          start_step: the first batch.
        """
        self._make = make
        self.set_state({NEXT: start_step})

    def __iter__(self) -> "Batches":
        """Returns itself."""
        return self

    def __next__(self) -> pipeline.HostBatch:
        """Returns the next batch."""
        if self._iterator is None:
            self._iterator = self._make(self._next)
        batch = next(self._iterator)
        self._next += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns the state, as Grain's iterators do; JSON."""
        return {NEXT: self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to the batch of a state; of any number of workers."""
        self._next = int(state[NEXT])
        self._iterator = None

    def close(self) -> None:
        """Ends the workers."""
        self._iterator = None


def batches(
    example_at: Callable[[int], Any],
    batch_size: int,
    start_step: int,
    num_workers: int,
    rows: Sequence[int] | None = None,
) -> Batches:
    """`pipeline.batches` by Grain's worker processes.

    Args:
      example_at: see `pipeline.examples_by_place`; sent to the workers once.
      batch_size: rows of the global batch.
      start_step: Step of the first batch.
      num_workers: processes; 0 reads in threads of this one.
      rows: which rows of every batch are made; None: all.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads a flag of its own when it starts
    own_rows = tuple(range(batch_size) if rows is None else rows)
    places = _Places(example_at, batch_size, own_rows)

    def make(step: int) -> Iterator[Any]:
        dataset = grain.MapDataset.source(places)
        dataset = dataset.batch(len(own_rows), batch_fn=_stack)[step:]
        threads = grain.ReadOptions(num_threads=1 if num_workers else 2)
        stream = dataset.to_iter_dataset(threads)
        if num_workers:
            options = grain.MultiprocessingOptions(num_workers=num_workers)
            stream = stream.mp_prefetch(options)
        return iter(stream)

    return Batches(make, start_step)


def _stack(examples: Sequence[Any]) -> pipeline.HostBatch:
    return {**pipeline.collate(examples), "valid": np.ones(len(examples), bool)}

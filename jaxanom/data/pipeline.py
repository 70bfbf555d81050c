"""Sources of examples -> host batches: augment, batch, pad, encode, prefetch.

Batch `s` of a stream is a pure function of (source, seed, s): nothing is carried from
one batch to the next, so a run resumes at any step without replaying the earlier ones.
"""

import itertools
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxanom import trees
from jaxanom.data.catalog import Example, Rows, Source
from jaxanom.errors import UserError

HostBatch = dict[str, np.ndarray]
Transform = Callable[[Example, np.random.Generator], Example]

# Names of the independent random streams; a key word of the generator each.
_AUGMENT, _MIXTURE = 2, 3


def generator(seed: int, stream: int, *words: int) -> np.random.Generator:
    """Returns the random generator of a place in a stream.

    Philox counts: the key is (seed, stream), the counter starts at `words` above a low
    half of zeros, so that two places are 2**128 draws apart and never meet.
    """
    if seed < 0:
        raise UserError(f"seed={seed}; wanted a non-negative integer")
    high = [*words, *[0] * (2 - len(words))]
    return np.random.Generator(
        np.random.Philox(
            key=np.array([seed, stream], np.uint64),
            counter=np.array([0, 0, *high], np.uint64),
        )
    )


def collate(examples: Sequence[Example]) -> HostBatch:
    """Stacks examples of equal keys and shapes.

    `image` uint8 becomes float32 in [0, 1] and `mask` becomes float32; every other key
    is stacked as it is.

    Raises:
      UserError: keys or shapes differ between examples.
    """
    keys = examples[0].keys()
    for example in examples:
        if example.keys() != keys:
            differing = sorted(example.keys() ^ keys)
            raise UserError(f"examples of one batch differ in keys {differing}")
    return {key: _stack(key, [example[key] for example in examples]) for key in keys}


def _stack(key: str, values: list[Any]) -> np.ndarray:
    shapes = sorted({np.shape(value) for value in values})
    if len(shapes) > 1:
        raise UserError(f"examples of one batch have {key!r} of shapes {shapes}")
    stacked = np.stack(values)
    if key == "image" and stacked.dtype == np.uint8:
        return stacked.astype(np.float32) / np.float32(255)
    return stacked.astype(np.float32) if key == "mask" else stacked


def batches(
    source: Source,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    transform: Transform | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[HostBatch]:
    """Yields training batches without end; each epoch has the order of the source.

    Epochs follow one another and are cut into batches: no row is dropped or padded, and
    a batch may hold the end of one epoch and the start of the next.

    Args:
      source: At least one example; `mixture` draws them at random.
      batch_size: Rows of every batch.
      seed: Decides augmentation.
      start_step: Step of the first batch; a resumed run passes its step.
      transform: (example, generator) -> example; the generator depends on (seed, epoch,
        position in the epoch), so an example is augmented anew every epoch.
      rows: The rows of every batch that this process makes; None: all.

    Raises:
      UserError: An empty source or a batch size below 1; at once, not when iterated.
    """
    _check(source, batch_size)
    example_at = examples_by_place(source, seed, transform)
    own_rows = range(batch_size) if rows is None else tuple(rows)

    def stream() -> Iterator[HostBatch]:
        for step in itertools.count(start_step):
            yield filled([example_at(step * batch_size + row) for row in own_rows])

    return stream()


def filled(examples: Sequence[Example]) -> HostBatch:
    """Returns the batch of examples none of which is padding."""
    return {**collate(examples), "valid": np.ones(len(examples), bool)}


def examples_by_place(
    source: Source, seed: int, transform: Transform | None = None
) -> Callable[[int], Example]:
    """Returns place in the endless stream of `batches` -> example; a pure function."""
    length = len(source)

    def example_at(place: int) -> Example:
        epoch, position = divmod(place, length)
        example = source[position]
        if transform is None:
            return example
        return transform(example, generator(seed, _AUGMENT, epoch, position))

    return example_at


def finite_batches(
    source: Source, batch_size: int, rows: Sequence[int] | None = None
) -> Iterator[HostBatch]:
    """Yields every row once, in order; the last batch is padded to `batch_size`.

    Padding rows repeat the last example, so that they hold sane values, and have
    `valid` False. An empty source yields nothing.
    With `rows`, these rows of every batch; the number of batches stays.
    """
    _check_size(batch_size)
    own_rows = np.arange(batch_size) if rows is None else np.asarray(rows)
    for numbers, count in trees.fixed_batches(len(source), batch_size):
        own = numbers[own_rows].tolist()
        read = {number: source[number] for number in sorted(set(own))}
        examples = [read[number] for number in own]
        yield {**collate(examples), "valid": own_rows < count}


def _check_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}; wanted at least 1")


def _check(source: Source, batch_size: int) -> None:
    _check_size(batch_size)
    if not len(source):
        raise UserError("the source has no examples; nothing was selected")


def mixture(
    sources: Sequence[Source],
    weights: Sequence[float],
    seed: int = 0,
    length: int = 2**20,
) -> Source:
    """Returns a source that draws each row from one of several sources.

    Row i is a pure function of (seed, i): the source is drawn by weight, then one of
    its rows with equal probability.

    Args:
      sources: with examples of equal keys.
      weights: non-negative, one per source; only their ratios count. A source of
        weight 0 may be empty.
      seed: Decides the draws.
      length: rows before the draws repeat.

    Returns:
      A source of the drawn examples; `index` is the row here, and `source_id` int32
      tells which source the example came from.

    Raises:
      UserError: weights that are no probabilities, or an empty source with weight.
    """
    weights = np.asarray(weights, np.float64)
    if weights.shape != (len(sources),) or not np.all(weights >= 0):
        raise UserError(
            f"weights {weights.tolist()} for {len(sources)} sources; wanted one "
            "non-negative weight each"
        )
    if not 0 < weights.sum() < np.inf:
        raise UserError(f"weights {weights.tolist()} do not sum to a positive number")
    empty = [i for i, s in enumerate(sources) if weights[i] > 0 and not len(s)]
    if empty:
        raise UserError(f"sources {empty} are empty but have weight; set it to 0")
    edges = np.cumsum(weights)
    edges /= edges[-1]  # the last is 1 exactly, above every draw

    def example_at(row: int) -> Example:
        rng = generator(seed, _MIXTURE, row)
        number = int(np.searchsorted(edges, rng.random(), side="right"))
        drawn = sources[number]
        example = drawn[int(rng.integers(len(drawn)))]
        return {**example, "index": np.int32(row), "source_id": np.int32(number)}

    return Rows(length, example_at)


class Encoded:
    """Rows in host memory, as `encoded` makes them.

    Attributes:
      arrays: {field: [N, ...]}.
    """

    def __init__(self, arrays: dict[str, np.ndarray]):
        """Keeps the arrays as they are."""
        self.arrays = arrays

    def __len__(self) -> int:
        """Returns N."""
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, row: int) -> Example:
        """Returns a row, and its number as `index`."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        fields = {key: array[row] for key, array in self.arrays.items()}
        return {**fields, "index": np.int32(row)}


def encoded(
    source: Source,
    encode_batch_fn: Callable[[HostBatch], dict[str, Any]],
    batch_size: int,
    num_views: int = 1,
    view_fn: Callable[[Example, int], Example] | None = None,
) -> Encoded:
    """Runs an encoder once over every view of every example and keeps what it returns.

    Args:
      source: at least one example.
      encode_batch_fn: host batch [B, ...] (padded, with `valid`) -> fields [B, ...];
        called with one shape only.
      batch_size: B.
      num_views: views per example.
      view_fn: (example, view in 0..num_views-1) -> example, for example
        `transforms.views` with its settings bound; needed for more than one view.

    Returns:
      A source of len(source) * num_views rows, in host memory, with exactly the fields
      that the encoder returned except `valid`; row = example * num_views + view, also
      given as `index`.

    Raises:
      UserError: an empty source, several views without `view_fn`, or a field whose
        leading axis is not B.
    """
    _check(source, batch_size)
    if num_views < 1 or (num_views > 1 and view_fn is None):
        raise UserError(
            f"num_views={num_views} with view_fn={view_fn}; several views need a "
            "view_fn, fewer than one makes no sense"
        )

    def view_at(row: int) -> Example:
        number, view = divmod(row, num_views)
        return view_fn(source[number], view) if view_fn else source[number]

    viewed = Rows(len(source) * num_views, view_at)
    arrays: dict[str, np.ndarray] = {}
    start = 0
    for batch in finite_batches(viewed, batch_size):
        stop = min(start + batch_size, len(viewed))
        for key, value in encode_batch_fn(batch).items():
            value = np.asarray(value)
            if value.shape[:1] != (batch_size,):
                raise UserError(
                    f"encoded field {key!r} has shape {value.shape}; wanted a leading "
                    f"axis of batch_size={batch_size}"
                )
            if start == 0:
                arrays[key] = np.empty((len(viewed), *value.shape[1:]), value.dtype)
            arrays[key][start:stop] = value[: stop - start]
        start = stop
    arrays.pop("valid", None)
    return Encoded(arrays)


class Prefetch:
    """An iterator whose items are made ahead by a background thread.

    Ends, and raises, as the inner iterator does. `close` stops the thread, and so does
    dropping the last reference.
    """

    def __init__(self, iterator: Iterator[Any], depth: int = 2):
        """Starts the thread; at most `depth` items wait."""
        if depth < 1:
            raise UserError(f"depth={depth}; wanted at least 1")
        self._items: queue.Queue = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._done = False
        # The thread holds the queue but not this object, so that dropping it closes.
        arguments = (iterator, self._items, self._stop)
        self._thread = threading.Thread(target=_produce, args=arguments, daemon=True)
        self._thread.start()
        weakref.finalize(self, self._stop.set)

    def __iter__(self) -> "Prefetch":
        """Returns itself."""
        return self

    def __next__(self) -> Any:
        """Returns the next item, or raises what the inner iterator raised."""
        if self._done:
            raise StopIteration
        item, error = self._items.get()
        if error is not None:
            self._done = True
            self._thread.join()
            raise error
        return item

    def close(self) -> None:
        """Stops the thread and waits for it; later `next` calls end the iteration."""
        self._done = True
        self._stop.set()
        self._thread.join()
        self._items = queue.Queue()  # lets go of the items nobody will read


def _produce(iterator: Iterator, items: queue.Queue, stop: threading.Event) -> None:
    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                return items.put(item, timeout=0.1)
            except queue.Full:
                continue

    try:
        while not stop.is_set():
            put((next(iterator), None))
    except BaseException as error:  # StopIteration too: the reader raises it again
        put((None, error))
    finally:
        if stop.is_set() and hasattr(iterator, "close"):
            iterator.close()

"""Sources of examples -> host batches: shuffle, augment, batch, pad, encode, prefetch.

Batch `s` of a stream is a pure function of (source, seed, s): nothing is carried from
one batch to the next, so a run resumes at any step without replaying the earlier ones.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxanom.data.catalog import Example, Source
from jaxanom.errors import UserError

HostBatch = dict[str, np.ndarray]
Transform = Callable[[Example, np.random.Generator], Example]

# Names of the independent random streams; a key word of the generator each.
_ORDER, _AUGMENT, _MIXTURE = 1, 2, 3


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
    shuffle: bool = True,
    transform: Transform | None = None,
    num_steps: int | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[HostBatch]:
    """Yields training batches; every epoch is a new permutation of the source.

    Rows are the permutations one after another, cut into batches: no row is dropped or
    padded, and a batch may hold the end of one epoch and the start of the next.

    Args:
      source: at least one example.
      batch_size: rows of every batch.
      seed: Decides order and augmentation.
      start_step: step of the first batch; a resumed run passes its step.
      shuffle: False keeps the order of the source.
      transform: (example, generator) -> example; the generator depends on (seed, epoch,
        position in the epoch), so an example is augmented anew every epoch.
      num_steps: the last batch is that of step `num_steps - 1`, wherever the stream
        started; None is endless.
      rows: which rows of every batch are made, where a process holds no others.

    Raises:
      UserError: an empty source or a batch size below 1; at once, not when iterated.
    """
    _check(source, batch_size)
    example_at = examples_by_place(source, seed, shuffle, transform)
    own_rows = range(batch_size) if rows is None else tuple(rows)

    def stream() -> Iterator[HostBatch]:
        step = start_step
        while num_steps is None or step < num_steps:
            examples = [example_at(step * batch_size + row) for row in own_rows]
            yield {**collate(examples), "valid": np.ones(len(own_rows), bool)}
            step += 1

    return stream()


def examples_by_place(
    source: Source, seed: int, shuffle: bool = True, transform: Transform | None = None
) -> Callable[[int], Example]:
    """Returns place in the endless stream of `batches` -> example; a pure function."""
    length = len(source)
    order = _permutations(length, seed) if shuffle else lambda epoch: range(length)

    def example_at(place: int) -> Example:
        epoch, position = divmod(place, length)
        example = source[int(order(epoch)[position])]
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
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}; wanted at least 1")
    own_rows = np.arange(batch_size) if rows is None else np.asarray(rows)
    last = len(source) - 1
    for start in range(0, len(source), batch_size):
        numbers = np.minimum(start + own_rows, last).tolist()
        read = {number: source[number] for number in sorted(set(numbers))}
        examples = [read[number] for number in numbers]
        yield {**collate(examples), "valid": start + own_rows <= last}


def _check(source: Source, batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}; wanted at least 1")
    if not len(source):
        raise UserError("the source has no examples; nothing was selected")


def _permutations(length: int, seed: int) -> Callable[[int], np.ndarray]:
    """Returns epoch -> permutation; the latest one is kept."""
    latest: dict[int, np.ndarray] = {}

    def permutation(epoch: int) -> np.ndarray:
        if epoch not in latest:
            rows = generator(seed, _ORDER, epoch).permutation(length)
            latest.clear()
            latest[epoch] = rows
        return latest[epoch]

    return permutation


class _Mixture:
    def __init__(self, sources, weights, seed, length):
        self._sources = sources
        edges = np.cumsum(weights)
        self._edges = edges / edges[-1]  # the last is 1 exactly, above every draw
        self._seed = seed
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> Example:
        if not 0 <= row < self._length:
            raise IndexError(f"row {row} of {self._length}")
        rng = generator(self._seed, _MIXTURE, row)
        number = int(np.searchsorted(self._edges, rng.random(), side="right"))
        source = self._sources[number]
        example = source[int(rng.integers(len(source)))]
        return {**example, "index": np.int32(row), "source_id": np.int32(number)}


def mixture(
    sources: Sequence[Source],
    weights: Sequence[float],
    seed: int = 0,
    length: int = 2**20,
) -> Source:
    """Returns a source that draws each row from one of several sources.

    Row i is a pure function of (seed, i): the source is drawn by weight, then one of
    its rows with equal probability. Pass it to `batches` with `shuffle=False`: its
    order is random already.

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
    return _Mixture(tuple(sources), weights, seed, length)


class _Views:
    def __init__(self, source, num_views, view_fn):
        self._source = source
        self._num_views = num_views
        self._view_fn = view_fn

    def __len__(self) -> int:
        return len(self._source) * self._num_views

    def __getitem__(self, row: int) -> Example:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        number, view = divmod(row, self._num_views)
        example = self._source[number]
        return self._view_fn(example, view) if self._view_fn else example


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
    viewed = _Views(source, num_views, view_fn)
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

    Ends, and raises, as the inner iterator does. `close` stops the thread; leaving the
    `with` block or dropping the last reference closes as well.
    """

    def __init__(self, iterator: Iterator[Any], depth: int = 2):
        """Starts the thread; at most `depth` items wait."""
        if depth < 1:
            raise UserError(f"depth={depth}; wanted at least 1")
        self._items: queue.Queue = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._done = False
        # The thread holds the queue but not this object, so that dropping it closes.
        self._thread = threading.Thread(
            target=_produce, args=(iterator, self._items, self._stop), daemon=True
        )
        self._thread.start()

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

    def __enter__(self) -> "Prefetch":
        """Returns itself."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Closes."""
        self.close()

    def __del__(self):
        """Tells the thread to stop without waiting for it."""
        stop = getattr(self, "_stop", None)
        if stop is not None:
            stop.set()


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


def prefetch(iterator: Iterator[Any], depth: int = 2) -> Prefetch:
    """Makes up to `depth` items ahead in a background thread; see `Prefetch`."""
    return Prefetch(iter(iterator), depth)

import contextlib
import gc
import itertools
import threading
import time

import numpy as np
import pytest

from jaxanom.data import pipeline


class Rows:
    """Examples whose image says which row they are; counts the reads."""

    def __init__(self, length, offset=0):
        self.length, self.offset, self.reads = length, offset, []

    def __len__(self):
        return self.length

    def __getitem__(self, row):
        if not 0 <= row < self.length:
            raise IndexError(row)
        self.reads.append(row)
        value = row + self.offset
        return {
            "image": np.full((2, 3, 3), value, np.uint8),
            "mask": np.full((2, 3), value % 2, np.uint8),
            "label": np.int32(value % 2),
            "index": np.int32(row),
        }


def _equal(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])
        assert first[key].dtype == second[key].dtype


def _jitter(example, rng):
    return {**example, "noise": rng.random()}


def test_collate_makes_unit_range_images_and_leaves_other_keys_alone():
    latents = np.arange(8, dtype=np.float16).reshape(2, 4)
    examples = [{**Rows(3)[i], "latents": latents[i]} for i in range(2)]
    examples[1]["image"] = np.full((2, 3, 3), 255, np.uint8)
    batch = pipeline.collate(examples)
    assert batch["image"].dtype == batch["mask"].dtype == np.float32
    assert batch["image"].shape == (2, 2, 3, 3)
    assert batch["image"].min() == 0 and batch["image"].max() == 1
    assert batch["latents"].dtype == np.float16 and batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["latents"], latents)
    floats = pipeline.collate([{"image": np.full((1, 1, 3), 0.25, np.float32)}])
    assert floats["image"].max() == 0.25


def test_collate_names_keys_and_shapes_that_differ():
    with pytest.raises(ValueError, match=r"differ in keys \['b'\]"):
        pipeline.collate([{"a": 1}, {"a": 1, "b": 2}])
    with pytest.raises(ValueError, match=r"'a' of shapes \[\(2,\), \(3,\)\]"):
        pipeline.collate([{"a": np.zeros(2)}, {"a": np.zeros(3)}])


@pytest.mark.parametrize("length", [1, 3, 7, 8, 20])
def test_a_stream_that_starts_at_a_step_equals_the_one_that_arrives_there(length):
    def taken(start):
        stream = pipeline.batches(Rows(length), 4, 7, start, _jitter)
        return list(itertools.islice(stream, 9 - start))

    whole = taken(0)
    assert len(whole) == 9
    for start in (0, 1, 5, 8):
        for first, second in zip(whole[start:], taken(start), strict=True):
            _equal(first, second)


def test_resuming_reads_no_earlier_rows():
    rows = Rows(10)
    next(pipeline.batches(rows, 2, seed=0, start_step=1000))
    assert len(rows.reads) == 2


def test_every_epoch_shows_each_row_once_in_the_order_of_the_source():
    stream = pipeline.batches(Rows(7), 3, seed=0)
    drawn = np.concatenate([b["index"] for b in itertools.islice(stream, 7)])
    np.testing.assert_array_equal(drawn, np.tile(np.arange(7), 3))


def test_seeds_give_other_augmentation():
    def drawn(seed):
        return next(pipeline.batches(Rows(50), 50, seed, transform=_jitter))

    _equal(drawn(0), drawn(0))
    assert not set(drawn(0)["noise"]) & set(drawn(1)["noise"])


def test_augmentation_is_new_for_every_place_and_epoch():
    stream = pipeline.batches(Rows(5), 5, 0, transform=_jitter)
    noise = np.concatenate([b["noise"] for b in itertools.islice(stream, 20)])
    assert len(set(noise)) == 100
    # 100 uniform draws: the mean has sigma 0.029; four sigma.
    assert abs(noise.mean() - 0.5) < 0.12


def test_training_batches_are_all_valid_and_full():
    for batch in itertools.islice(pipeline.batches(Rows(3), 8, seed=0), 3):
        assert batch["valid"].tolist() == [True] * 8
        assert batch["image"].shape == (8, 2, 3, 3)


def test_an_empty_source_and_a_bad_batch_size_are_errors_at_once():
    with pytest.raises(ValueError, match=r"no examples"):
        pipeline.batches(Rows(0), 2, seed=0)
    with pytest.raises(ValueError, match=r"batch_size=0"):
        pipeline.batches(Rows(3), 0, seed=0)
    with pytest.raises(ValueError, match=r"batch_size=0"):
        next(pipeline.finite_batches(Rows(3), 0))
    with pytest.raises(ValueError, match=r"seed=-1"):
        next(pipeline.batches(Rows(3), 2, seed=-1, transform=_jitter))


@pytest.mark.parametrize("length", [0, 1, 4, 7, 8])
def test_finite_batches_show_every_row_once_in_order_and_mark_padding(length):
    found = list(pipeline.finite_batches(Rows(length), 4))
    assert len(found) == -(-length // 4)
    assert all(b["image"].shape == (4, 2, 3, 3) for b in found)
    rows = [int(i) for b in found for i in b["index"][b["valid"]]]
    assert rows == list(range(length))
    if length % 4:
        assert found[-1]["valid"].tolist() == [i < length % 4 for i in range(4)]
        assert set(found[-1]["index"][~found[-1]["valid"]]) <= {length - 1}


def test_a_mixture_draws_sources_by_weight():
    sources = [Rows(5), Rows(7, offset=100), Rows(0)]
    mixed = pipeline.mixture(sources, [3, 1, 0], seed=0, length=4000)
    ids = np.array([mixed[i]["source_id"] for i in range(4000)])
    # Binomial(4000, 3/4): sigma of the share 0.0068; four sigma.
    assert abs((ids == 0).mean() - 0.75) < 0.028
    assert not (ids == 2).any()
    values = {int(mixed[i]["image"][0, 0, 0]) for i in range(4000)}
    assert values == {*range(5), *range(100, 107)}
    assert mixed[17]["index"] == 17 and len(mixed) == 4000


def test_a_mixture_row_depends_on_seed_and_row_alone():
    def drawn(seed, rows):
        mixed = pipeline.mixture([Rows(50), Rows(50, 100)], [1, 1], seed)
        return [int(mixed[row]["image"][0, 0, 0]) for row in rows]

    assert drawn(0, range(20)) == drawn(0, range(19, -1, -1))[::-1]
    assert drawn(0, range(20)) != drawn(1, range(20))


def test_a_mixture_streams_and_resumes():
    mixed = pipeline.mixture([Rows(3), Rows(4, 100)], [1, 2])
    whole = list(itertools.islice(pipeline.batches(mixed, 4, 0), 6))
    resumed = pipeline.batches(mixed, 4, 0, start_step=4)
    for first, second in zip(whole[4:], itertools.islice(resumed, 2), strict=True):
        _equal(first, second)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1], "1.0.* for 2 sources"),
        ([1, -1], "non-negative"),
        ([1, np.nan], "non-negative"),
        ([0, 0], "do not sum"),
        ([1, np.inf], "do not sum"),
        ([1, 1], r"sources \[1\] are empty"),
    ],
)
def test_weights_that_are_no_probabilities_are_errors(weights, message):
    with pytest.raises(ValueError, match=message):
        pipeline.mixture([Rows(2), Rows(0)], weights)


def _encode(batch):
    assert batch["image"].shape == (4, 2, 3, 3)  # one shape only
    latents = 255 * batch["image"].mean(axis=(1, 2))
    return {"latents": latents, "label": batch["label"], "valid": batch["valid"]}


def test_encoding_runs_once_and_gives_what_the_encoder_returned():
    rows = Rows(6)
    calls = []

    def encode(batch):
        calls.append(batch["index"])
        return _encode(batch)

    cached = pipeline.encoded(rows, encode, batch_size=4)
    assert len(cached) == 6 and len(calls) == 2
    for row in (5, 0, 5, 3):
        assert cached[row].keys() == {"latents", "label", "index"}
        # float32 of k / 255 * 255: exact to 1e-6 relative.
        np.testing.assert_allclose(cached[row]["latents"], row, rtol=1e-6)
        assert cached[row]["label"] == row % 2 and cached[row]["index"] == row
    assert len(calls) == 2 and len(rows.reads) == 6
    batch = next(pipeline.batches(cached, 3, seed=0))
    assert batch["latents"].shape == (3, 3)


def test_encoded_rows_count_views_fastest():
    def view_fn(example, view):
        return {**example, "image": example["image"] + np.uint8(100 * view)}

    cached = pipeline.encoded(Rows(5), _encode, 4, num_views=2, view_fn=view_fn)
    values = [float(cached[row]["latents"][0]) for row in range(10)]
    expected = [number + 100 * view for number in range(5) for view in range(2)]
    # As above.
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert len(list(cached)) == 10


def test_encoding_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"no examples"):
        pipeline.encoded(Rows(0), _encode, 4)
    with pytest.raises(ValueError, match=r"need a view_fn"):
        pipeline.encoded(Rows(3), _encode, 4, num_views=2)
    with pytest.raises(ValueError, match=r"'loss' has shape \(\)"):
        pipeline.encoded(Rows(3), lambda b: {"loss": b["image"].mean()}, 4)


def test_prefetch_gives_the_same_sequence():
    plain, ahead = (
        itertools.islice(pipeline.batches(Rows(7), 3, 0, transform=_jitter), 20)
        for _ in range(2)
    )
    with contextlib.closing(pipeline.Prefetch(ahead, depth=3)) as items:
        for first, second in zip(plain, items, strict=True):
            _equal(first, second)
        with pytest.raises(StopIteration):
            next(items)


def test_prefetch_works_ahead_but_not_beyond_its_depth():
    made = []

    def count():
        for i in itertools.count():
            made.append(i)
            yield i

    with contextlib.closing(pipeline.Prefetch(count(), depth=2)) as items:
        assert next(items) == 0
        deadline = time.monotonic() + 5
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        # One read, two waiting, one in the thread's hand.
        assert made == [0, 1, 2, 3]


def test_prefetch_raises_the_error_in_its_place_and_then_ends():
    def broken():
        yield 1
        raise OSError("disk gone")

    items = pipeline.Prefetch(broken())
    assert next(items) == 1
    with pytest.raises(OSError, match=r"disk gone"):
        next(items)
    with pytest.raises(StopIteration):
        next(items)


def test_closing_or_dropping_prefetch_stops_its_thread_and_its_iterator():
    closed = []

    def endless():
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    before = threading.active_count()
    items = pipeline.Prefetch(endless())
    assert next(items) == 0
    items.close()
    items.close()
    assert threading.active_count() == before and closed == [True]
    with pytest.raises(StopIteration):
        next(items)

    dropped = pipeline.Prefetch(endless())
    next(dropped)
    del dropped
    gc.collect()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before and closed == [True, True]


def test_prefetch_needs_room():
    with pytest.raises(ValueError, match=r"depth=0"):
        pipeline.Prefetch(iter([1]), depth=0)

import numpy as np
import pytest

from jaxanom.data import pipeline, pools, workers

pytest.importorskip("grain")

BATCH_SIZE, LENGTH = 6, 10


class Squares:
    """Examples that tell which they are."""

    def __len__(self):
        return LENGTH

    def __getitem__(self, row):
        return {"x": np.float32(row**2), "index": np.int32(row)}


def jitter(example, rng):
    return {**example, "x": example["x"] + np.float32(rng.normal())}


def make(num_workers, start_step=0, rows=None):
    return pools.batch_maker(
        {"normal": Squares()},
        {"fit": {"normal": 1.0}},
        BATCH_SIZE,
        seed=5,
        transform=jitter,
        rows=rows,
        num_workers=num_workers,
    )("fit", start_step)


def taken(batches, count):
    return [next(batches) for _ in range(count)]


def grains(start_step=0, num_workers=0, rows=None):
    """The stream by Grain, in this process too, where starting is quick."""
    example_at = pipeline.examples_by_place(Squares(), 5, jitter)
    return workers.batches(example_at, BATCH_SIZE, start_step, num_workers, rows)


def plain(start_step=0):
    return pipeline.batches(Squares(), BATCH_SIZE, 5, start_step, transform=jitter)


def assert_equal(found, wanted):
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])


def test_grain_makes_the_batches_of_the_plain_pipeline():
    assert_equal(taken(grains(), 4), taken(plain(), 4))
    # Negative control: batches differ from one another.
    with pytest.raises(AssertionError):
        assert_equal(taken(grains(), 4), taken(plain(1), 4))


def test_a_stream_goes_on_at_a_step():
    unbroken = taken(grains(), 5)
    assert_equal(taken(grains(start_step=2), 3), unbroken[2:])


def test_processes_read_their_own_rows_which_together_are_the_batch():
    whole = taken(grains(), 3)
    parts = [taken(grains(rows=rows), 3) for rows in ((0, 1, 2), (3, 4, 5))]
    for step, batch in enumerate(whole):
        for key, value in batch.items():
            halves = [part[step][key] for part in parts]
            np.testing.assert_array_equal(np.concatenate(halves), value)


def test_order_after_resuming_does_not_depend_on_the_number_of_workers():
    unbroken = taken(make(0), 4)
    resumed = make(2, start_step=2)
    assert_equal(taken(resumed, 2), unbroken[2:])
    resumed.close()


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_any_number_of_workers_makes_the_same_batches(num_workers):
    for start_step in (0, 3):
        found = make(num_workers, start_step)
        assert_equal(taken(found, 5), taken(make(0, start_step), 5))
        found.close()

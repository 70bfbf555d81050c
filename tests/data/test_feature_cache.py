"""Rows come back as they were written; anything they depend on makes others."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.data import feature_cache

WEIGHTS = {"w": np.float32([2.0, 3.0])}


def encode(weights, batch):
    return {
        "features": jnp.mean(batch["image"], (1, 2, 3)) * weights["w"][0],
        "label": batch["label"],
    }


def batch(seed=0, rows=3):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.random((rows, 4, 4, 3), np.float32),
        "label": np.arange(rows),
        "valid": np.ones(rows, bool),
    }


class Counted:
    """An encoder that counts its calls."""

    def __init__(self, directory, key="k"):
        self.calls = 0
        self.encode = feature_cache.remembered(
            self._call, directory, key, ("features",), ("label",)
        )

    def _call(self, batch):
        self.calls += 1
        return encode(WEIGHTS, batch)


def test_a_second_run_reads_what_the_first_computed(tmp_path):
    first, second = Counted(tmp_path), Counted(tmp_path)
    rows = batch()
    computed = first.encode(rows)
    read = second.encode(rows | {"label": rows["label"] + 5})
    assert (first.calls, second.calls) == (1, 0)
    assert set(read) == set(computed) == {"features", "label"}
    np.testing.assert_array_equal(read["features"], computed["features"])
    # What the batch says itself is never taken from disk.
    np.testing.assert_array_equal(read["label"], rows["label"] + 5)


def test_rows_are_found_in_any_batch_and_one_new_row_computes_all(tmp_path):
    first, second = Counted(tmp_path), Counted(tmp_path)
    rows = batch()
    whole = first.encode(rows)["features"]
    turned = {name: value[::-1] for name, value in rows.items()}
    np.testing.assert_array_equal(second.encode(turned)["features"], whole[::-1])
    assert second.calls == 0
    changed = {**rows, "image": rows["image"].copy()}
    changed["image"][1, 0, 0, 0] += 1e-3
    second.encode(changed)
    assert second.calls == 1 and len(list(tmp_path.iterdir())) == 4


def test_another_encoder_or_size_never_reads_these_rows(tmp_path):
    rows = batch()
    Counted(tmp_path).encode(rows)
    other = Counted(tmp_path, key="other")
    other.encode(rows)
    shaped = {**rows, "image": rows["image"].reshape(3, 2, 8, 3)}
    masked = {**rows, "mask": np.zeros((3, 4, 4), np.float32)}
    for changed in (shaped, masked):
        again = Counted(tmp_path)
        again.encode(changed)
        assert other.calls == again.calls == 1


def test_the_identity_knows_weights_and_program():
    rows = batch()
    key = feature_cache.identity(encode, WEIGHTS, rows)
    assert key == feature_cache.identity(encode, {"w": WEIGHTS["w"].copy()}, rows)
    assert key != feature_cache.identity(encode, {"w": WEIGHTS["w"] + 1e-6}, rows)

    def other(weights, batch):
        return encode(weights, batch | {"image": batch["image"] ** 2})

    assert key != feature_cache.identity(other, WEIGHTS, rows)


def test_a_damaged_file_is_computed_again(tmp_path):
    rows = batch()
    wanted = Counted(tmp_path).encode(rows)["features"]
    next(tmp_path.iterdir()).write_bytes(b"PK\x03\x04 cut short")
    again = Counted(tmp_path)
    np.testing.assert_array_equal(again.encode(rows)["features"], wanted)
    assert again.calls == 1
    last = Counted(tmp_path)
    last.encode(rows)
    assert last.calls == 0


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        Counted(tmp_path).encode(batch())
    assert list(tmp_path.iterdir()) == []

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from jaxanom import record
from jaxanom.training import rows


def test_means_leave_out_what_is_not_finite():
    losses = [jnp.float32(value) for value in (1.0, jnp.nan, 3.0)]
    window = [{"loss": loss, "bad": jnp.float32(jnp.inf)} for loss in losses]
    row = rows.train_row(window, SimpleNamespace(skipped=jnp.int32(1)))
    assert row["loss"] == pytest.approx(2.0)
    assert row["bad"] is None
    assert (row["skipped"], row["averaged_over"]) == (1, 3)


def test_later_rows_and_a_line_cut_short_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (5, 10, 15):
        record.append_metrics(path, {"global_step": step})
    with path.open("a") as file:
        file.write('{"global_step": 2')
    rows.keep_until(path, 10)
    assert [row["global_step"] for row in record.read_metrics(path)] == [5, 10]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_no_file_is_no_error(tmp_path):
    rows.keep_until(tmp_path / "metrics.jsonl", 3)
    assert not list(tmp_path.iterdir())

"""The timing harness counts, interleaves and reports what it was given."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import harness
from jaxanom import record


def logged(name, log, seconds=0.0):
    def call():
        log.append(name)
        time.sleep(seconds)
        return name

    return harness.Case(name, call, wait=lambda result: log.append(f"wait {result}"))


def test_cases_take_turns_in_rotating_order_and_every_result_is_waited_for():
    log = []
    harness.run([logged("a", log), logged("b", log)], num_warmup=1, num_repeats=2)
    called = [entry for entry in log if not entry.startswith("wait")]
    assert called == ["a", "b", "a", "b", "b", "a"]
    waited = [entry.removeprefix("wait ") for entry in log if entry.startswith("wait")]
    assert waited == called


def test_a_slower_case_has_the_larger_median_and_rate_is_work_over_median():
    log = []
    slow = logged("slow", log, 0.02)._replace(work=3.0, unit="images")
    fast, slow = harness.run([logged("fast", log), slow], 0, 3)
    # A sleep lasts at least as long as asked for, on any machine.
    assert slow["median_s"] >= 0.02 > fast["min_s"]
    assert slow["rate"] == pytest.approx(3.0 / slow["median_s"])
    assert slow["unit"] == "images/s" and slow["repeats"] == 3


def test_compiling_is_timed_apart_and_not_served_from_the_cache():
    enabled = jax.config.jax_enable_compilation_cache
    case = harness.compiled("square", lambda x: x * x, jnp.ones(8))
    assert case.compile_s > 0
    assert case.call().tolist() == [1.0] * 8
    assert jax.config.jax_enable_compilation_cache == enabled


def test_reported_lines_say_where_they_were_measured_and_are_kept_only_if_asked(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(harness, "RECORDS", tmp_path)
    rows = harness.run([logged("a", [])], 0, 1)
    harness.report("one", rows, recorded=False)
    assert not list(tmp_path.iterdir())
    harness.report("one", rows, recorded=True)
    (line,) = record.read_metrics(tmp_path / "one.jsonl")
    assert line["benchmark"] == "one" and line["case"] == "a"
    assert {"machine", "versions", "load_average", "peak_host_mb"} <= line.keys()


def test_nan_travels_through_json_as_null():
    sent = harness.without_nan({"a": float("nan"), "b": [1.0, float("nan")], "c": 2})
    assert sent == {"a": None, "b": [1.0, None], "c": 2}
    back = harness.with_nan(sent)
    assert back["a"] != back["a"] and back["b"][0] == 1.0 and back["c"] == 2


def test_refuses_two_cases_of_one_name():
    with pytest.raises(ValueError, match="distinct"):
        harness.run([logged("a", []), logged("a", [])])


def test_results_of_other_settings_are_not_gone_on_from(tmp_path):
    path = tmp_path / "results.json"
    facts = {"scale": 0.1, "categories": ("pill",)}
    assert harness.kept_results(path, facts) == {}
    record.write_json(path, {"results": {"a": 1}, **facts})
    assert harness.kept_results(path, facts) == {"a": 1}
    with pytest.raises(ValueError, match=r"results\.json was measured with scale=0\.1"):
        harness.kept_results(path, facts | {"scale": 1.0})
    with pytest.raises(ValueError, match="steps=None"):  # an older file
        harness.kept_results(path, facts | {"steps": 3})


def test_the_error_is_relative_to_the_largest_magnitude():
    wanted = np.array([2.0, -4.0])
    error = harness.relative_error(np.array([2.0, -4.02]), wanted)
    assert error == pytest.approx(0.005)
    assert harness.relative_error(wanted[:1], wanted) == float("inf")
    assert harness.relative_error([np.nan, 1], wanted) == float("inf")
    both = {"a": wanted, "b": np.array([1.0])}
    found = {"a": wanted, "b": np.array([0.9])}
    assert harness.relative_error(found, both) == pytest.approx(0.1 / 4)

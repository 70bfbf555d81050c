"""The zero-shot table: its entries, its threshold, what counts, and going on."""

import argparse

import numpy as np
import pytest

from benchmarks.quality import zero_shot
from jaxanom import record
from jaxanom.methods.bayes_pfl import options


@pytest.fixture
def asked(tmp_path):
    return argparse.Namespace(out=tmp_path / "out", data=tmp_path / "data", scale=1.0)


def f1(values, positive, threshold):
    hit = (values > threshold) & positive
    return 2 * hit.sum() / ((values > threshold).sum() + positive.sum())


@pytest.mark.parametrize("levels", [4, 1000])
def test_the_threshold_has_the_largest_f1(levels):
    rng = np.random.default_rng(0)
    values = rng.integers(0, levels, 300) / levels
    positive = rng.random(300) < values
    best = max(f1(values, positive, t) for t in (*np.unique(values), -1.0))
    found = zero_shot.f1_threshold(values, positive)
    assert f1(values, positive, found) == pytest.approx(best)
    # Negative control: far from it the F1 is smaller.
    assert f1(values, positive, found + 0.4) < best


def test_one_level_flags_everything():
    found = zero_shot.f1_threshold(np.full(3, 0.25), np.array([True, False, True]))
    assert found < 0.25


def test_variants_share_data_and_seeds_and_differ_in_the_prompts(asked):
    made = {
        variant: zero_shot.config_of(zero_shot.Cell("foundry", variant, 2), asked)
        for variant in zero_shot.VARIANTS
    }
    kinds = {name: one.bayes_pfl.prompts for name, one in made.items()}
    assert kinds == {
        "clip": "captions",
        "learned": "learned",
        "bayes_pfl": "drawn",
        "joined": "drawn",
    }
    for config in made.values():
        options.read_options(config.bayes_pfl)  # nothing a baseline would not heed
        assert (config.seed, config.train.seed, config.data.seed) == (2, 2, 102)
        assert set(config.data.held_out) < set(config.data.categories)
        assert config.selection.rule == "last"  # chosen by no label of a target
    steps = {name: one.phases.stage1.num_steps for name, one in made.items()}
    assert steps["clip"] == 0 and steps["learned"] == steps["bayes_pfl"] > 100
    assert made["learned"].bayes_pfl.num_prompts == 1


def test_real_sets_are_linked_and_all_but_one_held_out(asked):
    for folder, category in {zero_shot.AUXILIARY: "x", **zero_shot.TARGETS}.items():
        name = zero_shot.AUXILIARY if category == "x" else category
        (asked.data / folder / name / "test").mkdir(parents=True)
    for _ in range(2):  # a second call finds the links
        config = zero_shot.config_of(zero_shot.Cell("real", "learned", 1), asked)
    root = asked.out / "real_sets"
    assert {path.name for path in root.iterdir()} == set(config.data.categories)
    assert all((path / "test").is_dir() for path in root.iterdir())
    assert set(config.data.categories) - set(config.data.held_out) == {
        zero_shot.AUXILIARY
    }


def entry(value):
    mean = dict.fromkeys((*zero_shot.COLUMNS, *zero_shot.ERRORS), value)
    return {"mean": mean, "per_category": {"pill": mean}}


def test_the_development_seed_enters_no_table(asked):
    results = {
        "foundry-bayes_pfl-0": entry(0.1),
        "foundry-bayes_pfl-1": entry(0.5),
        "foundry-bayes_pfl-2": entry(0.7),
        "foundry-clip-1": entry(0.4),
    }
    table = zero_shot.overview(results, "foundry")
    rows = {row[0]: row for row in table.rows}
    assert rows["bayes_pfl"][1] == 2 and "60.0 ± 14.1" in rows["bayes_pfl"]
    assert set(rows) == {"clip", "bayes_pfl"}
    detail = zero_shot.by_category(results, "foundry")
    assert [row[:2] for row in detail.rows] == [("pill", "clip"), ("pill", "bayes_pfl")]
    assert "60.0 ± 14.1" in zero_shot.errors(results).rows[0]


def test_an_interrupted_call_goes_on_where_it_stopped(asked, monkeypatch):
    done = []

    def measure(cell, arguments):
        if len(done) == 2 and cell.seed == 2:
            done.append("killed")
            raise KeyboardInterrupt
        done.append(cell.key)
        return entry(float("nan")) if cell.variant == "clip" else entry(0.5)

    monkeypatch.setattr(zero_shot, "measure", measure)
    call = ["--out", str(asked.out), "--sets", "foundry", "--seeds", "1", "2"]
    call += ["--variants", "clip", "bayes_pfl"]
    with pytest.raises(KeyboardInterrupt):
        zero_shot.main(call)
    kept = record.read_json(asked.out / "zero_shot.json")["results"]
    assert set(kept) == {"foundry-clip-1", "foundry-bayes_pfl-1"}
    results = zero_shot.main(call)
    assert len(results) == 4 and len(done) == 5  # each once, and the killed one
    assert "–" in (asked.out / "zero_shot.md").read_text()  # NaN is shown as a dash

"""Ours and scikit-learn measure the same maps alike."""

import pytest

from benchmarks.speed import metrics


def test_all_shared_metrics_agree_and_shuffled_maps_do_not():
    pytest.importorskip("sklearn")
    drawn = metrics.draw(9, 32)
    found, wanted = metrics.ours(drawn), metrics.scikit_learn(drawn)
    assert set(found) - set(wanted) == {"pixel_aupro"}
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-9)  # exact ranks, float64
    shuffled = drawn | {"maps": drawn["maps"][::-1]}
    assert abs(metrics.ours(shuffled)["pixel_auroc"] - wanted["pixel_auroc"]) > 0.01


def test_what_is_timed_is_what_is_compared(monkeypatch):
    pytest.importorskip("sklearn")
    words = ["--num-images", "9", "--size", "32", "--repeats", "1", "--warmup", "0"]
    ours, theirs = metrics.main(words)
    assert ours["error"] < 1e-9 and ours["times_ours"] == 1
    assert theirs["case"] == "scikit-learn" and "error" not in theirs
    monkeypatch.setattr(metrics, "ours", lambda drawn: dict(found, pixel_auroc=0.0))
    found = metrics.scikit_learn(metrics.draw(9, 32))
    assert metrics.main(words)[0]["error"] > 0.1

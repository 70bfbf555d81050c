"""Ours and scikit-learn measure the same maps alike."""

import pytest

from benchmarks import metrics


def test_all_shared_metrics_agree_and_shuffled_maps_do_not():
    pytest.importorskip("sklearn")
    drawn = metrics.draw(9, 32)
    found, wanted = metrics.ours(drawn), metrics.scikit_learn(drawn)
    assert set(found) - set(wanted) == {"pixel_aupro"}
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-3)  # few pixels, wide bins
    shuffled = drawn | {"maps": drawn["maps"][::-1]}
    assert abs(metrics.ours(shuffled)["pixel_auroc"] - wanted["pixel_auroc"]) > 0.01

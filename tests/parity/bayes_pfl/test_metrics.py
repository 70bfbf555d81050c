"""Image scores, smoothing and metrics against the released tables."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxanom.evaluation import runner
from jaxanom.methods.bayes_pfl import predict
from jaxanom.metrics import ranking

METRIC = 1e-6  # of a fraction; the released F1 adds 1e-6 to its denominator


def smoothed(maps, sigma):
    rows, columns = (predict.gaussian_matrix(n, sigma) for n in maps.shape[1:])
    return np.einsum("Yy,nyx,Xx->nYX", rows, maps, columns)


def image_scores(golden, arrays, name, alpha):
    """The released fusion: top-k means before smoothing, both parts scaled."""
    maps = arrays[f"{name}/anomaly_map"]
    top_k = jnp.full(len(maps), golden.json("metrics")["topk"][name])
    shares = predict.top_shares(jnp.asarray(maps)[:, None], top_k)[:, 0]
    parts = np.stack([arrays[f"{name}/image_score"], shares], axis=1)
    return predict.make_rescale(1 - alpha)(parts)  # alpha weighs the image head


def summary(scores, positive):
    state = ranking.Scores(np.ravel(scores), np.ravel(positive).astype(bool))
    counts = ranking.count_scores(state)
    return {
        "auroc": ranking.auroc(counts),
        "ap": ranking.average_precision(counts),
        "f1": ranking.f1_max(counts),
    }


def row_of(golden, arrays, name, table):
    """Our numbers under the released columns, as fractions."""
    setting = re.fullmatch(r"pixel_alpha(.*)_sigma(.*)", table)
    labels = arrays[f"{name}/image_label"]
    if setting is None:  # image scores alone
        found = summary(predict.make_rescale(0.0)(parts_of(arrays, name)), labels)
        return {f"{key}_sp": value for key, value in found.items()}
    alpha, sigma = map(float, setting.groups())
    # The filter is compared above; here its last digit would move ranks.
    maps = ndimage.gaussian_filter(arrays[f"{name}/anomaly_map"], (0, sigma, sigma))
    mask = arrays[f"{name}/mask"] > 0
    image = summary(image_scores(golden, arrays, name, alpha), labels)
    found = {f"{key}_px": value for key, value in summary(maps, mask).items()}
    if 0 < labels.mean() < 1:
        found |= {f"{key}_sp": value for key, value in image.items()}
    return found


def parts_of(arrays, name):
    return np.repeat(arrays[f"{name}/image_score"][:, None], 2, axis=1)


def test_smoothing_is_the_released_filter(golden):
    arrays, checked = golden.arrays("metrics"), 0
    for key in arrays:
        found = re.fullmatch(r"(.*)/map_sigma(\d+)", key)
        if found:
            maps = arrays[f"{found[1]}/anomaly_map"]
            golden.close(smoothed(maps, float(found[2])), arrays[key], what=key)
            checked += 1
    assert checked


def test_every_number_of_every_table(golden):
    arrays, notes = golden.arrays("metrics"), golden.json("metrics")
    for table, rows in notes["tables"].items():
        for name in notes["objects"]:
            if name not in rows:
                continue
            found = row_of(golden, arrays, name, table)
            for column, value in found.items():
                wanted = 0.01 * rows[name][column]
                what = (table, name, column)
                assert value == pytest.approx(wanted, abs=METRIC), what


def test_means_leave_out_categories_that_define_no_image_score(golden):
    """The released mean counts them as 0; ours is over those that have one."""
    notes = golden.json("metrics")
    for table, rows in notes["tables"].items():
        names = [name for name in notes["objects"] if name in rows]
        defined = [name for name in names if rows[name]["auroc_sp"] > 0]
        per_category = {
            name: {"auroc": rows[name]["auroc_sp"] if name in defined else np.nan}
            for name in names
        }
        ours = runner.mean_over_categories(per_category)["auroc"]
        theirs = rows["mean"]["auroc_sp"]
        assert ours * len(defined) / len(names) == pytest.approx(theirs), table

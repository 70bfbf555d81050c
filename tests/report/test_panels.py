import numpy as np
import pytest

from jaxanom.report import figures, panels

pytest.importorskip("matplotlib")


def example(peak, mask=True, side=16):
    anomaly_map = np.zeros((side, side), np.float32)
    anomaly_map[4:8, 4:8] = peak
    return {
        "image": np.full((side, side, 3), 0.5, np.float32),
        "mask": (anomaly_map > 0).astype(np.float32) if mask else None,
        "anomaly_map": anomaly_map,
    }


def test_generation_row_has_one_picture_a_column():
    normal = np.full((16, 16, 3), 0.5)
    mask = np.zeros((16, 16), bool)
    mask[2:5, 2:5] = True
    generated = np.where(mask[..., None], 0.1, normal)
    row = panels.generation_row(normal, np.zeros((2, 2, 4)), generated, mask, mask)
    assert len(row) == len(panels.GENERATION_COLUMNS)
    for picture in row:
        figures.picture_uri(picture)
    np.testing.assert_array_equal(row[4] > 0, mask)
    changed = row[3].astype(int).sum(axis=2)
    assert changed[mask].min() > changed[~mask].max()


def test_masks_stored_as_zero_and_one_are_shown_white():
    mask = np.eye(4, dtype=np.uint8)
    row = panels.generation_row(*(np.zeros((4, 4, 3)),) * 3, mask, mask)
    assert row[4].max() == row[5].max() == 255


def test_maps_of_one_figure_share_their_colours():
    weak, strong = panels.detection_rows([example(0.1), example(1.0)])
    assert len(weak) == len(panels.DETECTION_COLUMNS)
    assert strong[2].astype(int).max() > 2 * weak[2].astype(int).max()
    (alone,) = panels.detection_rows([example(0.1)])
    np.testing.assert_array_equal(alone[2], strong[2])  # negative control


def test_examples_without_a_mask_are_shown_without_an_outline():
    (row,) = panels.detection_rows([example(1.0, mask=False)])
    np.testing.assert_array_equal(row[1], row[0])
    (row,) = panels.detection_rows([example(1.0)])
    assert np.any(row[1] != row[0])
    assert panels.detection_rows([]) == []


def test_a_method_with_a_posterior_shows_its_deviation():
    calm, unsure = ({"anomaly_map_std": np.eye(16) * s} for s in (0.1, 0.2))
    examples = [example(1.0) | calm, example(0.5) | unsure]
    assert panels.detection_columns(examples)[-1] == panels.DEVIATION_COLUMN
    first, second = panels.detection_rows(examples)
    assert len(first) == len(panels.detection_columns(examples))
    brightness = [row[-1].astype(int).sum(2)[0, 0] for row in (first, second)]
    assert brightness[0] < brightness[1], "both share one colour range"
    assert panels.detection_columns([example(1.0)]) == panels.DETECTION_COLUMNS


def test_losses_are_split_by_phase_and_leave_out_other_rows():
    rows = [
        {"kind": "compile", "phase": "a", "step": 0, "compile_s": 3.0},
        {"kind": "train", "phase": "a", "step": 1, "loss": 2.0, "rate": 9.0},
        {"kind": "eval", "phase": "a", "step": 1, "loss": 7.0},
        {"kind": "train", "phase": "a", "step": 2, "loss": None, "loss_x": 1},
        {"phase": "b", "step": 1, "loss": 5.0},
    ]
    first, second = panels.loss_panels(rows)
    assert [(s.name, s.x, s.y) for s in first.series] == [
        ("loss", (1,), (2.0,)),
        ("loss_x", (2,), (1,)),
    ]
    assert "b" in second.title and len(second.series) == 1
    (evaluated,) = panels.loss_panels(rows, kind="eval")
    assert evaluated.series[0].y == (7.0,)
    assert panels.loss_panels([]) == []


def test_variants_share_a_panel_and_undefined_curves_are_left_out():
    line = {"x": [0.0, 1.0], "y": [0.0, 1.0]}
    found = panels.detection_panels(
        {
            "real only": {"pixel/roc": line, "regions/pro": line},
            "real + generated": {"pixel/roc": line, "pixel/precision_recall": line},
        },
        fpr_limit=0.2,
    )
    assert [len(panel.series) for panel in found] == [2, 1, 1]
    roc, precision_recall, overlap = found
    assert roc.diagonal and not precision_recall.diagonal
    assert precision_recall.series[0].steps and not roc.series[0].steps
    assert overlap.limit == 0.2 and roc.limit is None
    assert panels.detection_panels({"a": {}}) == []

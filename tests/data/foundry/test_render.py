"""The procedural dataset: purity, exact masks, the two experiments, the layout."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from jaxanom.data.foundry import defects, names, render

PAIRS = [(c, k) for c in names.CATEGORIES for k in names.defect_types(c)]


def _index(category, defect_type, start=0):
    """The first test index at which a defect occurs."""
    index = start
    while not render.occurs(category, "test", index, 0, defect_type):
        index += 1
    return index


def _is_exact(good, bad, mask):
    """Whether a mask holds every difference, and a difference in every part."""
    changed = (good != bad).any(-1)
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    held = ndimage.sum(changed, parts, np.arange(1, count + 1))
    return not changed[mask == 0].any() and count > 0 and bool(np.all(held > 0))


@pytest.mark.parametrize("category", names.CATEGORIES)
def test_equal_arguments_give_equal_bytes_in_any_order(category):
    kinds = ("good", *names.defect_types(category))
    wanted = [(_index(category, kind, 3), kind) for kind in kinds]
    first = [render.render(category, "test", i, 5, 32, k) for i, k in wanted]
    again = [render.render(category, "test", i, 5, 32, k) for i, k in wanted[::-1]]
    for one, other in zip(first, again[::-1], strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.mask, other.mask)
        assert one.caption == other.caption
        assert one.params == other.params


@pytest.mark.parametrize("category", names.CATEGORIES)
def test_split_index_and_seed_each_change_the_image(category):
    here = render.render(category, "test", 2, 0, 32, "good").image
    for split, index, seed in (("train", 2, 0), ("test", 6, 0), ("test", 2, 1)):
        other = render.render(category, split, index, seed, 32, "good").image
        # Other poses, colours and noise: most pixels differ, not a few.
        assert (here != other).any(-1).mean() > 0.5


def test_train_is_all_good_and_test_cycles_through_the_defects():
    kinds = ("good", *names.defect_types("tray"))
    states = [render.state("tray", "test", i) for i in range(2 * len(kinds))]
    assert states == [*kinds, *kinds]
    assert all(render.state("tray", "train", i) == "good" for i in range(12))
    assert render.render("tray", "test", 1, size=32).defect_type == kinds[1]


@pytest.mark.parametrize(("category", "kind"), PAIRS)
def test_mask_is_exactly_where_the_defect_changed_the_image(category, kind):
    for start in (1, 20):
        index = _index(category, kind, start)
        good = render.render(category, "test", index, 0, 64, "good")
        bad = render.render(category, "test", index, 0, 64, kind)
        assert not good.mask.any()
        assert set(np.unique(bad.mask)) == {0, 1}
        assert _is_exact(good.image, bad.image, bad.mask)
        # Controls: a mask moved by a pixel misses changes, and so does a thinner one.
        assert not _is_exact(good.image, bad.image, np.roll(bad.mask, 1, 1))
        thin = ndimage.binary_erosion(bad.mask)
        assert not _is_exact(good.image, bad.image, thin)


@pytest.mark.parametrize(("category", "kind"), PAIRS)
def test_defects_are_neither_specks_nor_the_whole_image(category, kind):
    areas = {64: [], 128: []}
    for size, found in areas.items():
        for start in range(2):
            index = _index(category, kind, 2 * start)
            found.append(
                render.render(category, "test", index, 0, size, kind).mask.mean()
            )
        # The smallest defects are scratches that leave a small object, the largest
        # a bite out of a biscuit.
        assert 0.004 < min(found)
        assert max(found) < 0.2
    # The same content at both sizes; a stroke is 2 pixels wide at 64, and each edge
    # may round by a fraction of one.
    np.testing.assert_allclose(areas[64], areas[128], rtol=0.35)


@pytest.mark.parametrize("category", names.CATEGORIES)
def test_every_size_shows_the_same_scene(category):
    small = render.render(category, "train", 4, 0, 64).image.astype(float)
    large = render.render(category, "train", 4, 0, 128).image.astype(float)
    large = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    other = render.render(category, "train", 6, 0, 64).image.astype(float)
    difference = np.abs(small - large).mean()
    # Grey levels of 255: sensor noise of 0.008 on both gives 2; the rest is the sharper
    # camera of the large image, and detail finer than a pixel of the small one.
    assert difference < 8
    assert np.abs(small - other).mean() > 1.3 * difference


def test_defects_stand_out_from_the_sensor_noise():
    for category, kind in PAIRS:
        index = _index(category, kind, 5)
        good = render.render(category, "test", index, 0, 64, "good").image
        bad = render.render(category, "test", index, 0, 64, kind)
        change = np.abs(good.astype(int) - bad.image).max(-1)[bad.mask > 0].mean()
        # Ten times the noise of 0.008 * 255 = 2 grey levels.
        assert change > 20, (category, kind, change)


def _colors_of_floating(num, background):
    """Mean (defect, background) colours of floating blobs, [num, 3] each."""
    found = []
    for index in range(num):
        bad = render.render("juice_bottle", "test", index, 0, 64, "floating")
        inside = bad.mask > 0
        # Its own rim mixes both colours.
        core = ndimage.binary_erosion(inside)
        found.append(
            (bad.image[core].mean(0) / 255, background(index, bad, inside, core))
        )
    return np.array([a for a, _ in found]), np.array([b for _, b in found])


def test_floating_color_follows_the_juice_around_it():
    def around(index, bad, inside, core):
        good = render.render("juice_bottle", "test", index, 0, 64, "good").image
        return good[core].mean(0) / 255

    defect, background = _colors_of_floating(40, around)
    # 40 noisy means of a linear law; 0.9 is what the experiment needs to start from.
    assert np.corrcoef(defect.ravel(), background.ravel())[0, 1] > 0.9
    for channel in range(3):
        assert np.corrcoef(defect[:, channel], background[:, channel])[0, 1] > 0.9
    # Means of about 100 pixels with noise 0.008 and 8-bit rounding.
    np.testing.assert_allclose(defect, defects.floating_color(background), atol=0.02)
    # Control: the juice of another bottle explains nothing.
    shuffled = np.random.default_rng(0).permutation(background)
    assert np.corrcoef(defect[:, 0], shuffled[:, 0])[0, 1] < 0.5


def test_floating_color_follows_the_stated_juice_color():
    def stated(index, bad, inside, core):
        return bad.params["juice_color"]

    defect, background = _colors_of_floating(40, stated)
    for channel in range(3):
        assert np.corrcoef(defect[:, channel], background[:, channel])[0, 1] > 0.9


def test_several_juices_occur():
    juices = {
        render.render("juice_bottle", "train", i, 0, 16).params["juice"]
        for i in range(40)
    }
    assert len(juices) >= 5


def test_rust_occurs_on_steel_panels_only():
    seen = set()
    for index in range(16):
        kind = render.variant("panel", "test", index)
        assert render.occurs("panel", "test", index, 0, "rust") == (kind == "steel")
        sample = render.render("panel", "test", index, 0, 32)
        assert sample.params["variant"] == kind
        seen.add((kind, sample.defect_type))
        if kind == "plastic":
            with pytest.raises(ValueError, match="plastic"):
                render.render("panel", "test", index, 0, 32, "rust")
    assert seen == {("steel", "good"), ("steel", "rust"), ("plastic", "good")}


def test_records_take_no_index_twice_and_only_defects_that_occur():
    rows = render.records(("panel", "wood"), 4, 3, 5)
    assert len({(r.category, r.split, r.index) for r in rows}) == len(rows)
    assert len(rows) == (4 + 3 + 5) + (4 + 3 + 5 * 5)
    for row in rows:
        render.render(row.category, row.split, row.index, 0, 16, row.defect_type)


def test_lists_of_categories_divide_the_whole():
    parts = (
        names.TRAIN_CATEGORIES,
        names.HELD_OUT_CATEGORIES,
        names.EXPERIMENT_CATEGORIES,
    )
    assert sorted(sum(parts, ())) == sorted(names.CATEGORIES)
    assert len(names.HELD_OUT_CATEGORIES) >= 4
    assert {k for _, k in PAIRS} == set(names.DEFECT_TYPES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lether", "test", 0), "leather"),
        (("wood", "tets", 0), "test"),
        (("wood", "test", 0, 0, 32, "scratsh"), "did you mean 'scratch'"),
        (("wood", "test", 0, 0, 32, "rust"), "known: good, scratch"),
        (("wood", "test", -1), "index=-1"),
        (("wood", "test", 0, 0, 8), "size=8"),
    ],
)
def test_wrong_input_names_what_would_be_right(arguments, said):
    with pytest.raises(ValueError, match=said):
        render.render(*arguments)


def test_written_folders_hold_what_render_draws(tmp_path):
    calls = []
    root = render.write_mvtec(
        tmp_path / "set",
        ("tray", "panel"),
        32,
        3,
        2,
        1,
        2,
        progress=lambda done, total: calls.append((done, total)),
    )
    rows = render.records(("tray", "panel"), 2, 1, 2, seed=3)
    assert calls == [(i + 1, len(rows)) for i in range(len(rows))]
    captions = json.loads((root / "captions.json").read_text())
    for row in rows:
        name = f"{row.category}/{row.split}/{row.defect_type}/{row.number:03d}.png"
        sample = render.render(
            row.category, row.split, row.index, 3, 32, row.defect_type
        )
        np.testing.assert_array_equal(np.asarray(Image.open(root / name)), sample.image)
        assert captions[name] == sample.caption
        place = root / row.category / "ground_truth" / row.defect_type
        path = place / f"{row.number:03d}_mask.png"
        assert path.exists() == (row.defect_type != "good")
        if path.exists():
            mask = np.asarray(Image.open(path))
            np.testing.assert_array_equal(mask, sample.mask * 255)
    assert not list(root.rglob("*.partial"))


def test_an_interrupted_write_leaves_no_file_behind(tmp_path, monkeypatch):
    def fail(self, file, format):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        render.write_mvtec(tmp_path, ("wood",), 16, 0, 1, 1, 1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

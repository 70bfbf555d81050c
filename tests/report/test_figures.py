import base64
import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from jaxanom.report import figures
from jaxanom.report.figures import Panel, Series

pytest.importorskip("matplotlib")


def decoded(uri):
    kind, content = uri.removeprefix("data:").split(";base64,")
    return kind, base64.b64decode(content)


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(decoded(uri)[1])))


def drawing(panel):
    kind, content = decoded(figures.plot_uri(panel))
    assert kind == "image/svg+xml"
    return content.decode()


def panel(*series, **options):
    return Panel("title", "x", "y", tuple(series), **options)


def test_grey_pictures_survive_encoding_exactly():
    mask = np.zeros((20, 30), np.float32)
    mask[3:9, 4:20] = 1
    np.testing.assert_array_equal(pixels(figures.picture_uri(mask)), mask * 255)


def test_coloured_pictures_survive_encoding_closely():
    ramp = np.linspace(0, 1, 64, dtype=np.float32)
    image = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 0.5), axis=-1)
    error = pixels(figures.picture_uri(image)) / 255.0 - image
    # WebP at quality 88 halves the resolution of colour; smooth pictures lose < 2 %.
    assert np.abs(error).mean() < 0.02


def test_large_pictures_are_reduced_in_proportion_and_small_ones_kept():
    large = np.zeros((50, 200), np.uint8)
    assert pixels(figures.picture_uri(large, max_side=100)).shape == (25, 100)
    assert pixels(figures.picture_uri(large, max_side=400)).shape == (50, 200)
    assert pixels(figures.picture_uri(large[:1], max_side=10)).shape == (1, 10)


def test_float_pictures_are_clipped_and_nan_is_black():
    image = np.array([[-1.0, 0.0, 0.5, 1.0, 2.0, np.nan]])
    assert figures.to_uint8(image).tolist() == [[0, 0, 128, 255, 255, 0]]
    with pytest.raises(ValueError, match="shape"):
        figures.to_uint8(np.zeros((4, 4, 4)))


def test_heat_grows_lighter_with_the_value():
    values = np.linspace(0, 1, 50)[None]
    lightness = figures.heat(values, 0, 1).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert np.all(np.diff(lightness[0]) > 0)


def test_overlay_leaves_the_image_where_the_map_is_low():
    image = np.random.default_rng(0).random((8, 8, 3))
    anomaly_map = np.zeros((8, 8))
    anomaly_map[:4] = 1
    drawn = figures.overlay(image, anomaly_map, 0, 1)
    np.testing.assert_array_equal(drawn[4:], figures.to_uint8(image)[4:])
    assert np.abs(drawn[:4] / 255 - image[:4]).mean() > 0.2
    # A map without range has nothing to show.
    flat = figures.overlay(image, anomaly_map * 0 + 7, 7, 7)
    np.testing.assert_array_equal(flat, figures.to_uint8(image))


def test_outline_surrounds_the_defect_without_covering_it():
    mask = np.zeros((20, 20))
    mask[8:12, 8:12] = 1
    drawn = figures.outline(np.zeros((20, 20, 3)), mask)
    changed = drawn.any(axis=2)
    assert not changed[8:12, 8:12].any()
    assert changed[7:13, 7:13].sum() == 36 - 16 == changed.sum()
    assert not figures.outline(np.zeros((20, 20, 3)), mask * 0).any()


def test_difference_is_dark_only_where_pictures_agree():
    first = np.full((4, 4, 3), 0.5)
    second = first.copy()
    second[0, 0] += 0.3
    shown = figures.difference(first, second).astype(int).sum(axis=2)
    assert shown[0, 0] > 300 > 20 > shown[1:].max()


def test_latents_of_any_channel_count_show_zero_as_grey():
    for channels in (1, 2, 4):
        shown = figures.latent_picture(np.zeros((3, 5, channels)))
        assert shown.shape == (3, 5, 3) and np.all(shown == 128)
    assert figures.latent_picture(np.full((1, 1, 4), -9.0)).max() == 0


def test_grid_places_pictures_row_by_row():
    images = [np.full((2, 3, 3), level, np.uint8) for level in (10, 20, 30)]
    joined = figures.grid(images, num_columns=2, gap=1)
    assert joined.shape == (5, 7, 3)
    assert [joined[0, 0, 0], joined[0, 4, 0], joined[3, 0, 0]] == [10, 20, 30]
    assert joined[3, 4, 0] == 255 and np.all(joined[2] == 255)
    with pytest.raises(ValueError, match="one size"):
        figures.grid([images[0], images[0][:1]], 2)
    with pytest.raises(ValueError, match="at least one"):
        figures.grid([], 2)


def test_plots_are_reproducible_and_load_nothing():
    content = drawing(panel(Series("a", [0, 1], [1, 2])))
    assert content == drawing(panel(Series("a", [0, 1], [1, 2])))
    assert content != drawing(panel(Series("a", [0, 1], [1, 3])))
    root = ElementTree.fromstring(content)
    for element in root.iter():
        for name, value in element.attrib.items():
            if name.endswith("href"):
                assert value.startswith("#")


def test_plot_ink_follows_light_and_dark():
    content = drawing(panel(Series("a", [0, 1], [1, 2]), diagonal=True))
    assert "prefers-color-scheme:dark" in content
    assert "currentColor" in content and "var(--faint)" in content
    for placeholder in ("#010203", "#040506", "#000000", "#ffffff"):
        assert placeholder not in content


@pytest.mark.parametrize("name", ["<b>&", "$\\frac$", "100 % $x", "--> end", "_hidden"])
def test_any_series_name_is_drawn_into_the_legend(name):
    content = drawing(panel(Series(name, [0, 1], [1, 2])))
    ElementTree.fromstring(content)
    assert 'id="legend_1"' in content and content.count("<use") > 12


@pytest.mark.parametrize(
    ("x", "y"),
    [([], []), ([1], [1.0]), ([1, 2], [0.0, 1.0]), ([1, 2], [float("nan")] * 2)],
)
def test_short_and_undefined_lines_can_be_drawn(x, y):
    drawing(panel(Series("a", x, y), log_y=True))


def test_long_lines_are_thinned_but_keep_their_last_point():
    x = np.arange(100_000)
    y = np.ones(len(x))
    y[-1] = 1000.0
    content = drawing(panel(Series("a", x, y)))
    assert len(content) < 100_000
    assert "1000" in content  # a tick at the height of the last point

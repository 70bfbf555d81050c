"""Band-limited noise, streams and shapes of the procedural dataset."""

import numpy as np
import pytest

from jaxanom.data.foundry import noise, shapes


def test_noise_has_unit_variance_and_zero_mean():
    surface = noise.canvas(64)
    fields = [noise.noise(np.random.default_rng(i), surface, 16) for i in range(8)]
    # 8 fields of about 19 x 19 free numbers: standard errors near 0.02 and 0.03.
    assert abs(np.mean(fields)) < 0.1
    assert abs(np.var(fields) - 1) < 0.12


def test_noise_shows_the_same_field_at_every_size():
    small = noise.noise(np.random.default_rng(0), noise.canvas(32), 6)
    large = noise.noise(np.random.default_rng(0), noise.canvas(96), 6)
    # The middle of each 3 x 3 block lies on the small grid's sample; float32 sums.
    np.testing.assert_allclose(small, large[1::3, 1::3], atol=1e-5)


def test_noise_too_fine_for_the_canvas_is_zero_but_draws_the_same():
    one, other = np.random.default_rng(0), np.random.default_rng(0)
    assert not noise.noise(one, noise.canvas(16), 40).any()
    assert noise.noise(other, noise.canvas(64), 40).any()
    assert one.random() == other.random()


def test_noise_is_band_limited():
    field = noise.noise(np.random.default_rng(0), noise.canvas(64), 8)
    window = np.hanning(128)[:, None] * np.hanning(128)
    power = np.abs(np.fft.fftshift(np.fft.fft2(field * window))) ** 2
    # Cubic splines fall with the fourth power beyond the lattice's 4 cycles.
    inner = power[64 - 12 : 64 + 13, 64 - 12 : 64 + 13].sum()
    assert inner > 0.999 * power.sum()


def test_streams_depend_on_every_word_and_on_nothing_else():
    here = noise.stream(1, "wood", "test", 3).random(4)
    np.testing.assert_array_equal(here, noise.stream(1, "wood", "test", 3).random(4))
    for words in (
        (2, "wood", "test", 3),
        (1, "cork", "test", 3),
        (1, "wood", "test", 4),
    ):
        assert not np.array_equal(here, noise.stream(*words).random(4))


def test_cells_have_no_gap_on_their_borders_and_tones_by_cell():
    found = noise.cells(np.random.default_rng(0), noise.canvas(64), 6)
    assert found.gap.min() >= 0
    moved = np.abs(np.diff(found.tone, axis=1)) > 0
    # Where the owner changes the two nearest seeds are about equally far; half a
    # drawn pixel is 6 / 256 cells, and distances change at most twice as fast.
    assert found.gap[:, 1:][moved].max() < 4 * 6 / 128


def test_downsampling_keeps_means_and_constants():
    field = np.random.default_rng(0).random((32, 32, 3), np.float32)
    small = noise.downsample(field)
    assert small.shape == (16, 16, 3)
    # Repeated edges weigh border pixels a little more than the rest.
    np.testing.assert_allclose(small.mean(), field.mean(), atol=0.01)
    constant = noise.downsample(np.full((8, 8), 0.5, np.float32))
    np.testing.assert_array_equal(constant, 0.5)


@pytest.mark.parametrize(
    ("distance", "area"),
    [
        (lambda u, v: shapes.circle(u, v, 0.5), np.pi * 0.25),
        (lambda u, v: shapes.box(u, v, 0.5, 0.3), 0.6),
        (lambda u, v: shapes.polygon(u, v, 6, 0.5), 6 * 0.25 * np.tan(np.pi / 6)),
        (
            lambda u, v: shapes.segment(u, v, (-0.3, 0), (0.3, 0), 0.2),
            0.24 + np.pi * 0.04,
        ),
    ],
)
def test_shapes_cover_their_area_in_any_pose(distance, area):
    surface = noise.canvas(64)
    at = shapes.Pose(0.1, -0.05, 0.7, 1.2)
    drawn = shapes.cover(distance(*shapes.local(surface, at)) * at.scale, surface)
    # Antialiased edges: errors of a hundredth of a pixel along the outline.
    np.testing.assert_allclose(drawn.mean() * 4, area * at.scale**2, rtol=0.01)


def test_poses_and_their_inverse_agree():
    at = shapes.Pose(0.2, -0.1, 1.1, 0.8)
    x, y = shapes.outward(at, 0.3, -0.4)
    u, v = shapes.frame(np.float32(x), np.float32(y), at)
    np.testing.assert_allclose([u, v], [0.3, -0.4], atol=1e-6)  # float32


def test_windows_are_cuts_of_the_canvas():
    surface = noise.canvas(32)
    area, near = shapes.window(surface, 0.9, -0.5, 0.3)
    np.testing.assert_array_equal(near.x, surface.x[area])
    assert near.x.min() >= 0.6 - surface.pixel
    assert near.y.min() >= -0.8 - surface.pixel
    assert near.y.max() <= -0.2 + surface.pixel


def test_slopes_face_the_light():
    surface = noise.canvas(16)
    lit = shapes.Light(1.0, 0.0)
    # A ramp that falls towards the light on its right faces it.
    facing = shapes.slope(-surface.x.copy(), surface, lit)
    np.testing.assert_allclose(facing, 1, rtol=1e-4)  # float32 differences


def test_planar_and_packed_colors_mix_alike():
    rng = np.random.default_rng(0)
    below, color = rng.random((2, 8, 8, 3), np.float32)
    alpha = rng.random((8, 8), np.float32)
    np.testing.assert_array_equal(
        shapes.over(below, color, alpha), below + alpha[..., None] * (color - below)
    )
    tone = rng.random((8, 8), np.float32)
    np.testing.assert_array_equal(
        shapes.tinted(color[0, 0], tone), color[0, 0] * tone[..., None]
    )

import numpy as np
import pytest

from jaxanom.models.clip import positions


def table(side=5, width=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(side * side, width)).astype(np.float32)


def test_native_grid_returns_the_table_itself():
    stored = table()
    assert positions.resize(stored, (5, 5)) is stored


@pytest.mark.parametrize("antialias", [False, True])
def test_constant_tables_stay_constant(antialias):
    out = positions.resize(np.full((25, 2), 3.0, np.float32), (7, 11), antialias)
    np.testing.assert_allclose(out, np.full((77, 2), 3.0), rtol=1e-6)


def test_a_ramp_stays_a_ramp_away_from_the_edge_with_a_one_half_only():
    # Keys 1981: cubic convolution reproduces straight lines if and only if a = -0.5.
    ramp = np.arange(10.0)
    centres = (np.arange(20) + 0.5) / 2 - 0.5
    exact = positions.bicubic_matrix(10, 20, -0.5) @ ramp
    np.testing.assert_allclose(exact[4:-4], centres[4:-4], atol=1e-6)
    other = positions.bicubic_matrix(10, 20, -0.75) @ ramp
    assert np.abs(other - centres)[4:-4].max() > 0.04


def test_rows_and_columns_are_not_exchanged():
    square = np.zeros((5, 5, 1), np.float32) + np.arange(5.0)[:, None, None]
    out = positions.resize(square.reshape(25, 1), (9, 4)).reshape(9, 4)
    np.testing.assert_allclose(out, np.repeat(out[:, :1], 4, axis=1), atol=1e-6)
    assert np.ptp(out[:, 0]) > 3


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("grid", [(7, 12), (3, 4)])
def test_parity_with_torch(antialias, grid):
    torch = pytest.importorskip("torch")
    stored = table()
    picture = torch.from_numpy(stored.reshape(1, 5, 5, 3)).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(
        picture, grid, mode="bicubic", align_corners=False, antialias=antialias
    )
    wanted = wanted.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    out = positions.resize(stored, grid, antialias)
    np.testing.assert_allclose(out, wanted, atol=2e-6)  # float32 rounding
    other = positions.resize(stored, grid, not antialias)
    assert np.abs(other - wanted).max() > 0.01  # the two forms do differ


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("grid", [(37, 37), (16, 16), (14, 30)])
def test_parity_with_torch_at_the_sizes_of_published_towers(antialias, grid):
    # ViT-L/14-336 has a grid of 24; 518 px make 37, 224 px make 16.
    torch = pytest.importorskip("torch")
    stored = table(side=24, width=2)
    picture = torch.from_numpy(stored.reshape(1, 24, 24, 2)).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(
        picture, grid, mode="bicubic", align_corners=False, antialias=antialias
    )
    wanted = wanted.permute(0, 2, 3, 1).reshape(-1, 2).numpy()
    out = positions.resize(stored, grid, antialias)
    # torch places its samples in float32: 5e-6 measured.
    np.testing.assert_allclose(out, wanted, atol=1e-5)


def test_a_table_that_is_no_square_is_refused():
    with pytest.raises(ValueError, match="do not form a square"):
        positions.resize(table()[:-1], (5, 5))

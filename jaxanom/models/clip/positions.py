"""Position tables of image towers at sizes they were not stored for."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.errors import UserError
from jaxanom.types import Array


def resize(table: Array, grid: tuple[int, int], antialias: bool = False) -> Array:
    """Interpolates patch positions to another grid of patches.

    Args:
      table: [g * g, D], the stored positions without that of the class token.
      grid: Rows and columns wanted; (g, g) returns the table itself.
      antialias: False is torch's bicubic (a = -0.75, edges repeated), as in
        transformers; True its antialiased form (a = -0.5, renormalised at edges).

    Returns:
      [rows * columns, D].
    """
    side = round(table.shape[0] ** 0.5)
    if side * side != table.shape[0]:
        raise UserError(f"{table.shape[0]} patch positions do not form a square")
    if grid == (side, side):
        return table
    square = table.reshape(side, side, -1)
    if antialias:
        square = jax.image.resize(square, (*grid, square.shape[-1]), "bicubic")
    else:
        rows, columns = (bicubic_matrix(side, size) for size in grid)
        square = jnp.einsum(
            "rg,ch,ghx->rcx", rows, columns, square, precision="highest"
        )
    return square.reshape(grid[0] * grid[1], -1)


def bicubic_matrix(
    size_from: int, size_to: int, sharpness: float = -0.75
) -> np.ndarray:
    """Returns [size_to, size_from]: 1-D cubic convolution between pixel centres.

    Keys 1981, eq. 4, with a = `sharpness`; samples beyond the edge repeat it.
    """
    centre = (np.arange(size_to) + 0.5) * size_from / size_to - 0.5
    taps = np.floor(centre)[:, None].astype(int) + np.arange(-1, 3)  # [size_to, 4]
    distance = np.abs(centre[:, None] - taps)
    near = ((sharpness + 2) * distance - (sharpness + 3)) * distance**2 + 1
    far = sharpness * (((distance - 5) * distance + 8) * distance - 4)
    weights = np.where(distance <= 1, near, far)
    matrix = np.zeros((size_to, size_from))
    rows = np.arange(size_to)[:, None]
    np.add.at(matrix, (rows, taps.clip(0, size_from - 1)), weights)
    return matrix.astype(np.float32)

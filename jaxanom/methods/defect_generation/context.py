"""p(m | background): where a training mask may lie on another image of its product.

arXiv 2411.16767 draws masks from p(m) alone. A mask that follows an object's outline,
or belongs on the object, then lands half on the table where the object lies in another
pose. Here a mask brings its context along: the object map in a ring around it. Of many
flips, turns, scales and shifts, those are possible whose ring agrees with the target's
object map, point by point; one of them is drawn. Nothing is labelled: the object is
what differs from the border of a normal image. On a texture there is no object, and any
place will do.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from jaxanom.diffusion import refinement

NUM_CANDIDATES = 512
AGREES = 0.04
"""Mean difference of two rings, in [0, 1], that counts as agreement."""
DISAGREES = 0.15
"""Rings that differ by more at every place: the mask cannot lie on this image."""
_SIDE = 64  # objects are looked for at about this size
_RING_POINTS = 256
_MARGIN = 0.06  # width of the border and of a ring, as a share of the shorter side
_OBJECT_AREA = (0.03, 0.8)
_TOUCH = 0.1  # share of the border that an object may cover
_ROUND = 1.15  # objects less elongated than this have no axis


class Pose(NamedTuple):
    """Where an object lies.

    Attributes:
      centre: (row, column).
      angle: Of its long axis, radians in [-pi/2, pi/2]; 0 of a round one.
      scale: Square root of its area, in pixels.
      is_round: Whether it has no long axis.
    """

    centre: np.ndarray
    angle: float
    scale: float
    is_round: bool


class Marked(NamedTuple):
    """A training mask on its image.

    Attributes:
      mask: [H, W] bool, not empty.
      objects: [H, W] in [0, 1], what of the image is the object.
    """

    mask: np.ndarray
    objects: np.ndarray


def object_map(image: np.ndarray) -> np.ndarray:
    """Tells the object of an image from what surrounds it.

    The border's colours, as quadratic functions of the place (light falls off), predict
    the background everywhere; what differs from it by more than the border itself does
    is the object, without holes and specks.

    Args:
      image: [H, W, 3] in [0, 1].

    Returns:
      [H, W] float32, 0 or 1 softened over a pixel.
    """
    shape = image.shape[:2]
    step = max(1, min(shape) // _SIDE)
    image = image[::step, ::step]
    height, width = image.shape[:2]
    border = _border(height, width)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1)
    known, colours = terms[border], image[border].astype(np.float64)
    for _ in range(2):  # the second time without what was far off the first time
        weights = np.linalg.lstsq(known, colours, rcond=None)[0]
        off = np.abs(known @ weights - colours).max(1)
        kept = off <= np.quantile(off, 0.9)
        known, colours = known[kept], colours[kept]
    spread = (known @ weights - colours).std(0) + 0.01
    difference = np.linalg.norm((terms @ weights - image) / spread, axis=-1)
    difference = scipy.ndimage.gaussian_filter(difference, 0.7)
    within = np.minimum(difference, np.quantile(difference, 0.99))
    split = refinement.otsu_threshold(jnp.asarray(within), jnp.ones(within.shape, bool))
    least = max(float(split) / 2, float(np.quantile(difference[border], 0.97)))
    solid = scipy.ndimage.binary_closing(
        np.pad(difference > least, 2), np.ones((3, 3)), 2
    )
    solid = scipy.ndimage.binary_fill_holes(solid)[2:-2, 2:-2]
    solid = scipy.ndimage.binary_opening(solid, np.ones((3, 3)))
    regions, count = scipy.ndimage.label(solid)
    if count:
        areas = scipy.ndimage.sum_labels(solid, regions, range(1, count + 1))
        large = 1 + np.flatnonzero(areas >= 0.1 * areas.max())
        solid = np.isin(regions, large)
    solid = np.repeat(np.repeat(solid, step, 0), step, 1)[: shape[0], : shape[1]]
    return scipy.ndimage.gaussian_filter(solid.astype(np.float32), 0.7 * step)


def shows_object(maps: Sequence[np.ndarray]) -> bool:
    """Whether the object maps of a product's normal images show an object in each.

    On a texture the border is like the inside: little differs from it, or much of what
    does reaches the border.
    """
    low, high = _OBJECT_AREA
    areas = [np.mean(one) for one in maps]
    touches = [np.mean(one[_border(*one.shape)]) for one in maps]
    return low < np.median(areas) < high and np.median(touches) < _TOUCH


def pose(objects: np.ndarray) -> Pose:
    """Measures where an object lies by the moments of its map [H, W]."""
    weights = objects / objects.sum()
    places = np.stack(np.indices(objects.shape), -1).astype(np.float64)
    centre = np.tensordot(weights, places, 2)
    away = places - centre
    second = np.einsum("hw,hwi,hwj->ij", weights, away, away)
    values, axes = np.linalg.eigh(second)
    is_round = bool(np.sqrt(values[1] / max(values[0], 1e-9)) < _ROUND)
    row, column = axes[:, 1]
    angle = 0.0 if is_round else float(np.arctan(row / (column or 1e-9)))
    return Pose(centre, angle, float(np.sqrt(objects.sum())), is_round)


def place(
    marked: Marked, target: np.ndarray, rng: np.random.Generator, is_fixed: bool
) -> tuple[np.ndarray, float]:
    """Draws a place for a mask among those whose context agrees.

    Args:
      marked: The mask and the object it was marked on.
      target: [H, W], the object map of the image that it goes on.
      rng: Decides all draws.
      is_fixed: Whether orientation belongs to the product: no flips, no turns.

    Returns:
      (mask [H, W] bool, the difference of the rings in [0, 1]); without any place
      inside the image, the empty mask and 1.
    """
    origin, matrices, centres = _candidates(marked, target, rng, is_fixed)
    inside = _points(marked.mask, rng)
    differences = _read_at(np.ones_like(target), inside, origin, matrices, centres)
    stays = differences.mean(1) >= 0.98
    ring = _ring(marked.mask)
    if not stays.any() or not ring.any():
        return np.zeros_like(marked.mask), 1.0
    points = _points(ring, rng)
    own = marked.objects[tuple(points.T)]
    seen = _read_at(target, points, origin, matrices, centres)
    differences = np.where(stays, np.abs(seen - own).mean(1), 1.0)
    least = float(differences.min())
    possible = np.flatnonzero(differences <= max(AGREES, least + 0.01))
    choice = rng.choice(possible)
    mask = _moved(marked.mask, origin, matrices[choice], centres[choice])
    return mask, float(differences[choice])


def _candidates(
    marked: Marked, target: np.ndarray, rng: np.random.Generator, is_fixed: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (origin [2], matrices [N, 2, 2], centres [N, 2]).

    A point p of the mask goes to matrix (p - origin) + centre. The first half moves the
    mask as its object moved, give or take a little; the rest anywhere.
    """
    count, aligned = NUM_CANDIDATES, np.arange(NUM_CANDIDATES) < NUM_CANDIDATES // 2
    start, end = pose(np.maximum(marked.objects, marked.mask)), pose(target)
    side = min(target.shape)
    if is_fixed:
        turns, flips = np.zeros(count), np.ones(count)
    else:
        flips = rng.choice([-1.0, 1.0], count)
        # A mirrored object lies at the opposite angle.
        turns = end.angle - flips * start.angle + np.pi * rng.integers(2, size=count)
        turns += rng.normal(0, np.deg2rad(5), count)
        free = rng.uniform(0, 2 * np.pi, count)
        anyhow = start.is_round or end.is_round
        turns = np.where(aligned & (not anyhow), turns, free)
    scales = np.clip(end.scale / start.scale, 0.67, 1.5)
    scales = scales * np.exp(rng.normal(0, 0.04, count))
    cos, sin = np.cos(turns), np.sin(turns)
    # Angles grow from columns to rows; a flip mirrors the rows first.
    rows = np.stack([flips * cos, sin], -1)
    columns = np.stack([-flips * sin, cos], -1)
    matrices = np.stack([rows, columns], -2)
    matrices = scales[:, None, None] * matrices
    middle = np.argwhere(marked.mask).mean(0)
    follows = end.centre + np.einsum("nij,j->ni", matrices, middle - start.centre)
    follows += rng.normal(0, 0.03 * side, (count, 2))
    anywhere = rng.uniform(0, 1, (count, 2)) * target.shape
    return middle, matrices, np.where(aligned[:, None], follows, anywhere)


def _read_at(
    values: np.ndarray,
    points: np.ndarray,
    origin: np.ndarray,
    matrices: np.ndarray,
    centres: np.ndarray,
) -> np.ndarray:
    """Reads values [H, W] where points [M, 2] go, [N, M]; 0 outside."""
    moved = np.einsum("nij,mj->nmi", matrices, points - origin) + centres[:, None]
    cells = np.rint(moved).astype(int)
    inside = ((cells >= 0) & (cells < values.shape)).all(-1)
    cells = np.clip(cells, 0, np.array(values.shape) - 1)
    return np.where(inside, values[cells[..., 0], cells[..., 1]], 0.0)


def _moved(
    mask: np.ndarray, origin: np.ndarray, matrix: np.ndarray, centre: np.ndarray
) -> np.ndarray:
    """Moves a mask [H, W] by an affine map, bilinear; a pixel counts from half on."""
    inverse = np.linalg.inv(matrix)
    shares = scipy.ndimage.affine_transform(
        mask.astype(np.float32), inverse, origin - inverse @ centre, order=1
    )
    moved = shares >= 0.5
    return moved if moved.any() else shares > 0


def _points(region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws places of a region [H, W], at most `_RING_POINTS`, [M, 2]."""
    points = np.argwhere(region)
    if len(points) > _RING_POINTS:
        points = points[rng.choice(len(points), _RING_POINTS, replace=False)]
    return points


def _ring(mask: np.ndarray) -> np.ndarray:
    width = max(2, round(_MARGIN * min(mask.shape)))
    return scipy.ndimage.binary_dilation(mask, np.ones((3, 3)), width) & ~mask


def _border(height: int, width: int) -> np.ndarray:
    margin = max(2, round(_MARGIN * min(height, width)))
    border = np.ones((height, width), bool)
    border[margin:-margin, margin:-margin] = False
    return border

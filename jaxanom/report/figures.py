"""Pictures and plots as `data:` addresses, so that a page needs no other file.

Pictures are numpy arrays: [H, W, 3] or [H, W], uint8 or float in [0, 1]. Plots are SVG
drawn by matplotlib, which is imported here only and when the first one is drawn. Their
ink follows the reader's light or dark setting.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from jaxanom.errors import UserError

OUTLINE = (0, 255, 213)
# Legible on white and on near-black (contrast above 3:1); told apart by dashes as well.
LINE_COLORS = ("#2f7fd1", "#d55e00", "#00966e", "#a566b8", "#a87b00", "#7a7f87")
LINE_STYLES = ("-", "--", "-.", ":")
_INK = "#010203"  # stands for the text colour until the SVG is finished
_FAINT = "#040506"
_SVG_STYLE = (
    "<style>svg{color:#1c1f24;--faint:#d9dde3}"
    "@media(prefers-color-scheme:dark){svg{color:#e6e8eb;--faint:#343a44}}</style>"
)
PLOT_POINTS = 400


class Series(NamedTuple):
    """One line of a plot.

    Attributes:
      name: in the legend; "" leaves it out.
      x, y: points.
      steps: holds each height to the left of its point.
      dots: marks the points and draws no line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    steps: bool = False
    dots: bool = False


class Panel(NamedTuple):
    """One plot.

    Attributes:
      title: shown above by the page, not in the drawing.
      x_label, y_label: what the axes measure.
      series: lines, in order of colour.
      unit: both axes span [0, 1].
      log_y: logarithmic heights; used if all are positive.
      log_x: doublings of x are alike, and points are marked: for counts.
      diagonal: draws the line of chance.
      limit: shades x beyond it.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    unit: bool = False
    log_y: bool = False
    log_x: bool = False
    diagonal: bool = False
    limit: float | None = None


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Converts a picture to uint8; float values are clipped to [0, 1]."""
    image = np.asarray(image)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise UserError(f"picture has shape {image.shape}; wanted [H, W(, 3)]")
    if image.dtype == np.uint8:
        return image
    clean = np.nan_to_num(image.astype(np.float32), nan=0.0)
    return np.round(np.clip(clean, 0, 1) * 255).astype(np.uint8)


def picture_uri(image: np.ndarray, max_side: int = 384) -> str:
    """Encodes a picture: grey ones as PNG (exact), coloured ones as WebP.

    Args:
      image: see the top of this file.
      max_side: larger pictures are reduced to it, keeping their proportions.
    """
    pixels = to_uint8(image)
    picture = Image.fromarray(pixels)
    if max(picture.size) > max_side:
        ratio = max_side / max(picture.size)
        size = tuple(max(1, round(side * ratio)) for side in picture.size)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if pixels.ndim == 2:
        picture.save(buffer, "PNG", optimize=True)
        return _uri("image/png", buffer.getvalue())
    picture.save(buffer, "WEBP", quality=88, method=4)
    return _uri("image/webp", buffer.getvalue())


def heat(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Colours [H, W] values by a map whose lightness grows evenly; uint8 [H, W, 3]."""
    import matplotlib

    colors = matplotlib.colormaps["inferno"](_relative(values, low, high))
    return to_uint8(colors[..., :3])


def overlay(
    image: np.ndarray, anomaly_map: np.ndarray, low: float, high: float
) -> np.ndarray:
    """Lays a heat map over an image, the more opaque the higher; uint8 [H, W, 3].

    Args:
      image: [H, W, 3].
      anomaly_map: [H, W].
      low, high: values without and with full colour; share them within a figure.
    """
    opacity = 0.85 * _relative(anomaly_map, low, high)[..., None]
    base = to_uint8(image) / 255
    return to_uint8(base * (1 - opacity) + heat(anomaly_map, low, high) / 255 * opacity)


def outline(
    image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int] = OUTLINE
) -> np.ndarray:
    """Draws a line just outside the mask, 1/100 of the image wide; uint8 [H, W, 3]."""
    region = np.asarray(mask) >= 0.5
    width = max(1, round(max(region.shape) / 100))
    around = ndimage.binary_dilation(region, np.ones((3, 3)), iterations=width)
    drawn = to_uint8(image).copy()
    drawn[around & ~region] = color
    return drawn


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Heat map of the mean absolute difference over channels, full colour at 0.5."""
    gap = np.abs(to_uint8(first) / 255 - to_uint8(second) / 255).mean(axis=2)
    return heat(gap, 0.0, 0.5)


def latent_picture(latents: np.ndarray) -> np.ndarray:
    """Shows the first three channels of latents [h, w, C]: grey is 0, ±3 the ends."""
    latents = np.asarray(latents, np.float32)
    channels = np.resize(np.arange(min(3, latents.shape[2])), 3)
    return to_uint8(latents[..., channels] / 6 + 0.5)


def grid(images: Sequence[np.ndarray], num_columns: int, gap: int = 4) -> np.ndarray:
    """Joins coloured pictures of one size into one, row by row, on white."""
    pictures = [to_uint8(image) for image in images]
    if len({picture.shape for picture in pictures}) != 1:
        raise UserError("a grid needs pictures of one size, and at least one")
    height, width, _ = pictures[0].shape
    num_rows = -(-len(pictures) // num_columns)
    shape = (num_rows * (height + gap) - gap, num_columns * (width + gap) - gap, 3)
    joined = np.full(shape, 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = divmod(number, num_columns)
        top, left = top * (height + gap), left * (width + gap)
        joined[top : top + height, left : left + width] = picture
    return joined


def plot_uri(panel: Panel) -> str:
    """Draws a panel as SVG in the page's own colours; equal panels give equal bytes."""
    buffer = io.StringIO()
    options = {"format": "svg", "transparent": True, "metadata": {"Date": None}}
    _save([panel], buffer, _INK, _FAINT, **options)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    end = drawing.index(">") + 1
    drawing = drawing[:end] + _SVG_STYLE + drawing[end:]
    drawing = drawing.replace(_INK, "currentColor").replace(_FAINT, "var(--faint)")
    return _uri("image/svg+xml", drawing.encode())


def write_plot(panel: Panel, path: Path) -> None:
    """Draws a panel as PNG on white, for pages that show no SVG of their own."""
    write_plots([panel], path)


def write_plots(panels: Sequence[Panel], path: Path) -> None:
    """Draws panels side by side, as `write_plot` draws one."""
    _save(panels, path, "#1c1f24", "#d9dde3", format="png", dpi=160, facecolor="white")


def _save(
    panels: Sequence[Panel], target: Any, ink: str, faint: str, **options: Any
) -> None:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = {
        "svg.hashsalt": "jaxanom",
        "font.size": 9,
        "text.color": ink,
        "axes.labelcolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.edgecolor": ink,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(3.9 * len(panels), 3.1), layout="constrained")
        FigureCanvasAgg(figure)
        for number, panel in enumerate(panels):
            _draw(figure.add_subplot(1, len(panels), number + 1), panel, faint)
        figure.savefig(target, **options)


def _draw(axes: Any, panel: Panel, faint: str) -> None:
    """Draws the lines of a panel."""
    if panel.limit is not None:
        axes.axvspan(panel.limit, 1, color=faint, alpha=0.6, linewidth=0)
    if panel.diagonal:
        axes.plot([0, 1], [0, 1], color=LINE_COLORS[-1], linewidth=0.8, zorder=1)
    for number, series in enumerate(panel.series):
        x, y = np.asarray(series.x, float), np.asarray(series.y, float)
        stride = max(1, -(-len(x) // PLOT_POINTS))
        axes.plot(
            np.append(x[:-1:stride], x[-1:]),
            np.append(y[:-1:stride], y[-1:]),
            label=_label(series.name),
            color=LINE_COLORS[number % len(LINE_COLORS)],
            linestyle=(
                "none" if series.dots else LINE_STYLES[number % len(LINE_STYLES)]
            ),
            linewidth=1.8,
            drawstyle="steps-pre" if series.steps else "default",
            marker="o" if len(x) == 1 or series.dots or panel.log_x else None,
            markersize=3 if series.dots else 4,
        )
    heights = np.concatenate([np.asarray(s.y, float) for s in panel.series] or [[]])
    heights = heights[np.isfinite(heights)]
    if panel.log_y and heights.size and heights.min() > 0:
        axes.set_yscale("log")
    if panel.log_x:
        places = sorted({value for series in panel.series for value in series.x})
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{value:g}" for value in places], minor=False)
        axes.set_xticks([], minor=True)
    if panel.unit:
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.03))
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(True, color=faint, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if any(series.name for series in panel.series):
        axes.legend(frameon=False, fontsize=8)


def _label(name: str) -> str:
    """Keeps matplotlib from reading formulas, and from hiding names that begin "_"."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def _relative(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Maps low..high to 0..1; a range without width to 0."""
    values = np.asarray(values, np.float32)
    if high <= low:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0, 1)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

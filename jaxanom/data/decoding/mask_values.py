"""Which pixels of a decoded mask file are defects, whatever the file's form."""

import numpy as np
from PIL import Image

_MOST_LABELS = 15
"""Integers up to here are numbers of defects, not shades of grey."""


def binary(mask: Image.Image) -> np.ndarray:
    """Returns bool [H, W], True = defect.

    A pixel is a defect where its brightest channel is at least half of the mask's
    maximum: shades come from lossy files and soft edges. Of a palette, or of integers
    up to 15, every non-zero entry is one: they number the kinds of defect. A mask of
    one colour whose transparency varies is its alpha channel.
    """
    colours, alpha = channels(mask)
    values = colours.max(axis=-1)
    if alpha_decides(colours, alpha):
        values = alpha
    elif mask.mode in ("P", "PA") or values.max() <= _MOST_LABELS:
        return values != 0
    return (values > 0) & (values >= values.max() / 2)


def channels(mask: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns colours [H, W, C] and alpha [H, W], None of a file without one."""
    if mask.mode in ("P", "PA"):
        # The colours count, not the indices: entry 0 may be any colour.
        mask = mask.convert("RGBA" if mask.has_transparency_data else "RGB")
    values = np.asarray(mask)
    values = values[..., None] if values.ndim == 2 else values
    if mask.mode in ("LA", "RGBA"):
        return values[..., :-1], values[..., -1]
    return values, None


def alpha_decides(colours: np.ndarray, alpha: np.ndarray | None) -> bool:
    """Whether only the transparency tells the pixels apart."""
    if alpha is None or np.ptp(alpha) == 0:
        return False
    return bool((colours == colours[:1, :1]).all())

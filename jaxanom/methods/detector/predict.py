"""Anomaly map and image score of the detector."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxanom.contracts import PredictFn
from jaxanom.types import Array, Predictions

_REFERENCE_WINDOW = 21
_REFERENCE_SIZE = 256


def score_window(image_size: tuple[int, int]) -> int:
    """Returns the side of the pooling window: 21 px at 256 px, in proportion.

    The nearest odd number to 21/256 of the shorter side, at least 3; odd, so that the
    window has a middle, and proportional, so that a defect of the same share of the
    image is judged the same at every resolution.
    """
    side = _REFERENCE_WINDOW * min(image_size) / _REFERENCE_SIZE
    return max(3, 2 * round((side - 1) / 2) + 1)


def image_scores(anomaly_map: Array) -> Array:
    """Returns the greatest windowed mean of each map, [B, H, W] -> [B].

    A mean, so that one hot pixel is not a defect. Outside the image counts as normal
    (0), as in the released code: a defect cut by the border weighs what is visible.
    """
    window = score_window(anomaly_map.shape[1:3])
    pooled = anomaly_map[..., None]  # [B, H, W, 1]
    # A square mean is a mean of means; two passes cost 2n, not n**2.
    for shape in ((window, 1), (1, window)):
        pooled = nn.avg_pool(pooled, shape, padding="SAME", count_include_pad=True)
    return jnp.max(pooled, axis=(1, 2, 3))


def make_predict(segmenter: nn.Module) -> PredictFn:
    """Returns predict: defect probability per pixel, and the score above."""

    def predict(params, frozen, batch, key):
        del frozen, key
        logits = segmenter.apply({"params": params}, batch["image"])  # [B, H, W, 2]
        anomaly_map = jax.nn.softmax(logits, axis=-1)[..., 1]
        return Predictions(anomaly_map, image_scores(anomaly_map))

    return predict

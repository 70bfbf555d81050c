"""Aliases and field names shared by every package.

Batches are plain dicts of arrays, so that they place, pad and scan like any tree:

| key           | shape        | meaning                                        |
|---------------|--------------|------------------------------------------------|
| `image`       | [B, H, W, 3] | float32 in [0, 1]                              |
| `mask`        | [B, H, W]    | float32, 1 = defect pixel                      |
| `label`       | [B] int32    | 1 = the image holds a defect                   |
| `category_id` | [B] int32    | index into `Dataset.categories`                |
| `defect_id`   | [B] int32    | index into `Dataset.defect_types`; 0 is "good" |
| `index`       | [B] int32    | row of the source the example came from        |
| `valid`       | [B] bool     | False on padding rows                          |
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Array = jax.Array
PRNGKey = jax.Array
Params = Mapping[str, Any]
Frozen = Mapping[str, Any]
Batch = dict[str, Array]
Metrics = dict[str, Array]

NoiseFn = Callable[[Array, Array], Array]
"""(latents [B, h, w, C], timesteps [B]) -> noise_pred [B, h, w, C]."""


class ClassPredictions(NamedTuple):
    """What a classifier says of a batch.

    Attributes:
      probability: [B, K] float32, rows sum to one.
      entropy: [B], of the mean over posterior draws, in nats.
      mutual_information: [B], the part of it on which the draws disagree.
      logit_variance: [B, K] over the draws.
    """

    probability: Array
    entropy: Array
    mutual_information: Array
    logit_variance: Array


class Predictions(NamedTuple):
    """What a detector says of a batch; higher is more anomalous.

    Attributes:
      anomaly_map: [B, H, W] float32.
      image_score: [B] float32.
      anomaly_map_std, image_score_std: standard deviations over posterior draws, of the
        same shapes; None of a method without a posterior.
      score_parts: [B, K] float32, what `Method.rescale` makes scores of; None of a
        method without it.
      classes: What a method that tells classes apart says of them; None of the others.
    """

    anomaly_map: Array
    image_score: Array
    anomaly_map_std: Array | None = None
    image_score_std: Array | None = None
    score_parts: Array | None = None
    classes: ClassPredictions | None = None

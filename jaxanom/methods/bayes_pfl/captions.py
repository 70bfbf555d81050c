"""Baseline: plain CLIP between two captions, a normal and an abnormal one.

Nothing is trained. The image score compares the pooled feature with both captions, the
map every patch token of the last layer, normed and projected as the class token is;
both at CLIP's own temperature, upsampled, smoothed and joined as the method's are.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.contracts import PredictFn
from jaxanom.methods.bayes_pfl import heads, sentences, settings
from jaxanom.models import clip
from jaxanom.models.tokenizer import Tokenizer
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Array, Frozen, Params, Predictions, PRNGKey


def make_init(
    tower: clip.TextTower,
    params: Params,
    tokenizer: Tokenizer,
    categories: tuple[str, ...],
    options: settings.Options,
) -> Callable[[PRNGKey], tuple[Params, Frozen]]:
    """Returns init: key -> (nothing to train, {"clip", "captions"}).

    Args:
      tower: of the text.
      params: of a whole CLIP.
      tokenizer: of its vocabulary.
      categories: in the order of `category_id`.
      options: captions and the wording of names are read.
    """

    def init(key: PRNGKey) -> tuple[Params, Frozen]:
        del key
        names = [sentences.class_name(name, options.names) for name in categories]
        texts = [
            caption.format(category=name)
            for name in names
            for caption in (options.normal_caption, options.abnormal_caption)
        ]
        ids = tokenizer.encode(texts, tower.config.max_position_embeddings)
        part = {key: params[key] for key in ("text_model", "text_projection")}
        encode = meshes.bound(lambda part, ids: tower.apply({"params": part}, ids))
        found = jax.jit(encode)(part, np.asarray(ids))
        features = clip.normalise(found.text_features)  # [2 C, D]
        pairs = features.reshape(len(categories), 2, -1)
        return {}, {"clip": params, "captions": pairs}

    return init


def make_predict(
    tower: clip.ImageTower,
    image_size: tuple[int, int],
    finish: Callable[[Array, Array, Array], Predictions],
) -> PredictFn:
    """Returns predict.

    Args:
      tower: of the image.
      image_size: of the maps.
      finish: of `predict.make_finish`.
    """
    grid = heads.grid_of(image_size, tower.config.patch_size)

    def predict(params: Params, frozen: Frozen, batch: Any, key: PRNGKey):
        del params, key
        variables = {"params": frozen["clip"]}
        found = tower.apply(variables, batch["image"])
        dense = tower.apply(variables, found.patch_tokens, method="project_tokens")
        dense = clip.normalise(dense)  # [N, L, D]
        pooled = clip.normalise(found.image_features)  # [N, D]
        normal, abnormal = jnp.moveaxis(frozen["captions"][batch["category_id"]], 1, 0)
        # Two-way softmax: the sigmoid of the difference of both cosines.
        towards = jnp.exp(frozen["clip"]["logit_scale"]) * (abnormal - normal)  # [N, D]
        scores = jax.nn.sigmoid(jnp.einsum("nd,nd->n", pooled, towards))
        margins = heads.square(jnp.einsum("nld,nd->nl", dense, towards), grid)
        maps = jax.nn.sigmoid(heads.upsample(margins, image_size))  # [N, H, W]
        return finish(scores[:, None], maps[:, None], batch["category_id"])

    return predict

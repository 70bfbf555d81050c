"""Plain CLIP between two captions, a normal and an abnormal one; nothing is trained.

The image score compares the pooled feature with both captions, the map every patch
token of the last layer, normed and projected as the class token is; both at CLIP's own
temperature. A baseline, and with `caption_share` a part of the method's own answer.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.contracts import PredictFn
from jaxanom.methods.bayes_pfl import features, heads, sentences
from jaxanom.methods.bayes_pfl import options as settings
from jaxanom.models.clip import towers
from jaxanom.models.clip.tokenizer import Tokenizer
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Array, Frozen, Params, Predictions, PRNGKey


def pairs(
    tower: towers.TextTower,
    params: Params,
    tokenizer: Tokenizer,
    categories: tuple[str, ...],
    options: settings.Options,
) -> Array:
    """Returns the text features of both captions of every category, [C, 2, D].

    Args:
      tower: The text tower.
      params: A whole CLIP's.
      tokenizer: Knows its vocabulary.
      categories: In the order of `category_id`.
      options: Its captions and its wording of names are read.
    """
    names = [sentences.class_name(name, options.names) for name in categories]
    texts = [
        caption.format(category=name)
        for name in names
        for caption in (options.normal_caption, options.abnormal_caption)
    ]
    ids = tokenizer.encode(texts, tower.config.max_position_embeddings)
    part = {key: params[key] for key in ("text_model", "text_projection")}
    encode = meshes.bound(lambda part, ids: tower.apply({"params": part}, ids))
    encoded = jax.jit(encode)(part, np.asarray(ids))
    return towers.normalise(encoded.text_features).reshape(len(categories), 2, -1)


def compare(
    tower: towers.ImageTower,
    frozen: Frozen,
    seen: features.Features,
    category_id: Array,
    image_size: tuple[int, int],
) -> tuple[Array, Array]:
    """Abnormal probabilities: of images [N], of their pixels [N, H, W].

    Args:
      tower: The image tower.
      frozen: "clip", and "captions" as `pairs` makes them.
      seen: Features, the last of whose layers is the tower's last.
      category_id: [N].
      image_size: (H, W).
    """
    variables = {"params": frozen["clip"]}
    last = seen.patch_tokens[:, -1]
    dense = tower.apply(variables, last, method="project_tokens")
    dense = towers.normalise(dense)  # [N, L, D]
    pooled = towers.normalise(seen.image_features)  # [N, D]
    normal, abnormal = jnp.moveaxis(frozen["captions"][category_id], 1, 0)
    # Two-way softmax: the sigmoid of the difference of both cosines.
    towards = jnp.exp(frozen["clip"]["logit_scale"]) * (abnormal - normal)  # [N, D]
    scores = jax.nn.sigmoid(jnp.einsum("nd,nd->n", pooled, towards))
    grid = heads.grid_of(image_size, tower.config.patch_size)
    margins = heads.square(jnp.einsum("nld,nd->nl", dense, towards), grid)
    return scores, jax.nn.sigmoid(heads.upsample(margins, image_size))


def make_predict(
    tower: towers.ImageTower,
    image_size: tuple[int, int],
    finish: Callable[[Array, Array, Array], Predictions],
) -> PredictFn:
    """Returns the baseline's predict.

    Args:
      tower: The image tower.
      image_size: Size of the maps.
      finish: See `predict.make_finish`.
    """
    last = (tower.config.num_hidden_layers,)

    def predict(params: Params, frozen: Frozen, batch: Any, key: PRNGKey):
        del params, key
        seen = features.of_batch(tower, frozen, batch, last)
        scores, maps = compare(tower, frozen, seen, batch["category_id"], image_size)
        return finish(scores[:, None], maps[:, None], batch["category_id"])

    return predict

"""Personal tokens: their data, and the whole training as one `lax.scan`.

A token is a few vectors and every weight around it is frozen, so hundreds of tokens
(category x shots x seed) train side by side: `invert_all` maps the scan over a leading
axis, with the towers' weights held once, and shards that axis over devices. No device
has to speak to another. The common trainer runs the same loss as phase "invert" when a
run has to log, stop and resume; see `phase_loss`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxanom import trees
from jaxanom.contracts import LossFn
from jaxanom.errors import UserError
from jaxanom.methods.adp import model
from jaxanom.methods.adp.memory import crops, windows
from jaxanom.methods.adp.objective import TokenData
from jaxanom.models.clip import prompts
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Array, Metrics, Params, PRNGKey

TokenLoss = Callable[[Array, TokenData, Params, PRNGKey], tuple[Array, Metrics]]
SUPPORT_TEMPERATURE = 0.1
ENCODE_BATCH = 16


class Trace(NamedTuple):
    """What a training leaves behind: per step the loss and its terms, [S]."""

    loss: Array
    terms: Metrics


def invert(
    loss_fn: TokenLoss,
    start: Array,
    data: TokenData,
    params: Params,
    key: PRNGKey,
    num_steps: int,
    learning_rate: float = 5e-3,
) -> tuple[Array, Trace]:
    """Learns one token.

    Args:
      loss_fn: What `objective.make_loss` returned.
      start: [n, D].
      data: What this token is learnt from.
      params: Weights of the towers; no gradient to them is formed.
      key: Step s draws from `fold_in(key, s)`.
      num_steps: S.
      learning_rate: Rate of Adam.

    Returns:
      (vectors [n, D] float32, trace).
    """
    tx = optax.adam(learning_rate)

    def step(carried, number):
        vectors, opt_state = carried
        (loss, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            vectors, data, params, jax.random.fold_in(key, number)
        )
        updates, opt_state = tx.update(grads, opt_state, vectors)
        return (optax.apply_updates(vectors, updates), opt_state), Trace(loss, terms)

    begin = (start, tx.init(start))
    (vectors, _), trace = jax.lax.scan(step, begin, jnp.arange(num_steps))
    return vectors, trace


def invert_all(
    loss_fn: TokenLoss,
    start: Array,
    data: TokenData,
    params: Params,
    keys: PRNGKey,
    num_steps: int,
    learning_rate: float = 5e-3,
    mesh: Mesh | None = None,
) -> tuple[Array, Trace]:
    """Learns T tokens side by side, as one compiled program.

    Args:
      loss_fn, params, num_steps, learning_rate: see `invert`.
      start: [T, n, D].
      data: leaves [T, ...].
      keys: [T].
      mesh: T is split over its axis `particle`; None leaves all on one device.

    Returns:
      (vectors [T, n, D], trace with leaves [T, S]).
    """

    def all_tokens(start, data, params, keys):
        def one(start, data, key):
            return invert(loss_fn, start, data, params, key, num_steps, learning_rate)

        return jax.vmap(one)(start, data, keys)

    if mesh is None:
        return jax.jit(meshes.bound(all_tokens))(start, data, params, keys)
    split, whole = NamedSharding(mesh, P("particle")), NamedSharding(mesh, P())
    start, data, keys = jax.device_put((start, data, keys), split)
    return jax.jit(meshes.bound(all_tokens, mesh), out_shardings=split)(
        start, data, jax.device_put(params, whole), keys
    )


def phase_loss(loss_fn: TokenLoss) -> LossFn:
    """Makes phase "invert" of the common trainer: the sum of all tokens' losses.

    The gradient of a sum over the leading axis is the stack of every token's own
    gradient, as with particles, and the axis is sharded by the same rule: tokens live
    in `params["particles"]`. The batch is not read: a token's few shots are on the
    device already, encoded once, and the crop of a step is drawn by key.
    """

    def loss(params, frozen, batch, key):
        del batch
        tokens = params["particles"]["tokens"]
        keys = token_keys(key, tokens.shape[0])
        data = TokenData(**frozen["particles"])
        values, terms = jax.vmap(loss_fn, in_axes=(0, 0, None, 0))(
            tokens, data, frozen["towers"], keys
        )
        return jnp.sum(values), jax.tree.map(jnp.mean, terms)

    return loss


def token_keys(key: PRNGKey, count: int) -> PRNGKey:
    """Returns one key a token, [T]."""
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(count))


def support(features: np.ndarray, shot_of: np.ndarray) -> np.ndarray:
    """Weighs parts by how well the other shots confirm them, [W], sum 1.

    s_w is the mean over the other shots of max_w' cos(f_w, f_w'), through a softmax:
    details that the shots share count more than incidental ones. One shot has nobody to
    confirm it, and its parts count alike.

    Args:
      features: [W, F] unit.
      shot_of: [W] int, which shot a part is of.
    """
    shots = np.unique(shot_of)
    if len(shots) < 2:
        return np.full(len(features), 1 / len(features), np.float32)
    cosine = features @ features.T
    best = np.stack([cosine[:, shot_of == shot].max(1) for shot in shots], 1)
    own = shot_of[:, None] == shots[None]
    mean = np.where(own, 0.0, best).sum(1) / (len(shots) - 1)
    weights = np.exp((mean - mean.max()) / SUPPORT_TEMPERATURE)
    return (weights / weights.sum()).astype(np.float32)


class Encoders(NamedTuple):
    """Jitted towers, made once and shared by all tokens; weights are arguments.

    Attributes:
      moments: (params, image [B, H, W, 3]) -> (mean, std) [B, h, w, C].
      crop: (params, image) -> unit features [B, F] of whole crops.
      parts: (params, image) -> unit features [B, W, F], see `windows.flatten`.
      sentences: (params, layout, vectors) -> unit features [..., F].
    """

    moments: Callable[..., tuple[Array, Array]]
    crop: Callable[..., Array]
    parts: Callable[..., Array]
    sentences: Callable[..., Array]


def encoders(towers: model.Towers, sizes: Sequence[int]) -> Encoders:
    """Makes the encoders; `sizes` are windows the regulariser reads beside crops."""

    def moments(params, image):
        latents = model.moments(towers, params, image)
        if latents.log_variance is None:
            return latents.mean, jnp.zeros_like(latents.mean)
        return latents.mean, jnp.exp(0.5 * latents.log_variance)

    def crop(params, image):
        return windows.features(towers, params, image, ()).whole

    def parts(params, image):
        return windows.flatten(windows.features(towers, params, image, sizes))

    def sentences(params, layout, vectors):
        return model.text_features(towers, params, layout, vectors)

    functions = (moments, crop, parts, sentences)
    return Encoders(*(jax.jit(meshes.bound(function)) for function in functions))


def prepare(
    encode: Encoders,
    params: Params,
    class_layouts: tuple[prompts.Layout, prompts.Layout],
    pyramid: crops.Pyramid,
    shots: tuple[np.ndarray, np.ndarray],
    start: Array,
    sizes: tuple[int, int],
    num_slots: int,
) -> TokenData:
    """Encodes the shots of one token, once.

    Args:
      encode: see `encoders`.
      params: weights of the towers.
      class_layouts: (normal, anomalous), [S, M] around the class word.
      pyramid: crops to encode.
      shots: ([K, H, W, 3] float32 in [0, 1], [K] int: which real shot each is of);
        turned copies count as shots here.
      start: [n, D].
      sizes: sides of the images that the autoencoder and CLIP are given.
      num_slots: shots to pad to.

    Raises:
      UserError: more shots than slots.
    """
    images, owners = shots
    if len(images) > num_slots:
        raise UserError(f"{len(images)} shots do not fit {num_slots} slots")
    moments, features = [], []
    for image in images:
        cut = crops.crop(image, pyramid.boxes, sizes[0])
        moments.append(
            trees.batched(lambda x: encode.moments(params, x), ENCODE_BATCH, cut)
        )
        small = crops.crop(image, pyramid.boxes, sizes[1])
        whole = encode.parts(params, small[:1])[0]
        parts = trees.batched(lambda x: encode.crop(params, x), ENCODE_BATCH, small)
        features.append(np.concatenate([whole, parts[1:]]))
    per_shot, width = features[0].shape
    weights = support(np.concatenate(features), np.repeat(owners, per_shot))
    missing = num_slots - len(images)

    def padded(rows: Sequence[np.ndarray]) -> Array:
        return jnp.asarray(np.stack([*rows, *[np.zeros_like(rows[0])] * missing]))

    return TokenData(
        mean=padded([mean for mean, _ in moments]),
        std=padded([std for _, std in moments]),
        num_shots=jnp.int32(len(images)),
        features=padded(features).reshape(-1, width),
        weights=jnp.asarray(np.pad(weights, (0, missing * per_shot))),
        start=start,
        class_normal=encode.sentences(params, class_layouts[0], start),
        class_anomalous=encode.sentences(params, class_layouts[1], start),
        limit=jnp.float32(model.largest_norm(model.token_table(params))),
    )

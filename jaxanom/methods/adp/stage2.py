"""Further steps on S*, so that windows under synthetic defects look anomalous.

The most literal reading of "anomaly-aware prompts", as a survey describes the paper
(arXiv 2407.21794, section 5.2.2); off by default. The term is the counterpart of
`objective.state`: normal and anomalous sentences change places.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.errors import UserError
from jaxanom.methods.adp import inversion, model, objective, windows
from jaxanom.parallel import mesh as meshes
from jaxanom.types import Array, Frozen, PRNGKey

LOOK_BATCH = 8
NUM_WINDOWS = 256
"""Most windows of synthetic defects that are read."""
LEAST_COVERAGE = 0.5


def go_on(
    loss_fn: inversion.TokenLoss,
    encode: inversion.Encoders,
    vectors: Array,
    frozen: Frozen,
    number: int,
    drawn: tuple[np.ndarray, np.ndarray],
    looked_at: tuple[int, tuple[int, ...]],
    num_steps: int,
    key: PRNGKey,
) -> Array:
    """Trains one token further.

    Args:
      loss_fn: token loss with the term of stage 2.
      encode: see `inversion.encoders`.
      vectors: [n, D].
      frozen: of the method; its `particles` hold the token's data.
      number: which category.
      drawn: accepted anomalies [M, H, W, 3] and their masks [M, H, W].
      looked_at: CLIP's grid, and the window sizes `encode.parts` reads.
      num_steps: of the optimiser.
      key: of the steps.

    Returns:
      [n, D]; `vectors` where no window lies under a defect.

    Raises:
      UserError: the run trained no token.
    """
    images, masks = drawn
    towers = frozen["towers"]
    if "particles" not in frozen:
        raise UserError(
            f"config.adp.stage2_steps={num_steps} goes on with a trained token; set "
            "config.phases.invert.num_steps above 0"
        )
    if not len(images):
        return vectors
    features = model.batched(
        lambda rows: encode.parts(towers, rows), LOOK_BATCH, images
    )
    chosen = features[windows.coverage(masks, *looked_at) >= LEAST_COVERAGE]
    if not len(chosen):
        return vectors
    picked = np.random.default_rng(number).permutation(len(chosen))[:NUM_WINDOWS]
    room = NUM_WINDOWS - len(picked)
    weights = np.pad(np.full(len(picked), 1 / len(picked), np.float32), (0, room))
    data = objective.TokenData(
        **jax.tree.map(lambda leaf: leaf[number], frozen["particles"])
    )._replace(
        anomalous=jnp.asarray(np.pad(chosen[picked], ((0, room), (0, 0)))),
        anomalous_weights=jnp.asarray(weights),
    )

    def learn(start, data, towers, key):
        return inversion.invert(loss_fn, start, data, towers, key, num_steps)[0]

    return jax.jit(meshes.bound(learn))(vectors, data, towers, key)

"""What a block keeps for its backward pass: policies by name."""

import flax.linen as nn
import jax

from jaxanom.errors import UserError

POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "weight_dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""Name of `config.*.remat` -> what a recomputed block may keep.

"none" recomputes nothing; "full" keeps a block's inputs only: least memory, about a
third more arithmetic; "dots" keeps every matrix product, "weight_dots" those with
weights but not those of attention, and both recompute the cheap rest.
"""


def block(module: type[nn.Module], name: str) -> type[nn.Module]:
    """Returns a block's class, recomputed in the backward pass as the policy says.

    Parameter paths stay as they are; `name` is one of `POLICIES`.
    """
    policy = POLICIES[resolve(name)]
    return module if policy is None else nn.remat(module, policy=policy)


def resolve(name: str) -> str:
    """Returns the policy's name; UserError where there is none of that name."""
    if name not in POLICIES:
        raise UserError(
            f"remat={name!r} (config.model.remat, config.bayes_pfl.remat); choose one "
            f"of {tuple(POLICIES)}"
        )
    return name

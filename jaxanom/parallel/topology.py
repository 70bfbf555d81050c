"""TPUs that are not attached, to compile programs for."""

import os
from collections.abc import Sequence

import jax

from jaxanom.errors import UserError


def devices(name: str) -> Sequence[jax.Device]:
    """Returns the devices of a topology; nothing can run on them.

    Args:
      name: such as "v5e:4x4".

    Raises:
      UserError: libtpu, which has the compiler, is missing, or knows no such topology.
    """
    from jax.experimental import topologies

    # The compiler alone is asked; TPUs of this machine, if any, may be busy.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return topologies.get_topology_desc(name, "tpu").devices
    except Exception as error:  # jax has one of its own for each reason
        raise UserError(
            f"--topology={name}: {error}. It needs the extra `tpu` and a name such as "
            "v5e:4x4; --devices=16 simulates devices without it"
        ) from error

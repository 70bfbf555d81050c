"""What particles on eight devices send one another, read from the compiled program.

    python -m benchmarks.scale.collectives N D BACKEND

prints the bytes that each of eight simulated devices receives in one SVGD update. It is
a process of its own, as the number of devices is fixed when jax starts; nothing is run.
"""

import json
import os
import subprocess
import sys

NUM_DEVICES = 8


def of_backend(num_particles: int, width: int, backend: str) -> float:
    """Starts a process with eight simulated devices and asks it."""
    flag = f"--xla_force_host_platform_device_count={NUM_DEVICES}"
    command = [sys.executable, "-m", "benchmarks.scale.collectives"]
    done = subprocess.run(
        [*command, str(num_particles), str(width), backend],
        env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def _compiled_text(num_particles: int, width: int, backend: str) -> str:
    import jax
    import jax.numpy as jnp

    from jaxanom.parallel import mesh as meshes
    from jaxanom.posterior import fields, sharded, svgd

    mesh = meshes.make_mesh(data=1, particle=NUM_DEVICES)
    velocity = sharded.velocity(mesh, meshes.PARTICLE_AXIS, backend)
    field = fields.Field(svgd.flow())
    rows = jax.sharding.PartitionSpec(meshes.PARTICLE_AXIS)
    shape = jax.ShapeDtypeStruct(
        (num_particles, width),
        jnp.float32,
        sharding=jax.sharding.NamedSharding(mesh, rows),
    )

    def update(x, grads):
        return velocity(field, fields.init(field, x), x, grads)[0]

    return jax.jit(update).lower(shape, shape).compile().as_text()


def main(arguments: list[str]) -> None:
    from jaxanom.parallel import collectives

    text = _compiled_text(int(arguments[0]), int(arguments[1]), arguments[2])
    print(json.dumps(collectives.received_bytes(text, NUM_DEVICES)))


if __name__ == "__main__":
    main(sys.argv[1:])

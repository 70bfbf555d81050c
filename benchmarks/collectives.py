"""What a compiled program sends between devices, read from its text.

    python -m benchmarks.collectives N D BACKEND

prints the bytes that each of eight simulated devices receives in one SVGD update. It is
a process of its own, as the number of devices is fixed when jax starts; nothing is run.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

NUM_DEVICES = 8
SIZES = {"f64": 8, "f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_SENT = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_WHILE = re.compile(r" while\(.*body=%?([\w.\-]+)")
_TURNS = re.compile(r'known_trip_count[^\d]*"?n"?[^\d]*(\d+)')


def received_bytes(text: str, num_devices: int) -> float:
    """Counts what one device receives in a run of a compiled program.

    An all-gather and an all-to-all bring what is not here yet; a sum twice that share
    of its operand, as the best ring does it; a permutation all of it. Loops count as
    often as they turn.

    Args:
      text: of the compiled program.
      num_devices: S.

    Raises:
      ValueError: a loop of unknown length that sends.
    """
    bodies = dict(_computations(text))
    share = (num_devices - 1) / num_devices
    factors = {"all-reduce": 2 * share, "collective-permute": 1.0}

    def total(name: str) -> float:
        found = 0.0
        for line in bodies[name]:
            sent = _SENT.search(line)
            if sent:
                found += _bytes(sent[1]) * factors.get(sent[2], share)
            loop = _WHILE.search(line)
            if loop:
                inside, turns = total(loop[1]), _TURNS.search(line)
                if inside and not turns:
                    raise ValueError(f"a loop of unknown length sends: {line.strip()}")
                found += inside * int(turns[1]) if turns else 0.0
        return found

    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    return total(entry[1])


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", []
    for line in text.splitlines():
        start = _COMPUTATION.match(line)
        if start:
            name, lines = start[1], []
        elif line.startswith("}"):
            yield name, lines
        else:
            lines.append(line)


def _bytes(shape: str) -> int:
    found = 0
    for kind, sizes in _ARRAY.findall(shape):
        size = SIZES[kind]
        for number in filter(None, sizes.split(",")):
            size *= int(number)
        found += size
    return found


def of_backend(num_particles: int, width: int, backend: str) -> float:
    """Starts a process with eight simulated devices and asks it."""
    flag = f"--xla_force_host_platform_device_count={NUM_DEVICES}"
    command = [sys.executable, "-m", "benchmarks.collectives"]
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
    text = _compiled_text(int(arguments[0]), int(arguments[1]), arguments[2])
    print(json.dumps(received_bytes(text, NUM_DEVICES)))


if __name__ == "__main__":
    main(sys.argv[1:])
